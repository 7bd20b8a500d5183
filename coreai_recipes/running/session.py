"""One sequence in a package's states, and the calls that lengthen it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coreai_recipes.hosts.logits import choices
from coreai_recipes.running.carried import Snapshots
from coreai_recipes.running.keeping import Kept, used_rows
from coreai_recipes.running.speculation import Round, Speculator

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.manifest.schema import Function, Manifest, State
    from coreai_recipes.running.program import SavedProgram
    from coreai_recipes.running.speculation import Pick


def _functions_of(manifest: "Manifest") -> "Mapping[str, Function]":
    """Those that a session calls, by this project's names."""
    if manifest.host is None:
        return manifest.functions
    if manifest.host == "coreai-models":
        from coreai_recipes.running.coreai_models import own_functions as functions_of_static

        return functions_of_static(manifest)
    if manifest.host == "coreai-models-dynamic":
        from coreai_recipes.running.coreai_models_dynamic import own_functions as functions_of_dynamic

        return functions_of_dynamic(manifest)
    from coreai_recipes.running.anemll import own_functions

    return own_functions(manifest)


class Session:
    """Knows which tokens the states hold, and feeds only what is new.

    `prefill` takes chunks and `decode` one token; positions, counts and the context are as docs/bundle.md says.
    """

    def __init__(self, program: "SavedProgram", manifest: "Manifest") -> None:
        self._program = program
        self.context = manifest.context
        self.before_call: Callable[[], None] | None = None
        """Asked before each call of the package: what it raises ends an answer there."""
        self._described: Mapping[str, State] = {**manifest.states, **manifest.host_caches}
        self._functions = _functions_of(manifest)
        self._chunk = self._functions["prefill"].query if "prefill" in self._functions else 1
        self._vocab_size = manifest.vocab_size
        self._kinds = manifest.places
        spare = [kind.rows - kind.window for kind in self._kinds.values() if kind.window is not None]
        # how far a ring can go back; a full cache holds every position in a row of its own
        self._rollback = min(spare, default=self.context)
        self._token_ids: list[int] = []
        self._written = 0  # beyond the last position that any call wrote to, even one that was interrupted
        self._snapshots = Snapshots(program)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens that the states hold."""
        return tuple(self._token_ids)

    @property
    def written(self) -> int:
        """Beyond the last position that any call wrote to."""
        return self._written

    @property
    def states(self) -> Any:
        """The program's, as they are now."""
        self._program.commit(len(self._token_ids))
        return self._program.states

    def resume(self, token_ids: Sequence[int], written: int) -> None:
        """The states hold those tokens: they were filled by another process."""
        self._token_ids, self._written = list(token_ids), written
        self._program.restore(self._program.carried, len(token_ids))
        self._snapshots.note(len(token_ids))
        self._snapshots.keep()

    def keep(self) -> Kept | None:
        """A copy of what the session holds; None where the runtime does not show its states."""
        states = self._program.states
        if not isinstance(states, dict):
            return None
        used = {name: used_rows(states[name], state, self._written) for name, state in self._described.items()}
        copied = {name: tensor.clone() for name, tensor in used.items()}
        return Kept(self.token_ids, self._written, copied, self._snapshots.set_aside())

    def restore(self, kept: Kept) -> None:
        """Hold again what was kept of this session."""
        states = self._program.states
        self._token_ids.clear()  # interrupted here, nothing is certain
        for name, state in self._described.items():
            used_rows(states[name], state, kept.written).copy_(kept.states[name])
        self._snapshots = kept.snapshots.resumed()
        self._token_ids, self._written = list(kept.token_ids), kept.written

    def count_reusable(self, token_ids: Sequence[int], kept: Kept | None = None) -> int:
        """How many of the first tokens of a sequence need no call, after what the session holds or what was kept."""
        held, written, snapshots = self._token_ids, self._written, self._snapshots
        if kept is not None:
            held, written, snapshots = list(kept.token_ids), kept.written, kept.snapshots
        shared = snapshots.nearest(_count_shared(held, list(token_ids)))
        return 0 if written - shared > self._rollback else shared

    def feed(self, token_ids: Sequence[int]) -> "Tensor":
        """What follows the sequence `token_ids`: logits (V,), or the id that the package chose, (1,). What the states
        hold of it is not fed again.

        Interrupted anywhere, the next call starts from what is certain. Raises ValueError, before any call, for an
        empty sequence or one that the context cannot hold.
        """
        if not 1 <= len(token_ids) <= self.context:
            raise ValueError(f"{len(token_ids)} tokens were given; a call takes 1 to {self.context}")
        token_ids = list(token_ids)
        self._rewind(_count_shared(self._token_ids, token_ids))
        is_prompt = len(token_ids) - len(self._token_ids) > 1
        while True:
            position = len(self._token_ids)
            if is_prompt and position + self._chunk >= len(token_ids):
                self._snapshots.keep()  # what the same prompt goes back to, and one that ends otherwise
            logits = self._call(token_ids[position : position + self._chunk])
            if len(self._token_ids) == len(token_ids):
                if is_prompt:
                    self._snapshots.keep()
                return logits

    @property
    def gives_logits(self) -> bool:
        """Whether there is anything to sample from."""
        return "logits" in self._functions["decode"].outputs

    @property
    def has_draft(self) -> bool:
        """Whether the package can draft tokens."""
        return "draft" in self._functions and "score" in self._functions

    def speculate(self, token_ids: Sequence[int], max_tokens: int, pick: "Pick") -> Iterator[Round]:
        """Rounds of drafted and verified tokens after the sequence `token_ids`: `pick` chooses from logits (V,).

        The tokens are those that `feed` and `pick` would give one by one. Raises ValueError as `feed` does.
        """
        if not 1 <= len(token_ids) <= self.context:
            raise ValueError(f"{len(token_ids)} tokens were given; a call takes 1 to {self.context}")
        text = list(token_ids)
        self._rewind(_count_shared(self._token_ids, text))
        queries = {name: function.query for name, function in self._functions.items()}
        read = [name.removeprefix("seen_") for name in self._functions["draft"].inputs if name.startswith("seen_")]
        windows: dict[str, int | None] = {kind: self._kinds[kind].window for kind in read}
        speculator = Speculator(self._call_and_note, windows, queries, self.context, self._vocab_size)
        for found in speculator.rounds(text, max_tokens, pick, skip=len(self._token_ids)):
            text += found.tokens
            self._token_ids = text[:-1]  # the last one was picked and not yet fed
            self._snapshots.note(len(self._token_ids))
            yield found

    def _call_and_note(self, function: str, inputs: Mapping[str, "Tensor"]) -> Mapping[str, "Tensor"]:
        """A call of the package, and how far it may have written."""
        if self.before_call is not None:
            self.before_call()
        if function != "draft":
            count = int(inputs["count"]) if "count" in inputs else 1
            self._written = max(self._written, int(inputs["position"]) + count)
        return self._program.call(function, inputs)

    def _rewind(self, kept: int) -> None:
        """Hold the first `kept` tokens only, or as many fewer as what is carried was kept of. Where a ring has lost
        what they need, start anew.

        A ring's rows beyond `kept` hold what was written last, not what a sequence of `kept` tokens would have there;
        so it is the last written position that counts, also after an earlier rollback.
        """
        kept = self._snapshots.nearest(kept)
        if self._written - kept > self._rollback:
            self._token_ids.clear()
            self._snapshots.go_back(0)
            self._program.reset()
            self._written = 0
        else:
            del self._token_ids[kept:]
            self._snapshots.go_back(kept)

    def _call(self, token_ids: list[int]) -> "Tensor":
        import torch

        position, count = len(self._token_ids), len(token_ids)
        function, query = ("decode", 1) if count == 1 else ("prefill", self._chunk)
        inputs = {
            "input_ids": torch.tensor([token_ids + [0] * (query - count)], dtype=torch.int32),
            "position": torch.tensor([position], dtype=torch.int32),
        }
        if function == "prefill":
            inputs["count"] = torch.tensor([count], dtype=torch.int32)
        outputs = self._call_and_note(function, inputs)
        self._snapshots.note(position + count)  # interrupted here, the next call goes back to what was kept
        self._token_ids += token_ids
        return choices(outputs, self._vocab_size)[-1]


def _count_shared(held: list[int], token_ids: list[int]) -> int:
    """How many tokens the states and the sequence begin with in common; the last one is always fed."""
    if token_ids[: len(held)] == held:
        shared = len(held)
    else:
        pairs = zip(held, token_ids, strict=False)
        shared = next((i for i, (old, new) in enumerate(pairs) if old != new), len(token_ids))
    return min(shared, len(token_ids) - 1)
