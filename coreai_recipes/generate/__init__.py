"""Asks a built bundle: tokenizer and chat template, the cached session, sampling, and text as it is made.

    model = open_model(bundle.path, bundle.manifest)
    for piece in (reply := answer(model, "What is the capital of France?")):
        print(piece, end="")

Nothing is imported before it is asked for: torch alone takes a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coreai_recipes.generate.answering import Answer, answer
    from coreai_recipes.generate.chat import Chat
    from coreai_recipes.generate.language_model import LanguageModel, open_model, open_models
    from coreai_recipes.generate.sampling import Sampler

_HOMES = {
    "Answer": "answering",
    "Chat": "chat",
    "LanguageModel": "language_model",
    "Sampler": "sampling",
    "answer": "answering",
    "open_model": "language_model",
    "open_models": "language_model",
}

__all__ = ["Answer", "Chat", "LanguageModel", "Sampler", "answer", "open_model", "open_models"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
