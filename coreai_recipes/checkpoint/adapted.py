"""A checkpoint with adapters merged into its matrices, as their blocks are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.checkpoint.adapter import Adapter, LowRank
from coreai_recipes.checkpoint.base import Checkpoint, Grid
from coreai_recipes.checkpoint.open import HUB_ID
from coreai_recipes.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

CONV1D = ("gpt2", "openai-gpt")  # families whose matrices transformers stores (in, out)


class AdaptedCheckpoint(Checkpoint):
    """`base` with `adapters`, each with a factor of the recipe's, in float32: W + factor scale B A, as peft merges.

    Raises CheckpointError with everything in which an adapter does not fit the base.
    """

    def __init__(self, base: Checkpoint, adapters: Sequence[tuple[Adapter, float]]) -> None:
        self.base, self.adapters = base, tuple(adapters)
        self.source, self.path, self.config = base.source, base.path, base.config
        self._merged: dict[str, list[tuple[Adapter, LowRank, float]]] = {}
        self._latest: tuple[str, Tensor] | None = None
        self._is_transposed = base.config.get("model_type") in CONV1D
        problems = []
        for adapter, factor in self.adapters:
            problems += [f"{adapter.place}: {problem}" for problem in self._find(adapter, factor)][:20]
        CheckpointError.collect(problems)
        self.tensors = {
            name: replace(info, dtype="F32") if name in self._merged else info for name, info in base.tensors.items()
        }

    def _find(self, adapter: Adapter, factor: float) -> Iterator[str]:
        """What is wrong between an adapter and the base, whose matrices it is noted with."""
        if (why := _why_another(adapter, self.base)) is not None:
            yield why
            return
        misfits = []
        for module, part in adapter.modules.items():
            name = f"{module}.weight"
            if name not in self.base.tensors:  # GPT-2's files on the hub leave out the first word
                name = f"{module.partition('.')[2]}.weight"
            if module.endswith(("lm_head", "embed_tokens", "wte", "embed_out")):
                yield f"{module}: adapters of tables and heads are not merged here: merge it with peft first"
            elif name not in self.base.tensors:
                misfits.append(f"{module}: its base has no such matrix")
            elif (needed := self.base.tensors[name].shape) != self._turned(part.shape):
                misfits.append(f"{module}: it is for a matrix {self._turned(part.shape)}, and its base has {needed}")
            else:
                held = self._merged.setdefault(name, [])
                held.append((adapter, part, factor))
                if len(held) > 1 and any(each.magnitude for _, each, _ in held):
                    yield f"{module}: a DoRA cannot be merged beside another adapter"
        if misfits:
            others = f", and {len(misfits) - 1} others fit no better" if len(misfits) > 1 else ""
            yield f"{misfits[0]}{others}: this is an adapter of another model"

    def _turned(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[::-1] if self._is_transposed else shape

    def blocks(self, name: str, rows: range | None = None) -> Iterator[Tensor]:
        if name not in self._merged:
            yield from self.base.blocks(name, rows)
            return
        if any(part.magnitude for _, part, _ in self._merged[name]):
            whole = self._formed(name, self._with_lengths)
            yield whole if rows is None else whole[rows.start : rows.stop]
            return
        added = self._formed(name, self._sum)
        row = 0 if rows is None else rows.start
        for block in self.base.blocks(name, rows):
            yield block.float() + added[row : row + len(block)]
            row += len(block)

    def _formed(self, name: str, form: Callable[[str], Tensor]) -> Tensor:
        """What is made of a matrix as a whole, once for all its blocks: rows alone may be rounded otherwise."""
        latest = self._latest
        if latest is None or latest[0] != name:
            latest = self._latest = name, form(name)
        return latest[1]

    def _sum(self, name: str) -> Tensor:
        """What is added to a matrix."""
        added, *others = (self._product(*each) for each in self._merged[name])
        for other in others:
            added = added + other
        return added

    def _product(self, adapter: Adapter, part: LowRank, factor: float) -> Tensor:
        product: Tensor = adapter.read(part.b) @ adapter.read(part.a)
        return (product.t() if self._is_transposed else product) * (part.scale * factor)

    def _with_lengths(self, name: str) -> Tensor:
        """DoRA: m (W + s B A) / |W + s B A|, the lengths those of the rows (arXiv 2402.09353)."""
        ((adapter, part, factor),) = self._merged[name]
        assert part.magnitude is not None
        summed: Tensor = self.base.read(name).float() + self._product(adapter, part, factor)
        turned = summed.t() if self._is_transposed else summed
        lengths = turned.norm(dim=1, keepdim=True)
        scaled: Tensor = adapter.read(part.magnitude).reshape(-1, 1) / lengths * turned
        return scaled.t().contiguous() if self._is_transposed else scaled

    @property
    def changed(self) -> Set[str]:
        """The tensors that an adapter changes."""
        return self._merged.keys()

    def why_no_factors(self, name: str) -> str | None:
        """Why what is added to a tensor is no product of two matrices, or None."""
        is_dora = any(part.magnitude for _, part, _ in self._merged[name])
        return "a DoRA gives the rows of the sum their lengths: it is merged, not handed in" if is_dora else None

    def rank(self, name: str) -> int:
        """Of what is added to a tensor."""
        return sum(part.rank for _, part, _ in self._merged[name])

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) of what is added to a matrix W (out, in), B with the scale, float32."""
        import torch

        held = self._merged[name]
        a = torch.cat([adapter.read(part.a) for adapter, part, _ in held])
        b = torch.cat([adapter.read(part.b) * (part.scale * factor) for adapter, part, factor in held], 1)
        return a, b

    # what is the base's

    def weight_files(self) -> Mapping[str, Path]:
        return self.base.weight_files()

    def config_file(self) -> Path | None:
        return self.base.config_file()

    def folder(self) -> Path | None:
        return self.base.folder()

    def digests(self) -> dict[str, str]:
        return self.base.digests()

    def start_digests(self) -> Future[dict[str, str]]:
        return self.base.start_digests()

    def eos_token_ids(self) -> list[int]:
        return self.base.eos_token_ids()

    def write_tokenizer(self, folder: Path) -> None:
        self.base.write_tokenizer(folder)

    def asking_tokenizer(self) -> Sequence[str] | None:
        return self.base.asking_tokenizer()

    def check_tokenizer(self, rows: int) -> None:
        self.base.check_tokenizer(rows)

    def find_other_tokenizer(self, sealed: Path) -> str | None:
        return self.base.find_other_tokenizer(sealed)

    def load_tokenizer(self) -> Any:
        return self.base.load_tokenizer()

    def is_comparable(self, text: str) -> bool:
        return self.base.is_comparable(text)

    @property
    def packing(self) -> str | None:
        return self.base.packing

    @property
    def place(self) -> str:
        return self.base.place

    def grid(self, name: str) -> Grid | None:
        return None if name in self._merged else self.base.grid(name)

    def why_unreadable(self, name: str) -> str | None:
        return self.base.why_unreadable(name)


def without_adapters(checkpoint: Checkpoint) -> Checkpoint:
    """The base of a checkpoint with adapters, any other as it is."""
    return checkpoint.base if isinstance(checkpoint, AdaptedCheckpoint) else checkpoint


class Unmerged:
    """An `adapter` beside the checkpoint `source`, which may have others merged into it; `scale` is the recipe's.

    Attributes:
        alone: the checkpoint that those others were merged into, with this adapter alone.
        merged: with all of them, which is the model that a package with this adapter must equal.
    """

    def __init__(self, source: Checkpoint, adapter: Adapter, scale: float) -> None:
        self.adapter = adapter
        base, others = (source.base, source.adapters) if isinstance(source, AdaptedCheckpoint) else (source, ())
        self.alone = AdaptedCheckpoint(base, [(adapter, scale)])
        self.merged = AdaptedCheckpoint(base, [*others, (adapter, scale)])


def _why_another(adapter: Adapter, base: Checkpoint) -> str | None:
    """Why an adapter cannot be of the base, where both name a repository of the hub."""
    given = HUB_ID.fullmatch(base.source)
    named = HUB_ID.fullmatch(adapter.base or "")
    if given is None or named is None or given["revision"] is None or given["repo"].lower() == named["repo"].lower():
        return None
    return f"was trained on {named['repo']}, and the checkpoint is {given['repo']}"
