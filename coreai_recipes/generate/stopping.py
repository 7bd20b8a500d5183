"""Texts that end an answer."""

from collections.abc import Sequence

from coreai_recipes.errors import UserError


class Stops:
    """Lets the pieces of an answer through, and holds back what may be the beginning of a text that ends it."""

    def __init__(self, texts: Sequence[str]) -> None:
        if "" in texts:
            raise UserError("--stop: an empty text would end every answer at once")
        self._texts = tuple(texts)
        self._held = ""
        self.found = False
        self.behind = ""
        """Of the piece in which a text was found, that text and what follows it."""

    def add(self, piece: str) -> str:
        """What can be shown, now that `piece` was made; nothing behind a text that was found."""
        if self.found:
            return ""
        text = self._held + piece
        places = [at for at in map(text.find, self._texts) if at >= 0]
        if places:
            self.found, self._held, self.behind = True, "", text[min(places) :]
            return text[: min(places)]
        kept = max((self._begun(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back, once nothing follows."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """How many characters at the end of `text` begin `stop`."""
        return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
