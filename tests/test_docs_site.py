"""Every link and anchor of README.md and docs/ leads somewhere, on GitHub and in the site."""

from pathlib import Path

from docs_site import OUTSIDE, REPOSITORY, anchors, assemble, links, pages, problems

from coreai_recipes.recipe.yaml_reader import read_yaml


def test_every_link_leads_to_a_page_and_a_heading() -> None:
    assert problems() == []


def test_no_page_has_a_section_twice() -> None:
    """A merge once left half of the README in it twice, and every link of both halves led somewhere."""
    for page in pages():
        sections = [line for line in (REPOSITORY / page).read_text().splitlines() if line.startswith("## ")]
        assert sorted(set(sections)) == sorted(sections), page


def test_what_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for page in OUTSIDE:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).touch()
    (tmp_path / "LICENSE").touch()
    (tmp_path / "README.md").write_text(
        "# Front\n[a](docs/gone.md) [b](docs/there.md#no) [c](LICENSE) [d](docs/there.md#what-it-is) `[e](no.md)`\n"
        "```\n[f](no.md)\n```\n[g](https://example.org/no.md) ![h](../outside.png)\n"
    )
    (tmp_path / "docs/there.md").write_text("# There\n## What `it` is\n[front](../README.md#front)\n")
    assert problems(tmp_path) == [
        "README.md: docs/gone.md: there is no such file",
        "README.md: docs/there.md#no: there is no such heading",
        "README.md: LICENSE: no page of the site",
        "README.md: ../outside.png: there is no such file",
    ]


def test_links_of_the_site_lead_to_its_own_files(tmp_path: Path) -> None:
    assemble(tmp_path / "site")
    for page in (tmp_path / "site").glob("*.md"):
        for link in links(page.read_text()):
            name, _, anchor = link.partition("#")
            target = page.with_name(name) if name else page
            assert target.is_file(), f"{page.name}: {link}"
            assert not anchor or anchor in anchors(target.read_text()), f"{page.name}: {link}"


def test_the_menu_of_the_site_has_every_page() -> None:
    root, _ = read_yaml((REPOSITORY / "mkdocs.yml").read_bytes(), "mkdocs.yml")
    assert root is not None
    sections = [value for entry in root.plain()["nav"] for value in entry.values()]
    entries = [[section] if isinstance(section, str) else section for section in sections]
    shown = [page if isinstance(page, str) else next(iter(page.values())) for entry in entries for page in entry]
    assert sorted(shown) == sorted(pages().values())
