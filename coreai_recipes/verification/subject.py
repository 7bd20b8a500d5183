"""What the stages look at, and what they share so that it is computed once."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.recipe.schema import MODEL, Recipe
from coreai_recipes.verification.memory import fits
from coreai_recipes.verification.tokens import Tokens, choose_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.checkpoint.adapted import Unmerged
    from coreai_recipes.decoder.filling import Weight
    from coreai_recipes.evaluate import Program
    from coreai_recipes.evaluate.constants import Constant
    from coreai_recipes.verification.exchange import Exchange
    from coreai_recipes.verification.scale import Peaks

Progress = Callable[[str, int, int], None]
Runtime = Literal["evaluator", "coreml", "coreai"]

POSITIONS = 200
# A ring is made to wrap where that costs no more than this many positions of its window.
AFFORDABLE_WINDOW = 256


@dataclass
class Subject:
    """A recipe, the checkpoints at hand by the stack that they fill, and the package made of it, where there is one."""

    recipe: Recipe
    sources: Mapping[str, Checkpoint]
    package: Path | None
    given_tokens: tuple[int, ...] | None = None
    runtime: Runtime = "evaluator"
    on_progress: Progress | None = None
    # why a stack has no checkpoint
    missing: Mapping[str, str] = field(default_factory=dict)
    # adapters that functions take as inputs, by name, and why there are none
    adapters: "Mapping[str, Unmerged]" = field(default_factory=dict)
    no_adapters: str | None = None
    # transformers' logits (S, V) in float32, left by the first stage that ran it
    reference_logits: "Tensor | None" = field(default=None, repr=False)
    # our Decoder's logits (S, V) with the weights that the package has, left by the first stage that ran it
    stored_logits: "Tensor | None" = field(default=None, repr=False)
    # the package's answers in float16, left by the first stage that ran it
    float16_run: Any = field(default=None, repr=False)
    # what answers for the package in a process of its own, as long as it does
    beside: Any = field(default=None, repr=False)
    # what stage `package` measures beside its comparisons, where somebody asks for it
    peaks: "Peaks | None" = None
    # the largest value of the residual stream, left by the first stage that saw it
    stream_peak: float | None = None
    # what states lose after 2,000 tokens is measured however long that takes
    all_lengths: bool = False

    @property
    def weights(self) -> Checkpoint:
        """The model's checkpoint; a stage that uses it has said that it needs it."""
        if MODEL not in self.sources:
            raise ValueError("this stage needs a checkpoint")
        return self.sources[MODEL]

    @cached_property
    def tokens(self) -> Tokens:
        """What is compared: some 200 positions, more where a short window can be made to wrap."""
        chosen = choose_tokens(self.weights, self.recipe.model.vocab_size, self._length())
        if self.given_tokens is None:
            return chosen
        return Tokens(self.given_tokens, chosen.prompts, "as given")

    @cached_property
    def float32_bytes(self) -> int:
        """What the whole model takes in float32."""
        from coreai_recipes.decoder.model import count_parameters

        return 4 * count_parameters(self.recipe)

    @cached_property
    def streamed_bytes(self) -> int:
        """What is held at once when the model goes by layer after layer: transformers' largest layer and ours, both in
        float32, and the logits of both."""
        from coreai_recipes.decoder.model import build_decoder

        largest = max(sum(p.numel() for p in layer.parameters()) for layer in build_decoder(self.recipe).stack)
        return 2 * 4 * (largest + self._length() * self.recipe.model.vocab_size)

    @property
    def fits_in_memory(self) -> bool:
        return fits(self.float32_bytes)

    def reference(self) -> "Tensor":
        """transformers' logits (S, V) in float32."""
        from coreai_recipes.verification.reference import Reference

        if self.reference_logits is None:
            self.reference_logits = Reference(self.recipe, self.weights).run(self.tokens.sequence)
        return self.reference_logits

    @cached_property
    def packages(self) -> tuple[Path, ...]:
        """The package, or the several beside it that the recipe asks for."""
        from coreai_recipes.storage.chunks import packages_of

        return () if self.package is None else packages_of(self.recipe, self.package)

    @cached_property
    def evaluated(self) -> "dict[Path, Program]":
        """The packages that the evaluator has opened."""
        return {}

    def close_packages(self) -> None:
        """Give back the memory of the packages that the evaluator has opened: twice the float32 model's."""
        self.evaluated.clear()
        gc.collect()  # a program and its functions know each other

    @cached_property
    def stored_weights(self) -> "Mapping[str, Weight]":
        """Our Decoder's parameters as the package is to have them: made anew of the checkpoint, but for those that were
        fitted to a text, which are read where the recipe's layout of weight.bin has them."""
        from coreai_recipes.storage.reading import stored_weights

        return stored_weights(self.recipe, self.weights, package=self.package)

    @cached_property
    def packaged_weights(self) -> "Mapping[str, Weight]":
        """Our Decoder's parameters as the package's program has them; without a package as it would have them."""
        from coreai_recipes.verification.packaged import packaged_decoder

        if self.package is None:
            return self.stored_weights
        return packaged_decoder(self.recipe, self.package, self.sources.get(MODEL), self.constants)

    @cached_property
    def constants(self) -> "Mapping[str, Constant]":
        """The weights of the packages by their names in the programs."""
        from coreai_recipes.verification.packaged import constants_of

        return {name: found for package in self.packages for name, found in constants_of(package).items()}

    def exchange(self) -> "Exchange | None":
        """What puts the package's weights into transformers' own model: all that are not as a float16 checkpoint's.
        None where there are none, as where a draft alone is compressed."""
        from coreai_recipes.decoder.filling import bind_weights
        from coreai_recipes.decoder.model import build_decoder
        from coreai_recipes.storage.compression import FLOAT16
        from coreai_recipes.storage.parameters import raw_tables, stored_parameters
        from coreai_recipes.verification.exchange import Exchange

        decoder = build_decoder(self.recipe)
        stored = stored_parameters([decoder])
        shapes = {**stored.shapes, **raw_tables([decoder]).shapes}
        names = [name for name, shape in shapes.items() if stored.compression.storage(name, shape) != FLOAT16]
        if not names:
            return None
        return Exchange(bind_weights(decoder, self.weights), {name: self.packaged_weights[name] for name in names})

    def as_stored(self) -> "Tensor":
        """Our Decoder's logits (S, V) in float32, of the weights that the package has."""
        from coreai_recipes.verification.streamed import StreamedDecoder

        if self.stored_logits is None:
            decoder = StreamedDecoder(self.recipe, self.stored_weights)
            self.stored_logits = decoder.run(self.tokens.sequence, lambda index, hidden: None)
        return self.stored_logits

    @property
    def compresses(self) -> bool:
        """Whether the package has other weights than those of the checkpoint rounded to float16."""
        from coreai_recipes.storage.compression import Compression

        return Compression.of(self.recipe).compresses

    @cached_property
    def has_compressed(self) -> bool:
        """Whether any parameter is compressed: the rules of a recipe that `compresses` may leave all in float16."""
        from coreai_recipes.decoder.model import exported_form
        from coreai_recipes.decoder.stacks import build_stacks
        from coreai_recipes.storage.compression import FLOAT16
        from coreai_recipes.storage.parameters import raw_tables, stored_parameters

        stacks = build_stacks(self.recipe, exported_form(self.recipe))
        return any(
            each.compression.storage(name, shape) != FLOAT16
            for each in (stored_parameters(stacks), raw_tables(stacks))
            for name, shape in each.shapes.items()
        )

    @property
    def is_on_linux(self) -> bool:
        """Whether Core AI's runtime for Linux runs it, whose kernels no device has."""
        from coreai_recipes.running.coreai import has_devices_kernels

        return self.runtime == "coreai" and not has_devices_kernels()

    @property
    def runs_dense(self) -> bool:
        """Whether its asset's dense twin runs in its place, which stage `decompressed` holds to it."""
        return self.is_on_linux and self.has_compressed

    @property
    def chooses_experts(self) -> bool:
        """Whether a layer of the recipe has a mixture of experts, of MLPs or of heads."""
        from coreai_recipes.decoder.model import build_decoder
        from coreai_recipes.verification.ties import has_routers

        return has_routers(build_decoder(self.recipe))

    def note_stream(self, hidden: "Tensor") -> None:
        """Keep the largest value of the residual stream, as it is without a scale."""
        self.stream_peak = max(self.stream_peak or 0.0, float(hidden.abs().max()))

    def measure_stream(self) -> float:
        """The largest value of the residual stream on the tokens that are compared, in float32."""
        from coreai_recipes.verification.streamed import StreamedDecoder

        if self.stream_peak is None:
            decoder = StreamedDecoder(self.recipe, self.stored_weights)
            decoder.run(self.tokens.sequence, lambda index, hidden: self.note_stream(hidden))
        return self.stream_peak or 0.0

    def progress(self, stage: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(stage, done, total)

    def windows(self) -> list[int]:
        """The windows of the kinds in use."""
        from coreai_recipes.decoder.states import state_specs

        return sorted({state.window for state in state_specs(self.recipe).values() if state.window is not None})

    def _length(self) -> int:
        wrapping = [window + POSITIONS // 2 for window in self.windows() if window <= AFFORDABLE_WINDOW]
        return min(max(POSITIONS, *wrapping, 0), self.recipe.export.context)
