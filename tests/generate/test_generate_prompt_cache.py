"""A session's states in a file: what was read once is not read again, and no other file does harm."""

import json
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]


def test_a_later_run_goes_on_from_the_file_and_a_broken_one_is_a_sentence(
    run: Run, tiny_bundle: Path, gemma4_tiny_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "kept"
    ask = ("run", tiny_bundle, "In the beginning there was", "--max-tokens", 4, "--prompt-cache", file)
    fresh = run(*ask)
    assert run(*ask)[:2] == fresh[:2]
    whole = file.read_bytes()
    header = json.loads(whole.split(b"\n")[1])
    assert len(header["tokens"]) > 3
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]  # nothing unfinished
    other = run("run", gemma4_tiny_bundle, "In the", "--max-tokens", 1, "--prompt-cache", file)
    assert (other[0], other[2].splitlines()[-1]) == (
        2,
        f"{file}: belongs to another bundle; use another name, or remove it",
    )
    for content, said in (
        (b"", "is not a prompt cache; use another name"),
        (whole[:-1], "is damaged; remove it"),
        (whole[:-40] + b"x" + whole[-39:], "is damaged; remove it"),
        (whole.replace(b'"written": ', b'"written": 9999', 1), "is damaged; remove it"),
        (whole[:22] + b"[" * 100000 + b"\n", "is damaged; remove it"),
    ):
        file.write_bytes(content)
        status, _, err = run(*ask)
        assert (status, err.splitlines()[-1]) == (2, f"{file}: {said}")
        assert file.read_bytes() == content


def test_what_is_kept_is_not_read_again(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.generate import open_model
    from coreai_recipes.generate.prompt_cache import PromptCache

    bundle = Bundle.open(tiny_bundle)
    first = open_model(bundle.path, bundle.manifest, "evaluator")
    first.session.feed([5, 6, 7, 8])
    PromptCache(tmp_path / "kept", first).save()
    second = open_model(bundle.path, bundle.manifest, "evaluator")
    PromptCache(tmp_path / "kept", second).restore()
    assert second.session.token_ids == (5, 6, 7, 8)
    assert second.session.feed([5, 6, 7, 8, 9]).equal(first.session.feed([5, 6, 7, 8, 9]))
