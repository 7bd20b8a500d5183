"""What /metrics says, in Prometheus' words."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from coreai_recipes.generate.answering import Answer

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Of one server, in a registry of its own; each figure has the label `model`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        self.responses = Counter("recipe_http_responses", "HTTP responses", ("path", "status"), registry=self.registry)
        self.waiting = Gauge("recipe_requests_waiting", "Requests in the queue", ("model",), registry=self.registry)
        self.kept_bytes = Gauge(
            "recipe_prompt_cache_bytes", "Bytes of kept prompts", ("model",), registry=self.registry
        )
        self._ended = Counter(
            "recipe_answers", "Answers by how they ended", ("model", "outcome"), registry=self.registry
        )
        self._tokens = Counter(
            "recipe_tokens",
            "Tokens of prompts, of these cached, of answers",
            ("model", "kind"),
            registry=self.registry,
        )
        self._drafted = Counter(
            "recipe_drafted_tokens",
            "Drafted tokens, and of these accepted",
            ("model", "kind"),
            registry=self.registry,
        )
        self._first = Histogram(
            "recipe_first_token_seconds",
            "From an answer's turn to its first token",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._whole = Histogram(
            "recipe_answer_seconds",
            "From a request's coming to its answer's end",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def ended(self, model: str, outcome: str) -> None:
        self._ended.labels(model, outcome).inc()

    def answered(self, model: str, answer: Answer, cached: int, seconds: float) -> None:
        """An answer that was made to its end."""
        self.ended(model, answer.finish_reason or "stop")
        counts = {"prompt": answer.prompt_tokens, "cached": cached, "completion": len(answer.token_ids)}
        for kind, count in counts.items():
            self._tokens.labels(model, kind).inc(count)
        for kind, count in {"drafted": answer.drafted, "accepted": answer.accepted}.items():
            self._drafted.labels(model, kind).inc(count)
        if answer.seconds_to_first_token is not None:
            self._first.labels(model).observe(answer.seconds_to_first_token)
        self._whole.labels(model).observe(seconds)

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)
