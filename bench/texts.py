"""The texts that SmolLM2's loss is measured on, to which nothing is fitted: a licence, and a part of a Bible.

Neither lies in the repository: every Debian has the first, and its package bible-kjv (public domain) prints the second,
two lines about itself before it.
"""

import shutil
import subprocess
from pathlib import Path

from bench.child import ChildError

LICENCE = Path("/usr/share/common-licenses/GPL-3")
CHAPTERS = "gen1:1-gen9:29"
COMMAND = f"echo {CHAPTERS} | bible -f"
NAMES = ("GPL-3", "Genesis 1-9")
SAID = ("the GPL-3", f"what `{COMMAND}` prints")


def write_texts(folder: Path, licence: Path | None, genesis: Path | None) -> list[Path]:
    """Both in `folder`, from the files given or else from Debian's. Raises ChildError where they are not there."""
    found = licence or LICENCE
    if not found.is_file():
        raise ChildError(f"{found}: is not there; give the GNU GPL version 3 with --licence FILE")
    if genesis is None and shutil.which("bible") is None:
        raise ChildError(
            f"the command `bible` is not there: apt-get install bible-kjv, or give what `{COMMAND}` prints with "
            "--genesis FILE"
        )
    if genesis is not None and not genesis.is_file():
        raise ChildError(f"{genesis}: is not there")
    paths = [folder / "licence.txt", folder / "genesis.txt"]
    paths[0].write_bytes(found.read_bytes())
    if genesis is None:
        done = subprocess.run(["bible", "-f"], input=f"{CHAPTERS}\n".encode(), capture_output=True, check=True)
        paths[1].write_bytes(done.stdout)
    else:
        paths[1].write_bytes(genesis.read_bytes())
    return paths
