"""Assets for Apple's runner of coreai-models: called as docs/bundle.md says, and as that runner calls them."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import BundleError
from coreai_recipes.hosts import coreai_models as theirs
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.manifest.schema import Function, Manifest, Port

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.running.coreai import CoreAIProgram
    from coreai_recipes.running.engine import Watch


def runner_inputs(position: int, count: int, query: int, context: int) -> "dict[str, Tensor]":
    """Of a call with `query` tokens from `position` on, all but their rows. The first `count` of them are real: each
    sees what is before it, and itself; the others see nothing."""
    import torch

    positions = position + torch.arange(query, dtype=torch.int32)
    is_seen = torch.arange(context)[:, None] <= positions  # (K, S)
    is_seen[:, count:] = False
    mask = torch.full((context, query), theirs.HIDDEN, dtype=torch.float16).masked_fill_(is_seen, 0)
    return {
        theirs.POSITIONS: positions[None],
        theirs.STEP: torch.tensor([position], dtype=torch.int32),
        theirs.MASK: mask[None, :, None],
    }


class OwnCalls:
    """An engine of the runner's functions as one of `decode` and `prefill`. The table stays where the asset is run."""

    def __init__(self, engine: "CoreAIProgram", context: int, vocab_size: int) -> None:
        self._engine, self._context, self._vocab_size = engine, context, vocab_size
        engine.hold(theirs.LOAD)

    def function(self, name: str) -> "OwnFunction":
        queries = [1]
        if name == "prefill":
            gathering = (name for name in self._engine.signatures if name.startswith(theirs.GATHER))
            queries.append(max(int(name.rpartition("_")[2]) for name in gathering))
        return OwnFunction(self._engine, queries, self._context, self._vocab_size)

    def make_state(self) -> Any:
        return self._engine.make_state()


class OwnFunction:
    """One call of the largest of `queries`, or one for each token where its rows would go beyond the context."""

    overflowed: Collection[str] = ()
    nans: Collection[str] = ()

    def __init__(self, engine: "CoreAIProgram", queries: Sequence[int], context: int, vocab_size: int) -> None:
        self._engine, self._queries, self._context, self._vocab_size = engine, queries, context, vocab_size

    @property
    def inputs(self) -> theirs.Ports:
        """What it takes: dtype and shape by name."""
        return inputs_of_call(max(self._queries))

    def __call__(self, inputs: "Mapping[str, Any]", state: Any, watch: "Watch | None" = None) -> "dict[str, Tensor]":
        tokens, position, count = asked_of(inputs, self._context)
        query = max(self._queries)
        if position + query <= self._context:
            return self._call(tokens, position, count, state, watch)
        for index in range(count):
            found = self._call(tokens[index : index + 1], position + index, 1, state, watch)
        return found

    def _call(
        self, tokens: "Tensor", position: int, count: int, state: Any, watch: "Watch | None"
    ) -> "dict[str, Tensor]":
        query = len(tokens)
        gather = self._engine.function(theirs.gather_name(query))
        rows = gather({theirs.IDS: tokens[None]}, state)[theirs.GATHERED]
        extend = self._engine.function(theirs.extend_name(self._context, query))
        given = runner_inputs(position, count, query, self._context) | {theirs.EMBEDDED: rows}
        logits = extend(given, state, watch)[theirs.LOGITS][0, 0, count - 1]  # (V,)
        return {"logits": own_logits(logits, self._vocab_size)}


def asked_of(inputs: "Mapping[str, Any]", context: int) -> "tuple[Tensor, int, int]":
    """The tokens (S,) of a call, its position, and how many are real. Raises BundleError for what the states do not
    hold."""
    tokens, position = inputs["input_ids"][0], int(inputs["position"])
    count = int(inputs["count"]) if "count" in inputs else 1
    if position < 0 or not 1 <= count <= len(tokens) or position + count > context:
        raise BundleError(
            f"a call was made with {count} tokens at position {position}; the states hold positions 0 to {context - 1}"
        )
    return tokens, position, count


def inputs_of_call(query: int) -> theirs.Ports:
    """What `decode` or `prefill` takes: dtype and shape by name."""
    count: theirs.Ports = {} if query == 1 else {"count": ("int32", (1,))}
    return {"input_ids": ("int32", (1, query)), "position": ("int32", (1,))} | count


def own_logits(logits: "Tensor", vocab_size: int) -> "Tensor":
    """A row (V,) in pieces, as docs/bundle.md has them."""
    import torch

    pieces = Pieces(vocab_size)
    return torch.nn.functional.pad(logits, (0, pieces.rows - vocab_size)).view(pieces.shape(1))


def own_functions(manifest: Manifest) -> dict[str, Function]:
    """The functions of a bundle as `OwnCalls` has them."""
    extending = [manifest.functions[name].query for name in manifest.functions if name.startswith(theirs.EXTEND)]
    return own_functions_of(manifest, extending)


def own_functions_of(manifest: Manifest, queries: Iterable[int]) -> dict[str, Function]:
    """`decode` and `prefill`, by the tokens of their calls."""
    one = Port(dtype="int32", shape=(1,))
    outputs = {"logits": Port(dtype="float16", shape=Pieces(manifest.vocab_size).shape(1))}
    found = {}
    for query in queries:
        inputs = {"input_ids": Port(dtype="int32", shape=(1, query)), "position": one}
        if query > 1:
            inputs["count"] = one
        found["decode" if query == 1 else "prefill"] = Function(query=query, inputs=inputs, outputs=outputs)
    return found


class Answers(ABC):
    """What the runner's engines have in common: a text goes on from what is written of it, token by token."""

    def __init__(self, engine: "CoreAIProgram", settings: theirs.Settings) -> None:
        self._engine, self._settings = engine, settings
        self._history: list[int] = []  # of which keys and values are written

    def generate(self, prompt: Sequence[int], max_tokens: int, end_tokens: Collection[int]) -> list[int]:
        """The tokens of an answer, the best each time, without the one that ends it."""
        text, answer = list(prompt), list[int]()
        self._resume(text)
        for _ in range(min(max_tokens, max(0, self._settings.context - len(prompt)))):
            token = int(self.next_logits(text).argmax())
            if token in end_tokens:
                break
            answer.append(token)
            text.append(token)
        return answer

    def _resume(self, text: list[int]) -> None:
        """What of the history an answer goes on from: all of it, or nothing where the text is another."""
        pairs = zip(self._history, text, strict=False)
        common = next((at for at, (old, new) in enumerate(pairs) if old != new), min(len(self._history), len(text)))
        if common < len(text) and common < len(self._history):
            self._history = []
        elif len(self._history) >= len(text):
            self._history = self._history[: max(0, common - 1)]

    @abstractmethod
    def next_logits(self, text: Sequence[int]) -> "Tensor":
        """Of the token after `text`, (V,), of which what is not yet written is."""


class Player(Answers):
    """What the runner does with a static asset, in its order: CoreAIStaticShapeEngine.swift.

    `settings` are those of metadata.json, and nothing else of a bundle is looked at. `padding` is the token that stands
    where a call has fewer than it takes; the runner leaves there what it finds.
    """

    def __init__(self, engine: "CoreAIProgram", settings: theirs.Settings, padding: int = 0) -> None:
        names = engine.signatures.keys()
        if theirs.LOAD not in names or not any(name.startswith(theirs.EXTEND) for name in names):
            raise ValueError("the runner takes it for no static asset")
        super().__init__(engine, settings)
        self._padding = padding
        self._extending = sorted(name for name in names if name.startswith((theirs.EXTEND, "prompt")))
        self._longest = max(int(name.rpartition("_")[2]) for name in self._extending)
        self._check(next((name for name in self._extending if self._context_of(name) == settings.context), None))
        self._state = engine.make_state()  # which no answer clears: what is not seen may be anything
        self._table = engine.function(theirs.LOAD)({}, self._state)[theirs.TABLE]
        self.calls: list[tuple[str, int]] = []  # each function that was called, and its in_step

    def _context_of(self, function: str) -> int:
        """The largest size of its cache, whatever its order."""
        _, shape = self._engine.signatures[function]["states"][theirs.CACHES[0]]
        return max(shape)

    def _check(self, function: str | None) -> None:
        if function is None:
            raise ValueError(f"no function has a context of {self._settings.context}")
        signature = self._engine.signatures[function]
        if theirs.LOGITS not in signature["outputs"]:
            raise ValueError(f"{function} does not give {theirs.LOGITS}")
        if not {*theirs.CACHES} <= signature["states"].keys():
            raise ValueError(f"{function} does not have the states {', '.join(theirs.CACHES)}")

    def next_logits(self, text: Sequence[int]) -> "Tensor":
        """Of the token after `text`, (V,), after a call for each batch that is not yet written."""
        at = len(self._history)
        while at < len(text):
            left = len(text) - at
            function = self._select(left, at, is_prompt=left > self._longest)
            query = self._engine.signatures[function]["inputs"][theirs.EMBEDDED][1][1]
            first = at // query * query  # batches begin at multiples of their size, and are made again from there
            end = min(first + query, len(text))
            found = self._call(function, text[first:end], first, query)
            logits = found[theirs.LOGITS].reshape(-1)
            at = end
        self._history = list(text)
        start = (end - first - 1) * self._settings.vocab_size
        return logits[start : start + self._settings.vocab_size]

    def _select(self, left: int, at: int, is_prompt: bool) -> str:
        """The shortest call that takes all that is left, or the longest; of those, the shortest context."""
        sizes = [tuple(map(int, name.split("_")[-2:])) for name in self._extending]
        longest = max(query for _, query in sizes)
        query = min((query for _, query in sizes if query >= left), default=longest)
        contexts = [context for context, own in sizes if own == query and context > at]
        if not contexts:
            raise ValueError(f"no function of {query} tokens has a context beyond {at}")
        return (theirs.prompt_name if is_prompt else theirs.extend_name)(min(contexts), query)

    def _call(self, function: str, token_ids: Sequence[int], position: int, query: int) -> "dict[str, Tensor]":
        import torch

        self.calls.append((function, position))
        padded = [*token_ids, *[self._padding] * (query - len(token_ids))]
        ids = torch.tensor([padded], dtype=torch.int32)
        gather = self._engine.function(theirs.gather_name(query))
        rows = gather({theirs.IDS: ids, theirs.TABLE: self._table}, self._state)[theirs.GATHERED]
        given = runner_inputs(position, len(token_ids), query, self._settings.context)
        return self._engine.function(function)(given | {theirs.EMBEDDED: rows}, self._state)
