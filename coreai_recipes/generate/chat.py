"""A conversation, whose cached beginning is read once."""

from coreai_recipes.generate.answering import Answer, check_system, system_messages
from coreai_recipes.generate.model import Model
from coreai_recipes.generate.sampling import Sampler


class Chat:
    """`messages` is the history. A turn enters it when its answer ends; one that was interrupted, with what it had.

    `template` names one of several chat templates. Raises UserError for `system` where the tokenizer has no chat
    template, and for a template that must be named or is not there.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        sampler: Sampler | None = None,
        max_tokens: int = 512,
        template: str | None = None,
    ) -> None:
        model.tokenizer.check_template(template)
        check_system(model, system)
        self.messages: list[dict[str, str]] = system_messages(system)
        self._model = model
        self._template = template
        self._sampler = sampler or Sampler()
        self._max_tokens = max_tokens
        self._latest: Answer | None = None

    def reply(self, line: str) -> Answer:
        """The answer to `line`, made as it is iterated; an earlier one that is not finished is left as it is.

        Raises UserError when the conversation no longer fits the context; the history is then as it was.
        """
        if self._latest is not None:
            self._latest.close()
        asked = [*self.messages, {"role": "user", "content": line}]

        def remember(answer: Answer) -> None:
            if answer.text or answer.finish_reason != "interrupted":
                self.messages = [*asked, {"role": "assistant", "content": answer.text}]

        prompt_ids = self._model.tokenizer.encode_chat(asked, self._template)
        self._latest = Answer(self._model, prompt_ids, self._max_tokens, self._sampler, on_end=remember)
        return self._latest
