"""A conversation, whose cached beginning is read once."""

from collections.abc import Mapping, Sequence
from typing import Any

from coreai_recipes.generate.answering import Answer, check_system, system_messages
from coreai_recipes.generate.language_model import LanguageModel
from coreai_recipes.generate.sampling import Sampler


class Chat:
    """`messages` is the history. A turn enters it when its answer ends; one that was interrupted, with what it had.

    `template` names one of several chat templates; `draft` lets the bundle's draft guess ahead. Raises UserError for
    a draft that is not there, for `system` where the tokenizer has no chat
    template, and for a template that must be named or is not there.
    """

    def __init__(
        self,
        model: LanguageModel,
        system: str | None = None,
        sampler: Sampler | None = None,
        max_tokens: int = 512,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        stop: Sequence[str] = (),
        draft: bool = False,
    ) -> None:
        model.tokenizer.check_template(template, variables)
        check_system(model, system)
        if draft:
            model.check_draft()
        self.messages: list[dict[str, str]] = system_messages(system)
        self._model = model
        self._template, self._variables, self._stop, self._draft = template, variables, stop, draft
        self._sampler = sampler or Sampler()
        self._max_tokens = max_tokens
        self._latest: Answer | None = None

    def reset(self) -> None:
        """Begin anew; the system message stays."""
        self._leave()
        self.messages = [each for each in self.messages if each["role"] == "system"]

    def set_system(self, text: str | None) -> None:
        """Another system message from the next turn on, or none; what was said stays. Raises as `system` does."""
        check_system(self._model, text)
        self._leave()
        self.messages = [*system_messages(text), *(each for each in self.messages if each["role"] != "system")]

    def _leave(self) -> None:
        """An answer that is not finished is left as it is."""
        if self._latest is not None:
            self._latest.close()

    def reply(self, line: str) -> Answer:
        """The answer to `line`, made as it is iterated; an earlier one that is not finished is left as it is.

        Raises UserError when the conversation no longer fits the context; the history is then as it was.
        """
        self._leave()
        asked = [*self.messages, {"role": "user", "content": line}]

        def remember(answer: Answer) -> None:
            if answer.text or answer.finish_reason != "interrupted":
                self.messages = [*asked, {"role": "assistant", "content": answer.text}]

        prompt_ids = self._model.tokenizer.encode_chat(asked, self._template, self._variables)
        self._latest = Answer(
            self._model, prompt_ids, self._max_tokens, self._sampler, remember, self._draft, self._stop
        )
        return self._latest
