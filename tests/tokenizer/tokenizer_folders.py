"""A folder with tiny-llama's tokenizer, and changes to its files."""

import json
from pathlib import Path
from typing import Any

from coreai_recipes.checkpoint.safetensors import SafetensorsCheckpoint
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer

TINY = Path(__file__).parent.parent / "checkpoints" / "tiny-llama"


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <|im_start|> 12 <|endoftext|>"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "  caf\u00e9 cafe\u0301 <|new|>"},
]


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{{ eos_token }}{{ image_token }}"
    "{% endfor %}{{ pad_token is defined }}"
)


TEXTS = [*(message["content"] for message in CHAT), "", " lead", "a1234 b", "It's\n\nthe <|im_start|>end", "\u4f60 x"]


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **plain, **flags}


def edit(path: Path, **changes: Any) -> None:
    """Change the keys of a JSON file that may not be there; None takes a key away."""
    document = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def special_tokens_map(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", bos_token=None, eos_token=None)
    edit(folder / "special_tokens_map.json", bos_token="<|endoftext|>", eos_token={"content": "<|endoftext|>"})


def written(checkpoint: Path, target: Path) -> BundleTokenizer:
    """The tokenizer of a bundle of that checkpoint."""
    target.mkdir()
    SafetensorsCheckpoint(checkpoint).write_tokenizer(target)
    return BundleTokenizer(target)
