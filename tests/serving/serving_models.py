"""Servers for tests: over models of a few lines, in this process or in one of its own (`python serving_models.py`)."""

import json
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fake_bundle import CHATML, FakeRuntime, byte_level_tokenizer, fake_manifest, write_tokenizer
from torch import Tensor

from coreai_recipes.generate import LanguageModel
from coreai_recipes.running.session import Session
from coreai_recipes.serving.server import Settings, listen, make_server, serve
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer

CONTEXT, CHUNK = 512, 16


class Gated(FakeRuntime):
    """Its calls wait for `gate`; `called` is set by each."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.gate, self.called = threading.Event(), threading.Event()
        self.gate.set()

    states = None  # as Core ML's, which are not shown

    def call(self, function: str, inputs: Mapping[str, Tensor], watch: Any = None) -> dict[str, Tensor]:
        self.called.set()
        assert self.gate.wait(60)
        return super().call(function, inputs, watch)


def reading_model(
    folder: Path, script: str | None = None, chat_template: Any = CHATML, tokenizer: Any = None
) -> tuple[LanguageModel, Gated]:
    """A model that says `script` to every conversation; without one, what a hash of all that it has read says."""
    tokenizer = tokenizer or byte_level_tokenizer()
    opened = BundleTokenizer(write_tokenizer(folder, chat_template, tokenizer))
    start, end, vocab = (*map(tokenizer.token_to_id, ("<|im_start|>", "<|im_end|>")), tokenizer.get_vocab_size())
    said = None if script is None else [*tokenizer.encode(script).ids, end]
    head = len(tokenizer.encode("<|im_start|>assistant\n").ids)

    def think(seen: Sequence[Sequence[int | None]]) -> Tensor:
        read = list(seen[0])
        logits = torch.zeros(vocab)
        if said is None:
            logits[3 + hash(tuple(read)) % (vocab - 3)] = 1
        else:
            begun = len(read) - read[::-1].index(start) - 1 + head
            logits[said[min(len(read) - begun, len(said) - 1)]] = 1  # or a prompt's chunk, of which nobody asks
        return logits

    runtime = Gated([(CONTEXT + CHUNK, None)], CONTEXT, CHUNK, think)
    session = Session(runtime, fake_manifest([(CONTEXT + CHUNK, None)], CONTEXT, CHUNK, vocab))
    return LanguageModel(folder, opened, session, frozenset([end]), vocab), runtime


@contextmanager
def served(models: Mapping[str, LanguageModel], settings: Settings | None = None, **given: Any) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    settings = settings or Settings(**given)
    listener = listen("127.0.0.1", 0, settings.key)
    is_ready = threading.Event()
    server, api = make_server(models, settings, is_ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert is_ready.wait(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        api.close()
        listener.close()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, listen("127.0.0.1", 0, None) as listener:
        model, _ = reading_model(Path(folder))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serve({"read": model}, listener, Settings(), lambda: print(json.dumps(url), flush=True))
        sys.exit()
