"""Perplexity of a bundle on texts, and its KL divergence from transformers with the checkpoint's weights.

Our Decoder computes, in float32, with the weights as the saved package decompresses them. The evaluator on the package
itself gives the logits of a window's last token alone (`prefill`) or of a few (`score`): one pass of the Decoder gives
all of them, and stage `package` of `recipe verify` holds the two to 90 dB of each other. An .aimodel is run itself, by
Apple's runtime: its float32 twin, because float16's products take minutes on Linux.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from coreai_recipes.bundle.adapting import hold_adapters, hold_unmerged
from coreai_recipes.bundle.opened import Bundle
from coreai_recipes.bundle.origin import Held, hold_origin
from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.recipe import Recipe
from coreai_recipes.scoring.texts import Text, cut_texts
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer

if TYPE_CHECKING:
    from coreai_recipes.decoder.low_rank import Pair
    from coreai_recipes.verification.loss import Loss

WINDOW = 512  # tokens
WIDEST_LOGITS = 1 << 27  # numbers: half a gigabyte, and transformers' as many
BY_DECODER = "our Decoder in float32 with the package's weights"
BY_RUNTIME = "Apple's runtime on the asset's float32 twin"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scored:
    """A text and what was lost on it; `text` is None for all of them together."""

    text: Text | None
    loss: "Loss"

    @property
    def name(self) -> str:
        return "all" if self.text is None else self.text.name

    def row(self) -> tuple[str, ...]:
        loss = self.loss
        cells: list[str] = [self.name, f"{loss.positions:,}", f"{loss.perplexity:.4g}"]
        if loss.kl is not None and loss.their_perplexity is not None and loss.largest_kl is not None:
            cells += [f"{loss.their_perplexity:.4g}", f"{loss.kl:.4g}", f"{loss.largest_kl:.3g}"]
            cells.append(f"{100 * (loss.top_1 or 0):.1f} %")
        return tuple(cells)

    def to_json(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"text": self.name}
        if self.text is not None:
            facts |= {"tokens": self.text.tokens, "windows": len(self.text.windows), "note": self.text.note}
        return {**facts, **self.loss.to_json("package")}


@dataclass(frozen=True)
class Evaluated:
    """The texts of one bundle, computed `by` what that says. `why_alone` is why there is no KL divergence, None where
    there is one."""

    path: str
    window: int
    context: int
    weights: dict[str, Any]
    texts: tuple[Scored, ...]
    why_alone: str | None
    verified: bool
    by: str
    adapter: str | None = None

    @property
    def whole(self) -> Scored:
        loss = self.texts[0].loss
        for each in self.texts[1:]:
            loss = loss.merged(each.loss)
        return Scored(None, loss)

    def columns(self) -> tuple[str, ...]:
        alone = ("text", ">positions", ">perplexity")
        return alone if self.why_alone else (*alone, ">transformers'", ">KL, nats", ">largest", ">top-1")

    def rows(self) -> list[tuple[str, ...]]:
        shown = [*self.texts, self.whole] if len(self.texts) > 1 else list(self.texts)
        return [each.row() for each in shown]

    def lines(self) -> list[str]:
        """What the figures are of, a sentence each."""
        windows = sum(len(each.text.windows) for each in self.texts if each.text is not None)
        found = [f"{each.name}: {each.text.note}" for each in self.texts if each.text is not None and each.text.note]
        found.append(
            f"by {self.by}, in {windows} window{'' if windows == 1 else 's'} of at most {self.window} tokens (context "
            f"{self.context}), each from an empty state"
        )
        found += [f"with the adapter {self.adapter}"] if self.adapter else []
        found += [f"perplexity only: {self.why_alone}"] if self.why_alone else []
        found += [] if self.verified else ["not verified: `recipe verify` holds the package to these weights"]
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "by": self.by,
            "window": self.window,
            "context": self.context,
            **({"adapter": self.adapter} if self.adapter else {}),
            "weights": self.weights,
            "verified": self.verified,
            "compared_with": None if self.why_alone else "transformers in float32, with the checkpoint's weights",
            "why_not_compared": self.why_alone,
            "texts": [each.to_json() for each in self.texts],
            "all": self.whole.to_json(),
        }


def evaluate(
    bundle: Bundle,
    texts: Sequence[tuple[str, str]],
    checkpoint: str | None = None,
    window: int | None = None,
    progress: Progress | None = None,
    adapters: Mapping[str, str] | None = None,
) -> Evaluated:
    """`texts` by name, in windows of `window` tokens (512, or the context where that is shorter). `adapters` says by
    name where those lie that the bundle was built with: with one that is not merged, that one is in force.

    Raises UserError where a text cannot be evaluated, and where the bundle was modified since it was built or the
    checkpoint is another than the one that it was built from.
    """
    bundle.check_files()
    bundle.check_package()
    recipe = bundle.recipe
    if not (bundle.path / "tokenizer.json").is_file():
        raise BundleError(f"{bundle.path}: has no tokenizer.json, so it cannot read text")
    size = choose_window(recipe, window)
    cut = cut_texts(texts, BundleTokenizer(bundle.path), recipe.model.vocab_size, size)
    held = _reference(bundle, checkpoint, adapters)
    used = [each.name for each in recipe.unmerged if each.name in (adapters or {})]
    if len(used) > 1:
        raise UserError(f"--adapter: {' and '.join(used)} are evaluated one at a time: give one of them")
    held, factors = _unmerged(bundle, held, adapters, used[0]) if used else (held, None)
    from coreai_recipes.decoder.model import count_parameters
    from coreai_recipes.verification.loss import (
        call_of,
        logits_of_asset,
        logits_of_decoder,
        logits_of_reference,
        measure_loss,
    )
    from coreai_recipes.verification.packaged import packaged_decoder
    from coreai_recipes.verification.run import threads_for

    done, total = 0, sum(len(text.windows) for text in cut)

    def note() -> None:
        nonlocal done
        done += 1
        held.check()
        if progress is not None:
            progress("windows", done, total)

    by = BY_DECODER
    with threads_for(4 * count_parameters(recipe)):
        if bundle.described.package_format == "coreai":
            ours = logits_of_asset(recipe, bundle.package)
            name, count = call_of(recipe)
            by = f"{BY_RUNTIME}, {count} token{'' if count == 1 else 's'} a call of {name}"
        else:
            ours = logits_of_decoder(recipe, packaged_decoder(recipe, bundle.package), low_rank=factors)
        theirs = None if held.source is None else logits_of_reference(recipe, held.source)
        scored = tuple(Scored(text, measure_loss(text.windows, ours, theirs, note)) for text in cut)
    held.finish()
    verified = bool(bundle.report.get("passed"))
    weights, adapter = _weights(recipe), used[0] if used else None
    context = recipe.export.context
    return Evaluated(str(bundle.path), size, context, weights, scored, held.reason, verified, by, adapter)


def choose_window(recipe: Recipe, asked: int | None) -> int:
    """How many tokens a window has. Raises UserError for more than the context."""
    context = recipe.export.context
    if asked is not None and asked > context:
        raise UserError(f"--window {asked}: the bundle's context is {context}, so use at most that many")
    return asked or min(WINDOW, context, max(2, WIDEST_LOGITS // recipe.model.vocab_size))


def _reference(bundle: Bundle, checkpoint: str | None, adapters: Mapping[str, str] | None) -> Held:
    if bundle.recipe.reference is None:
        return Held(reason="the recipe has no reference")
    origin, name = bundle.described.checkpoint, bundle.described.name
    named = bundle.recipe.reference.checkpoint
    held = hold_origin(origin, name, checkpoint, named, "--checkpoint SRC", bundle.path)
    return hold_adapters(held, bundle.recipe, name, origin.adapters, adapters)


def _unmerged(
    bundle: Bundle, held: Held, adapters: Mapping[str, str] | None, name: str
) -> "tuple[Held, dict[str, Pair]]":
    """The checkpoint with an adapter that is not merged, and what that adds to each matrix, as it is stored."""
    from coreai_recipes.decoder.filling import low_rank_factors
    from coreai_recipes.decoder.low_rank import as_stored

    if held.source is None:
        raise UserError(f"--adapter {name}: {held.reason}")
    recipe, origin, given = bundle.recipe, bundle.described.checkpoint, {name: (adapters or {})[name]}
    alone = recipe.model_copy(update={"adapters": [each for each in recipe.adapters or () if each.name == name]})
    of_name = [each for each in origin.adapters or () if each.name == name]
    (adapter,) = hold_unmerged(held, alone, bundle.described.name, of_name, given)[0].values()
    return replace(held, source=adapter.merged), as_stored(low_rank_factors(recipe, held.source, adapter))


def _weights(recipe: Recipe) -> dict[str, Any]:
    from coreai_recipes.decoder.stacks import build_stacks
    from coreai_recipes.storage.parameters import stored_parameters

    return stored_parameters(build_stacks(recipe)).to_json()
