"""What the tests of generate share: tokenizers, and a model of a few lines with the caches of a real package."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from coreai_recipes.generate import LanguageModel
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.manifest.reading import typed
from coreai_recipes.manifest.schema import FORMAT, Manifest
from coreai_recipes.running.program import SavedProgram
from coreai_recipes.running.session import Session
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer

VOCAB = 97
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Think = Callable[[Sequence[Sequence[int | None]]], Tensor]


def hashed_logits(seen: Sequence[Sequence[int | None]]) -> Tensor:
    """Logits that any other sequence of seen tokens would change."""
    generator = torch.Generator().manual_seed(hash(tuple(map(tuple, seen))) % 2**31)
    return torch.rand(VOCAB, generator=generator)


class FakeRuntime(SavedProgram):
    """Attends over its caches and hashes what it sees; `caches` are (rows, window or None), as docs/bundle.md has them.

    Each call is held against the package's contract and kept in `calls` as (function, position, count). At the call
    `interrupt_at` it is interrupted when the first cache is written and the others are not.
    """

    def __init__(
        self, caches: Sequence[tuple[int, int | None]], context: int, chunk: int, think: Think = hashed_logits
    ) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # nothing is behind it
        self.caches, self.context, self.chunk, self.think = caches, context, chunk, think
        self.calls: list[tuple[str, int, int]] = []
        self.resets = 0
        self.interrupt_at: int | None = None
        self._rows = self._empty()

    def _empty(self) -> list[list[int | None]]:
        return [[None] * rows for rows, _ in self.caches]

    def reset(self) -> None:
        self.resets += 1
        self._rows = self._empty()

    def call(self, function: str, inputs: Mapping[str, Tensor], watch: Any = None) -> dict[str, Tensor]:
        query = {"decode": 1, "prefill": self.chunk}[function]
        assert inputs.keys() == {"input_ids", "position"} | ({"count"} if function == "prefill" else set())
        assert all(value.dtype == torch.int32 for value in inputs.values())
        assert inputs["input_ids"].shape == (1, query)
        position = int(inputs["position"])
        count = int(inputs.get("count", torch.tensor([1])))
        assert position >= 0
        assert 1 <= count <= query
        assert position + count <= self.context
        self.calls.append((function, position, count))
        ids = inputs["input_ids"][0].tolist()
        assert ids[count:] == [0] * (query - count)
        seen = []
        for (rows, window), held in zip(self.caches, self._rows, strict=True):
            last = position + count - 1
            first = 0 if window is None else max(0, last - window + 1)
            seen.append([held[p % rows] if p < position else ids[p - position] for p in range(first, last + 1)])
        for (rows, window), held in zip(self.caches, self._rows, strict=True):
            for offset in range(query if window is None else count):  # a ring takes no padding
                held[(position + offset) % rows] = ids[offset]
            if len(self.calls) - 1 == self.interrupt_at:
                raise KeyboardInterrupt
        logits = self.think(seen)
        padding = torch.full((Pieces(len(logits)).columns - len(logits),), 1e3)  # the highest: nobody may look at it
        return {"logits": torch.cat((logits, padding)).reshape(1, 1, -1)}


def expected_seen(token_ids: Sequence[int], caches: Sequence[tuple[int, int | None]]) -> list[list[int]]:
    """What each cache must show to the last token of a sequence."""
    return [list(token_ids if window is None else token_ids[-window:]) for _, window in caches]


def fake_manifest(caches: Sequence[tuple[int, int | None]], context: int, chunk: int, vocab: int = VOCAB) -> Manifest:
    pieces = Pieces(vocab)
    one, logits = {"dtype": "int32", "shape": [1]}, {"dtype": "float16", "shape": [1, pieces.count, pieces.columns]}
    functions = {
        name: {
            "query": query,
            "inputs": {
                "input_ids": {"dtype": "int32", "shape": [1, query]},
                "position": one,
                **({"count": one} if name == "prefill" else {}),
            },
            "outputs": {"logits": logits},
        }
        for name, query in {"decode": 1, "prefill": chunk}.items()
        if name == "decode" or chunk > 1
    }
    states = {
        f"kv_{index}": {
            "dtype": "float16",
            "shape": [2, 1, rows, 8],
            "role": "kv",
            "kinds": {f"kind_{index}": {"first": 0, "count": 1, "rows": rows, "window": window}},
        }
        for index, (rows, window) in enumerate(caches)
    }
    sealed = {"bytes": 1, "sha256": "0" * 64}
    return typed(
        Manifest,
        {
            "format": FORMAT,
            "name": "fake",
            "recipe_sha256": sealed["sha256"],
            "checkpoint": {"source": "fake", "sha256": {}},
            "versions": {},
            "context": context,
            "vocab_size": vocab,
            "logits": {"pieces": pieces.count, "columns": pieces.columns},
            "packages": [{"file": "model.mlpackage", "role": "all", "layers": [0, 1], "functions": functions}],
            "states": states,
            "eos_token_ids": [],
            "files": {"recipe.yaml": sealed, "model.mlpackage/Manifest.json": sealed},
        },
        "fake",
    )


def fake_session(
    caches: Sequence[tuple[int, int | None]], context: int = 64, chunk: int = 4, think: Think = hashed_logits
) -> tuple[Session, FakeRuntime]:
    runtime = FakeRuntime(caches, context, chunk, think)
    return Session(runtime, fake_manifest(caches, context, chunk)), runtime


def byte_level_tokenizer() -> Tokenizer:
    """As GPT-2's, Llama 3's and Qwen's are made: bytes, so that a character may be several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["In the beginning God created the heaven and the earth."] * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """As Llama 2's and Gemma's are made: words with a mark for the space, and a token for each byte."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "a", "b", "é", "▁a", "▁the", ".", ",", "你"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    tokenizer = byte_fallback_tokenizer()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def write_tokenizer(
    folder: Path, chat_template: Any = CHATML, tokenizer: Tokenizer | None = None, **config: Any
) -> Path:
    """tokenizer.json and tokenizer_config.json in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level_tokenizer()).save(str(folder / "tokenizer.json"))
    document = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        **({} if chat_template is None else {"chat_template": chat_template}),
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(document))
    return folder


def scripted_model(
    folder: Path, script: str, *, context: int = 512, chunk: int = 16, eos: bool = True, chat_template: Any = CHATML
) -> tuple[LanguageModel, FakeRuntime]:
    """A model that says `script` (each token at most once) and then an end token, after any token that is not in it."""
    tokenizer = BundleTokenizer(write_tokenizer(folder, chat_template))
    backend = byte_level_tokenizer()
    said = [*backend.encode(script).ids, backend.token_to_id("<|im_end|>")]
    assert len(set(said)) == len(said)
    following = dict(pairwise(said))
    vocab = backend.get_vocab_size()

    def think(seen: Sequence[Sequence[int | None]]) -> Tensor:
        logits = torch.zeros(vocab)
        logits[following.get(seen[0][-1] or 0, said[0])] = 1
        return logits

    caches = [(context + chunk, None)]
    runtime = FakeRuntime(caches, context, chunk, think)
    session = Session(runtime, fake_manifest(caches, context, chunk, vocab))
    return LanguageModel(folder, tokenizer, session, frozenset(said[-1:] if eos else []), vocab), runtime
