"""A Qwen3 as coreai-models' own exporter writes it for macOS, from a user's checkout, of which nothing is held here.

    python -m bench.children.coreai_models_export CHECKOUT CHECKPOINT ASSET DTYPE

The steps are those of its `export_model` without compression and without the tokenizer's files: the weights are read
layer by layer and mapped from disk, the model is exported and optimized, the asset is saved. DTYPE is one of torch's,
`float16` by its default. Two things are left out: what only its compression imports, and the download. Its last step is
a call of `AIProgram.optimize`, which the coreai-core that it pins has; coreai-torch 0.4.3 optimizes what it converts,
and there is nothing to call.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

PACKAGE = "coreai_models.export"


def enter(checkout: Path) -> None:
    """Make the checkout's modules importable. `coreai_models.export` is entered past its `__init__`, which imports
    coreai-opt: only compression calls it."""
    source = checkout / "python/src"
    sys.path.insert(0, str(source))
    package = ModuleType(PACKAGE)
    package.__path__ = [str(source / PACKAGE.replace(".", "/"))]
    sys.modules[PACKAGE] = package


def export(checkpoint: Path, asset: Path, dtype: str) -> None:
    """Write the asset, its weights of that dtype."""
    import torch
    from coreai.authoring import AIProgram
    from coreai_models.export.macos import export_macos_model  # type: ignore[import-not-found]
    from coreai_models.models import base  # type: ignore[import-not-found]
    from coreai_models.models.macos.qwen3 import Qwen3ForCausalLM  # type: ignore[import-not-found]

    base.snapshot_download = _keep_folder
    if not hasattr(AIProgram, "optimize"):
        AIProgram.optimize = _keep_program
    with TemporaryDirectory(dir=asset.parent) as mapped:
        model = Qwen3ForCausalLM.from_hf_memory_efficient(
            str(checkpoint), target_dtype=getattr(torch, dtype), mmap_path=mapped
        )
        program = export_macos_model(model.eval(), model.config, SimpleNamespace(max_context_length=None))
        del model
        program.save_asset(asset)


def _keep_folder(folder: str, **_: Any) -> str:
    return folder


def _keep_program(program: Any) -> None:
    pass


def main(checkout: Path, checkpoint: Path, asset: Path, dtype: str) -> None:
    enter(checkout)
    export(checkpoint, asset, dtype)
    print(json.dumps({"bytes": sum(file.stat().st_size for file in asset.rglob("*") if file.is_file())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
