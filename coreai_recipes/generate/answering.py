"""An answer, piece by piece as it is made."""

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any, Literal

from coreai_recipes.errors import UserError
from coreai_recipes.generate.language_model import LanguageModel
from coreai_recipes.generate.sampling import Sampler
from coreai_recipes.generate.stopping import Stops

FinishReason = Literal["stop", "length", "interrupted"]


class Answer:
    """Iterating it makes the answer and yields its text; the fields say what was made so far.

    `token_ids` leaves out the end token. `finish_reason` is None until the end: `stop` at an end token or a text of
    `stop`, `length` at max_tokens or at the end of the context, `interrupted` when it was left (Ctrl-C, `close`)
    before. `seconds_to_first_token` counts from the first step of the iteration. With a draft, `rounds` are the
    target's calls after the prompt, in which `accepted` of the `drafted` tokens were kept. Special tokens are no text,
    but for those `shown`.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt_ids: Sequence[int],
        max_tokens: int,
        sampler: Sampler,
        on_end: Callable[["Answer"], None] | None = None,
        speculates: bool = False,
        stop: Sequence[str] = (),
        shown: Collection[str] = (),
    ) -> None:
        if max_tokens < 1:
            raise UserError(f"max_tokens {max_tokens} is below 1")
        model.check_sampler(sampler)
        model.check_prompt(prompt_ids)
        if speculates:
            model.check_draft()
        self.text = ""
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = len(prompt_ids)
        self.seconds_to_first_token: float | None = None
        self._seconds = 0.0
        self._steps = 0  # tokens picked, an end token included
        self._speculates = speculates
        self.drafted = self.accepted = self.rounds = 0
        self._pieces = self._generate(model, list(prompt_ids), max_tokens, sampler, on_end, stop, shown)

    def __iter__(self) -> Generator[str, None, None]:
        return self._pieces

    def close(self) -> None:
        """Make no more of it."""
        self._pieces.close()

    @property
    def tokens_per_second(self) -> float | None:
        """The rate after the first token, whose time is mostly that of the prompt; None when none came after it."""
        if self.seconds_to_first_token is None or self._steps < 2:
            return None
        return (self._steps - 1) / max(self._seconds - self.seconds_to_first_token, 1e-9)

    def to_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "seconds_to_first_token": self.seconds_to_first_token,
            "tokens_per_second": self.tokens_per_second,
            **({"rounds": self.rounds, "drafted": self.drafted, "accepted": self.accepted} if self._speculates else {}),
        }

    def summary(self) -> str:
        """One line: `7 tokens, 12.3 tokens/s, first after 0.8 s, stop`."""
        count = len(self.token_ids)
        parts = [f"{count} token{'' if count == 1 else 's'}"]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.1f} tokens/s")
        if self.seconds_to_first_token is not None:
            parts.append(f"first after {self.seconds_to_first_token:.1f} s")
        if self._speculates and self.rounds:
            parts.append(
                f"{self.accepted / self.rounds:.2f} of {self.drafted / self.rounds:.1f} drafted accepted a round"
            )
        return ", ".join([*parts, self.finish_reason or "unfinished"])

    def _generate(
        self,
        model: LanguageModel,
        prompt_ids: list[int],
        max_tokens: int,
        sampler: Sampler,
        on_end: Callable[["Answer"], None] | None,
        stop: Sequence[str],
        shown: Collection[str],
    ) -> Generator[str, None, None]:
        stream, stops = model.tokenizer.stream(shown), Stops(stop)
        started = time.perf_counter()
        try:
            for found in model.continue_text(prompt_ids, max_tokens, sampler, self._speculates):
                self.rounds += 1 if self._steps else 0
                self.drafted += len(found.drafted)
                self.accepted += found.accepted
                for token in found.tokens:
                    self._steps += 1
                    self._seconds = time.perf_counter() - started
                    if self.seconds_to_first_token is None:
                        self.seconds_to_first_token = self._seconds
                    if token in model.eos_token_ids:
                        self.finish_reason = "stop"
                        break
                    self.token_ids.append(token)
                    if piece := stops.add(stream.add(token)):
                        self.text += piece
                        yield piece
                    if stops.found:
                        self.finish_reason = "stop"
                        break
                    room = model.session.context - len(prompt_ids)
                    if len(self.token_ids) == max_tokens or len(self.token_ids) > room:
                        self.finish_reason = "length"
                        break
                if self.finish_reason is not None:
                    break
            if piece := stops.add(stream.finish()) + stops.finish():
                self.text += piece
                yield piece
        finally:
            self.finish_reason = self.finish_reason or "interrupted"
            if on_end is not None:
                on_end(self)


def answer(
    model: LanguageModel,
    text: str | Sequence[Mapping[str, str]],
    *,
    system: str | None = None,
    raw: bool = False,
    max_tokens: int = 256,
    sampler: Sampler | None = None,
    draft: bool = False,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    stop: Sequence[str] = (),
) -> Answer:
    """The answer to `text`, or to messages with `role` and `content`, made as it is iterated. Greedy without a sampler.

    `raw`, and a tokenizer without a chat template, continue the text itself. `template` names one of several chat
    templates, and `variables` are what it is given. A text of `stop` ends the answer, and is not part of it. `draft`
    lets the bundle's draft guess ahead, which changes the speed and not the text. Raises UserError, before anything
    is made, for a prompt that is empty or too long, for `system` where no chat template can hold it,
    and for a draft that is not there.
    """
    if raw and (template is not None or variables):
        raise UserError("--template and --raw cannot be used together")
    if not raw:
        model.tokenizer.check_template(template, variables)
    check_system(model, system, raw)
    if not isinstance(text, str):
        if raw or not model.tokenizer.has_template:
            raise UserError(
                f"{model.path}: messages need a chat template: {'leave out --raw' if raw else 'it has none'}"
            )
        prompt_ids = model.tokenizer.encode_chat([*system_messages(system), *text], template, variables)
    elif raw or not model.tokenizer.has_template:
        prompt_ids = model.tokenizer.encode(text)
    else:
        asked = [*system_messages(system), {"role": "user", "content": text}]
        prompt_ids = model.tokenizer.encode_chat(asked, template, variables)
    return Answer(model, prompt_ids, max_tokens, sampler or Sampler(), speculates=draft, stop=stop)


def check_system(model: LanguageModel, system: str | None, raw: bool = False) -> None:
    """Raise UserError when there is a system message and no chat template to hold it."""
    if system is None:
        return
    if not model.tokenizer.has_template:
        raise UserError(
            f"{model.path}: --system needs a chat template, and its tokenizer has none: put the text into the prompt"
        )
    if raw:
        raise UserError("--system needs the chat template, which --raw leaves out: use only one of them")


def system_messages(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]
