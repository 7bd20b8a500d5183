"""A bundle that is ready to answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.errors import UserError
from coreai_recipes.running.speculation import Round

if TYPE_CHECKING:
    from torch import Tensor

    from coreai_recipes.generate.sampling import Sampler
    from coreai_recipes.running.session import Session
    from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer


@dataclass(frozen=True)
class LanguageModel:
    """`path` is the bundle's; answers share the session, and with it the prefix that they have in common.

    `adapter` is the one of the bundle's that is in force, or None. Models of one package take turns: `first` is the one
    with which the others share it.
    """

    path: Path
    tokenizer: "BundleTokenizer"
    session: "Session"
    eos_token_ids: frozenset[int]
    vocab_size: int
    adapter: str | None = None
    first: "LanguageModel | None" = None

    def continue_text(
        self, token_ids: Sequence[int], max_tokens: int, sampler: "Sampler", speculates: bool = False
    ) -> Iterator[Round]:
        """What follows `token_ids`, in rounds of one token, or of several where the draft's were accepted.

        One by one it goes on for as long as it is asked to and the context holds.
        """

        text = list(token_ids)  # a draft's tokens are picked in order too, and each that is picked is kept

        def pick(choice: "Tensor") -> int:
            token = sampler.pick(choice, text)
            text.append(token)
            if token >= self.vocab_size:
                raise UserError(
                    f"{self.path}: the package returned the token {token} of {self.vocab_size}: its logits are NaN; "
                    "`recipe verify BUNDLE` names the tensor that overflows"
                )
            return token

        if speculates:
            yield from self.session.speculate(token_ids, max_tokens, pick)
            return
        while True:
            yield Round((), 0, (pick(self.session.feed(text)),))

    def check_sampler(self, sampler: "Sampler") -> None:
        """Raise UserError when there is something to be sampled from what gives no logits."""
        if (asked := sampler.settings.asked) and not self.session.gives_logits:
            raise UserError(
                f"{self.path}: its package returns the best token instead of logits, so it cannot sample: leave out "
                f"{', '.join(asked)}, or build with --set export.outputs=logits"
            )

    def check_draft(self) -> None:
        """Raise UserError when the bundle has no draft."""
        if not self.session.has_draft:
            raise UserError(f"{self.path}: has no draft model: build it with --draft SRC, or leave out --draft")

    def check_prompt(self, token_ids: Sequence[int]) -> None:
        """Raise UserError for a prompt that cannot be answered: empty, too long, or with tokens of another model."""
        context = self.session.context
        if not token_ids:
            raise UserError("the prompt is empty: give some text")
        if len(token_ids) > context:
            enough = 1 << (len(token_ids) - 1).bit_length()
            raise UserError(
                f"the prompt has {len(token_ids)} tokens, but the bundle's context is {context}: "
                f"shorten it, or build with --set export.context={enough}"
            )
        if (highest := max(token_ids)) >= self.vocab_size:
            raise UserError(
                f"{self.path}: its tokenizer produced token {highest}, but the model has {self.vocab_size} tokens: "
                "the tokenizer belongs to another model"
            )


def open_model(
    bundle_path: Path, manifest: Mapping[str, Any], runtime: str = "auto", adapter: str | None = None
) -> LanguageModel:
    """The bundle's tokenizer and a session on its package, with one of its adapters or none. `runtime` is auto,
    evaluator or coreml.

    Raises UserError when the runtime or the adapter is not there, or a file of the bundle cannot be read.
    """
    return open_models(bundle_path, manifest, runtime, [adapter])[0]


def open_models(
    bundle_path: Path, manifest: Mapping[str, Any], runtime: str, adapters: Sequence[str | None]
) -> list[LanguageModel]:
    """As `open_model` with each of these adapters, over one copy of the package. No session sees another's states."""
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.running.program import open_programs
    from coreai_recipes.running.session import Session
    from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer

    bundle = Bundle(bundle_path, dict(manifest), {})
    bundle.check_package()
    tokenizer = BundleTokenizer(bundle_path)
    described = bundle.described
    units, ends = bundle.recipe.export.compute_units, frozenset(described.eos_token_ids)
    found: list[LanguageModel] = []
    programs = open_programs(bundle_path, described, runtime, units, adapters)
    for adapter, program in zip(adapters, programs, strict=True):
        session, first = Session(program, described), found[0] if found else None
        found.append(LanguageModel(bundle_path, tokenizer, session, ends, described.vocab_size, adapter, first))
    return found
