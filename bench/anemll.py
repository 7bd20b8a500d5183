"""ANEMLL's converter, run in a user's checkout of it: the packages that it makes of a checkpoint, by its own names.

Nothing of it is held here: https://github.com/Anemll/Anemll, MIT. Its packages are saved, not compiled, so Linux does.
"""

from collections.abc import Iterator
from pathlib import Path

from bench import child

CONVERTER = "anemll.ane_converter.llama_converter"
# its parts: the table; the layers for one token, and for a prompt; the head
PARTS = {"1": "embeddings", "2": "decode", "2_prefill": "prefill", "3": "head"}
ENVIRONMENTS = (".venv", "env-anemll")  # where its installers put one


def convert(checkout: Path, checkpoint: Path, folder: Path, context: int, prefill: int) -> Iterator[tuple[str, Path]]:
    """Each part's name and package, made one after the other, without palettes and in one chunk.

    `checkpoint` is a folder of a Llama. Raises ChildError with what the converter said last.
    """
    pythons = [checkout / name / "bin/python" for name in ENVIRONMENTS]
    python = next((str(path) for path in pythons if path.exists()), child.PYTHON)
    for part, name in PARTS.items():
        out = folder / name
        command = [python, "-m", CONVERTER, "--part", part, "--chunk", "1", "--model", str(checkpoint.resolve())]
        command += ["--context-length", str(context), "--batch-size", str(prefill), "--output", str(out)]
        child.run(command, result=False, cwd=checkout)
        packages = sorted(out.glob("*.mlpackage"))
        if len(packages) != 1:
            raise child.ChildError(f"{' '.join(command)}: wrote {len(packages)} packages into {out}")
        yield name, packages[0]
