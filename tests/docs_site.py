"""The documentation as a site: README.md is its front page, and every link leads to a page of it. `make docs`.

On GitHub pages link each other by paths in the repository. `assemble` lays the same pages side by side for the site's
generator, with their links led there; nothing is written twice. `problems` holds every link and anchor, in both places.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
OUTSIDE = {  # pages that lie elsewhere than in docs/, and their names in the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "examples/gemma4-tiny/README.md": "gemma4-tiny.md",
}
FILES = (".png", ".svg", ".json", ".html")  # what a page may show or lead to beside pages
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def pages(root: Path = REPOSITORY) -> dict[str, str]:
    """Every page by its path in the repository, with its path in the site."""
    inside = {path.relative_to(root).as_posix(): path.name for path in sorted((root / "docs").glob("*.md"))}
    return OUTSIDE | inside


def links(text: str) -> Iterator[str]:
    """Where a page's links and pictures lead, other sites apart."""
    prose = _CODE.sub("``", _FENCE.sub("", text))
    return (target for _, target, _ in _LINK.findall(prose) if "://" not in target)


@cache
def anchors(text: str) -> set[str]:
    """The headings of a page that GitHub and the site's generator both lead to by the same word."""
    headings = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading) for heading in _HEADING.findall(_FENCE.sub("", text))]
    words = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", word) for word in words} & {re.sub(r"[-\s]+", "-", word) for word in words}


def problems(root: Path = REPOSITORY) -> list[str]:
    """Links that lead nowhere, or out of the site."""
    found = []
    known = pages(root)
    for page in known:
        text = (root / page).read_text()
        for link in links(text):
            target, _, anchor = link.partition("#")
            path = _resolve(page, target, root)
            if path is None or not (root / path).exists():
                found.append(f"{page}: {link}: there is no such file")
            elif path not in known and not path.endswith(FILES):
                found.append(f"{page}: {link}: no page of the site")
            elif anchor and anchor not in anchors((root / path).read_text()):
                found.append(f"{page}: {link}: there is no such heading")
    return found


def assemble(folder: Path, root: Path = REPOSITORY) -> None:
    """The site's pages and the files that they show or lead to, side by side in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    known = pages(root)
    for page, name in known.items():
        text = (root / page).read_text()

        def lead(match: re.Match[str], page: str = page) -> str:
            target, mark, anchor = match[2].partition("#")
            path = None if "://" in target else _resolve(page, target, root)
            if not target or path is None:
                return match[0]
            place = known.get(path, Path(path).name)
            if path not in known and path.endswith(FILES):
                shutil.copy(root / path, folder / place)
            return f"{match[1]}{place}{mark}{anchor}{match[3]}"

        (folder / name).write_text(_LINK.sub(lead, text))


def _resolve(page: str, target: str, root: Path) -> str | None:
    """A link's path in the repository, None when it leads out of it."""
    path = (root / page).parent / target if target else root / page
    path = path.resolve()
    return path.relative_to(root.resolve()).as_posix() if path.is_relative_to(root.resolve()) else None


if __name__ == "__main__":
    if found := problems():
        sys.exit("\n".join(found))
    assemble(Path(sys.argv[1]))
