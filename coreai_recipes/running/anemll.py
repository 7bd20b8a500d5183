"""Packages for ANEMLL's host: called as docs/bundle.md says, and as that host calls them."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coreai_recipes.hosts.anemll import NEW_IDS, NEW_VALUES, OURS, Settings
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.manifest.schema import Function, Manifest, Port

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.running.engine import Engine, Watch
    from coreai_recipes.running.engine import Function as Runnable

BATCHES_SPARED = 2  # of the context, when it is full and its oldest tokens are dropped
TOKENS_SPARED = 2  # the context counts as full so many positions before its end


def host_inputs(token_ids: Sequence[int], position: int, context: int) -> "dict[str, Tensor]":
    """A call with `token_ids` from `position` on: each sees what is before it, and itself."""
    import torch

    positions = position + torch.arange(len(token_ids), dtype=torch.int32)
    hidden = torch.arange(context) > positions[:, None]
    mask = torch.zeros(hidden.shape, dtype=torch.float16).masked_fill_(hidden, float("-inf"))
    return {
        "input_ids": torch.tensor([list(token_ids)], dtype=torch.int32),
        "position_ids": positions,
        "causal_mask": mask[None, None],
        "current_pos": torch.tensor([position], dtype=torch.int32),
    }


class OwnCalls:
    """An engine of ANEMLL's functions as one of `decode` and `prefill`. A prefill that is not full is fed token by
    token, as its host does: it has no padding."""

    def __init__(self, engine: "Engine", context: int, vocab_size: int) -> None:
        self._engine, self._context, self._vocab_size = engine, context, vocab_size

    def function(self, name: str) -> "OwnFunction":
        one = self._engine.function("infer")
        many = self._engine.function("prefill") if name == "prefill" else None
        return OwnFunction(one, many, self._context, self._vocab_size)

    def make_state(self) -> Any:
        return self._engine.make_state()


class OwnFunction:
    """Calls `many` where all tokens are real, else `one` for each that is."""

    def __init__(self, one: "Runnable", many: "Runnable | None", context: int, vocab_size: int) -> None:
        self._one, self._many, self._context, self._vocab_size = one, many, context, vocab_size

    @property
    def overflowed(self) -> Collection[str]:
        return self._one.overflowed if self._many is None else self._many.overflowed

    @property
    def nans(self) -> Collection[str]:
        return self._one.nans if self._many is None else self._many.nans

    def __call__(self, inputs: "Mapping[str, Any]", state: Any, watch: "Watch | None" = None) -> "dict[str, Tensor]":
        tokens, position = inputs["input_ids"][0].tolist(), int(inputs["position"])
        count = int(inputs["count"]) if "count" in inputs else 1
        if self._many is not None and count == len(tokens):
            found = self._many(host_inputs(tokens, position, self._context), state, watch)
        else:
            for index, token in enumerate(tokens[:count]):
                found = self._one(host_inputs([token], position + index, self._context), state, watch)
        return own_outputs(found, self._vocab_size)


def own_outputs(outputs: "Mapping[str, Tensor]", vocab_size: int) -> "dict[str, Tensor]":
    """The same as docs/bundle.md has them."""
    import torch

    if NEW_IDS in outputs:
        return {"ids": outputs[NEW_IDS].view(1, 1), "values": outputs[NEW_VALUES].view(1, 1)}
    parts = [outputs[f"logits{number}"][0] for number in range(1, len(outputs) + 1)]
    columns = Pieces(vocab_size).columns
    padded = [torch.nn.functional.pad(part, (0, columns - part.shape[1])) for part in parts]
    return {"logits": torch.cat(padded)[None]}


def own_functions(manifest: Manifest) -> dict[str, Function]:
    """The functions of a bundle as `OwnCalls` has them, by this project's names."""
    found = {}
    for name, function in manifest.functions.items():
        inputs = {"input_ids": function.inputs["input_ids"], "position": function.inputs["current_pos"]}
        if OURS[name] != "decode":
            inputs["count"] = inputs["position"]
        shape = manifest.logits.pieces, manifest.logits.columns
        outputs = {"logits": Port(dtype="float16", shape=(1, *shape))}
        if NEW_IDS in function.outputs:
            outputs = {"ids": Port(dtype="int32", shape=(1, 1)), "values": Port(dtype="float16", shape=(1, 1))}
        found[OURS[name]] = Function(query=function.query, inputs=inputs, outputs=outputs)
    return found


class Player:
    """What ANEMLL's host does with a monolithic package, in its order: InferenceManager.swift, `generateResponse`.

    `settings` are those of meta.yaml, and nothing else of a bundle is looked at.
    """

    def __init__(self, engine: "Engine", settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self.calls: list[tuple[str, int]] = []  # each function that was called, and its current_pos

    def generate(self, prompt: Sequence[int], max_tokens: int, end_tokens: Collection[int]) -> list[int]:
        """The tokens of an answer, the best each time, without the one that ends it."""
        text, answer = list(prompt), list[int]()
        self._state = self._engine.make_state()  # for each answer: the whole conversation is fed again
        self._prefill(text)
        while len(answer) < max_tokens:
            if len(text) >= self._settings.context - TOKENS_SPARED:
                text = self._shifted(text)
                self._state = self._engine.make_state()
                self._prefill(text)
            # the last token is fed once more: a prefill's output is not looked at
            token = self._infer(text[-1], len(text) - 1)
            if token in end_tokens:
                break
            answer.append(token)
            text.append(token)
        return answer

    def _prefill(self, text: Sequence[int]) -> None:
        """Full batches, then what is left token by token."""
        size, position = self._settings.prefill, 0
        while len(text) - position >= size:
            self._call("prefill", text[position : position + size], position)
            position += size
        for at in range(position, len(text)):
            self._call("infer", text[at : at + 1], at)

    def _shifted(self, text: list[int]) -> list[int]:
        """The end of a text that fills the context, in whole batches."""
        size, context = self._settings.prefill, self._settings.context
        kept = min(max(1, context // size - BATCHES_SPARED) * size, max(1, context - size))
        return text[-kept:]

    def _infer(self, token: int, position: int) -> int:
        found = self._call("infer", [token], position)
        if self._settings.chooses:
            part = int(found[NEW_VALUES].argmax())
            return sum(self._settings.sizes[:part]) + int(found[NEW_IDS][part])
        import torch

        parts = [found[f"logits{number}"].reshape(-1) for number in range(1, self._settings.parts + 1)]
        return int(torch.cat(parts).argmax())

    def _call(self, function: str, token_ids: Sequence[int], position: int) -> "dict[str, Tensor]":
        self.calls.append((function, position))
        given = host_inputs(token_ids, position, self._settings.context)
        return self._engine.function(function)(given, self._state)
