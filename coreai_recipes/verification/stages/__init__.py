"""A catalogue: one stage of verification a file, named as users name it, each with `run(subject) -> StageResult`.

`STAGES` is all that is known of them together: which there are, in their order, and what each cannot do without.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from coreai_recipes.recipe.schema import DRAFT, MODEL, Recipe
from coreai_recipes.verification.report import StageResult
from coreai_recipes.verification.subject import Subject

if TYPE_CHECKING:
    from coreai_recipes.verification.answers import Asked

NO_CHECKPOINT = "no checkpoint: pass one with --checkpoint SRC"
NO_REFERENCE = "the recipe has no reference"
NO_PACKAGE = "no package"
NO_ADAPTERS = "no adapters that are not merged"
NOT_AT_HAND = "the adapters are not at hand: pass them with --adapter NAME=SRC"
NO_COMPRESSION = "no compression in this recipe"
NOTHING_COMPRESSED = "nothing is compressed: the recipe leaves every matrix in float16"
OF_FORMAT = {
    "coreml": "what the engine makes of a program is known of Core ML's",
    "coreai": "Core ML's package is decompressed by the evaluator itself",
}


@dataclass(frozen=True)
class Stage:
    """What a stage cannot do without, and whether a build is proven only where it ran.

    A family that the reference cannot take apart skips the stages that read its layers: that is no proof.
    """

    name: str
    needs_reference: bool = True
    needs_package: bool = False
    needs_draft: bool = False
    needs_compression: bool = False
    needs_adapters: bool = False
    needs_logits: bool = False  # in float16, of whatever runs the package
    reads_layers: bool = True
    is_proof: bool = True
    only_format: Literal["coreml", "coreai"] | None = None

    def why_not(self, subject: Subject) -> str | None:
        """Why the stage cannot run on `subject`, or None."""
        if self.needs_package and subject.package is None:
            return NO_PACKAGE
        if self.only_format not in (None, subject.recipe.export.format):
            return OF_FORMAT[self.only_format]
        if self.only_format == "coreai" and not subject.compresses:
            return NO_COMPRESSION
        if self.only_format == "coreai" and not subject.has_compressed:
            return NOTHING_COMPRESSED
        if self.needs_reference and subject.recipe.reference is None:
            return NO_REFERENCE
        if MODEL not in subject.sources:
            return subject.missing.get(MODEL, NO_CHECKPOINT)
        if self.needs_logits:
            return self._why_no_logits(subject)
        if not self.needs_adapters or subject.adapters:
            return None
        return (subject.no_adapters or NOT_AT_HAND) if subject.recipe.unmerged else NO_ADAPTERS

    def _why_no_logits(self, subject: Subject) -> str | None:
        from coreai_recipes.verification.stages.package_float16 import why_no_logits

        return why_no_logits(subject)

    def proves(self, subject: Subject) -> bool:
        """Whether a build of `subject` is not proven without the stage."""
        if self.only_format not in (None, subject.recipe.export.format):
            return False
        if self.only_format == "coreai" and not subject.has_compressed:
            return False
        if self.needs_logits and self._why_no_logits(subject):
            return False
        if self.needs_draft:
            return self.is_proof and DRAFT in subject.sources
        if self.needs_adapters and not subject.recipe.unmerged:
            return False
        has_reference = subject.recipe.reference is not None or not self.needs_reference
        return self.is_proof and has_reference and (subject.compresses or not self.needs_compression)

    def asks(self, subject: Subject) -> "Sequence[Asked]":
        """What it will ask of the package."""
        if not self.needs_package or self.why_not(subject):
            return ()
        asks: Callable[[Subject], Sequence[Asked]] = import_module(f"{__name__}.{self.name}").asks
        return asks(subject)

    def run(self, subject: Subject) -> StageResult:
        run: Callable[[Subject], StageResult] = import_module(f"{__name__}.{self.name}").run
        return run(subject)


_IN_ORDER = (
    Stage("rotary", reads_layers=False, is_proof=False),
    Stage("torch"),
    Stage("package", needs_reference=False, needs_package=True),
    Stage("package_float16", needs_package=True, needs_logits=True),
    Stage("package_engine", needs_package=True, only_format="coreml"),
    Stage(
        "decompressed",
        needs_reference=False,
        needs_package=True,
        needs_compression=True,
        reads_layers=False,
        only_format="coreai",
    ),
    Stage("tokenizer", needs_reference=False, reads_layers=False, is_proof=False),
    Stage("draft", needs_draft=True),
    Stage("adapters", needs_adapters=True),
    Stage("compressed", needs_compression=True),
)
STAGES = {stage.name: stage for stage in _IN_ORDER}


def usual_stages(recipe: Recipe) -> list[str]:
    """Those that run where none are named: `adapters` only where the recipe keeps some apart, `decompressed` only where
    it compresses an .aimodel."""
    from coreai_recipes.storage.compression import Compression

    is_compressed_asset = recipe.export.format == "coreai" and Compression.of(recipe).compresses
    return [
        name
        for name, stage in STAGES.items()
        if (recipe.unmerged or not stage.needs_adapters) and (is_compressed_asset or stage.only_format != "coreai")
    ]
