"""The bodies of requests: OpenAI's fields, typed. What cannot be done is refused by name, and nothing is guessed."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coreai_recipes.generate.sampling import Sampling
from coreai_recipes.json_reader import load_json, refuse_constant
from coreai_recipes.serving.refusals import Refusal

COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions
Text = Annotated[str, Field(min_length=1)]
Scalar = str | int | float | bool | None
Body = TypeVar("Body", bound="_Request")


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class StreamOptions(_Model):
    include_usage: bool = False


class _Request(_Model):
    """What both kinds of request take. The fields below `top_k` are not OpenAI's: `recipe run` has them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "n": (1,),
        "best_of": (1,),
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "echo": (False,),
        "suffix": ("",),
        "functions": ([],),
    }
    """Fields that ask for what no bundle does, and the values that ask for nothing."""
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"]
    )
    """Fields that change no answer here."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=1 << 64)
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    max_tokens: int | None = Field(None, ge=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=100)

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, body: Any) -> Any:
        """The body without what asks for nothing. Raises ValueError for what asks for what is not done."""
        if not isinstance(body, dict):
            raise ValueError("the body must be a JSON object")
        asked = [key for key, neutral in cls.NEUTRAL.items() if body.get(key) is not None and body[key] not in neutral]
        if asked:
            raise ValueError(f"{', '.join(asked)}: not supported here; leave it out")
        return {key: value for key, value in body.items() if key not in cls.NEUTRAL and key not in cls.IGNORED}

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def sampling(self) -> Sampling:
        """How a token is drawn: greedy without a temperature."""
        top_p = 1.0 if self.top_p is None else self.top_p
        return Sampling(self.temperature or 0.0, top_p, self.seed, self.top_k, self.min_p, self.repetition_penalty)

    @property
    def top(self) -> int | None:
        """How many tokens' probabilities are asked for beside the one that was picked; None for none at all."""
        raise NotImplementedError

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the count of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class Part(_Model):
    type: Literal["text"]
    text: str


class CalledFunction(_Model):
    name: str
    arguments: str


class Call(_Model):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Said(_Model):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates read it: the content is text, the arguments of calls are objects."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        given = {"name": self.name, "tool_call_id": self.tool_call_id}
        message |= {key: value for key, value in given.items() if value is not None}
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": _read_call(call.function)} for call in self.tool_calls
            ]
        return message


class Tool(_Model):
    type: Literal["function"]
    function: dict[str, Any]

    @model_validator(mode="after")
    def _has_name(self) -> "Tool":
        if not isinstance(self.function.get("name"), str):
            raise ValueError("a function needs a name")
        return self


class ChatBody(_Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Said], Field(min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    chat_template_kwargs: dict[str, Scalar] | None = None

    @property
    def limit(self) -> int | None:
        """The longest answer, in tokens; None for what the context holds."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates read them."""
        tools = [] if self.tool_choice == "none" else self.tools or []
        return [{"type": "function", "function": tool.function} for tool in tools] or None


class CompletionBody(_Request):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)] | Annotated[list[int], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def limit(self) -> int | None:
        return self.max_tokens or COMPLETION_TOKENS

    @property
    def top(self) -> int | None:
        return self.logprobs


def read_body(content: bytes, form: type[Body]) -> Body:
    """The request in a body. Raises Refusal, with every problem, for one that is none."""
    try:
        document = load_json(content.decode(), parse_constant=refuse_constant)
    except ValueError as error:  # what is no UTF-8, too
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from None
    try:
        return form.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        places = [".".join(map(str, each["loc"])) for each in problems]
        told = dict.fromkeys(_explain(place, each) for place, each in zip(places, problems, strict=True))
        raise Refusal(400, "; ".join(list(told)[:8]), param=places[0] or None, code="invalid_value") from None


def _explain(place: str, problem: Any) -> str:
    said = "unknown field" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
    return f"{place}: {said}" if place else str(said)


def _read_call(function: CalledFunction) -> dict[str, Any]:
    try:
        return {"name": function.name, "arguments": load_json(function.arguments)}
    except ValueError:  # a model may have written it
        return {"name": function.name, "arguments": function.arguments}
