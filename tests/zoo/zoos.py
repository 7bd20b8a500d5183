"""What the tests of zoos share: a zoo.yaml of tiny models, and the figures of a table that no clock decides."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coreai_recipes.zoo.loading import Loaded, load_zoo
from coreai_recipes.zoo.rows import MEASURED

LOOPBACK = "127.0.0.1:0"
# of a cluster: workers that are processes of one task each, and listen here alone
ONE_EACH: dict[str, Any] = {
    "threads_per_worker": 1,
    "processes": True,
    "memory_limit": 0,
    "host": "127.0.0.1",
    "silence_logs": 50,
    "dashboard_address": LOOPBACK,
    "worker_dashboard_address": LOOPBACK,
}
TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"


def write_zoo(folder: Path, text: str, store: str = "./store") -> Path:
    """A zoo.yaml below `folder`, with `CHECKPOINT` for that of tiny-llama."""
    path = folder / "zoo.yaml"
    path.write_text(f"zoo: 1\nstore: {store}\n{text}".replace("CHECKPOINT", str(TINY)))
    return path


def tiny_zoo(folder: Path, bits: str = "[16, 4]") -> Loaded:
    text = f"recipes: [tiny-llama]\ncheckpoints: {{tiny-llama: CHECKPOINT}}\nvary: {{bits: {bits}}}\n"
    return load_zoo(write_zoo(folder, text))


def unclocked(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock or a system measured."""
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]
