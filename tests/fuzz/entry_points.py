"""What the fuzzer calls, by name: each takes a folder of its own and an input, and raises UserError at most."""

from pathlib import Path
from typing import Any

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is <|im_end|> for?"}]


def warm_up() -> None:
    """Import what the entry points do, so that no example pays for it."""
    import bundles
    import torch

    from coreai_recipes.decoder.filling import bind_weights  # noqa: F401
    from coreai_recipes.planning.authoring import new_recipe
    from coreai_recipes.planning.plan import make_plan
    from coreai_recipes.recipe import load_recipe
    from coreai_recipes.tokenizer.template import ChatTemplate  # noqa: F401

    torch.set_num_threads(1)
    make_plan(load_recipe("tiny-llama")).to_json()
    new_recipe(TINY)
    bundles.warm_up()


def recipe(folder: Path, text: bytes) -> None:
    """`recipe validate`, `show` and `plan` of a file."""
    from coreai_recipes.planning.plan import make_plan
    from coreai_recipes.recipe import load_resolved
    from coreai_recipes.recipe.importing import check_reference
    from coreai_recipes.recipe.yaml_writer import write_yaml
    from coreai_recipes.report.plan import print_costs, print_products
    from coreai_recipes.report.rules import print_lint

    path = folder / "recipe.yaml"
    path.write_bytes(text)
    resolved = load_resolved(path)
    write_yaml(resolved.data)
    check_reference(resolved)
    planned = make_plan(resolved.recipe)
    print_costs(planned.to_json()), print_products(planned.to_json()), print_lint(planned.lint.to_json())


def override(folder: Path, words: str) -> None:
    """`recipe plan tiny-llama --set KEY=VALUE`."""
    from coreai_recipes.planning.plan import make_plan
    from coreai_recipes.recipe import load_recipe

    make_plan(load_recipe("tiny-llama", [words])).to_json()


def config(folder: Path, text: bytes) -> None:
    """`recipe new` and `recipe diff` of a folder that holds a config.json alone."""
    from coreai_recipes.planning.authoring import compare, new_recipe

    (folder / "config.json").write_bytes(text)
    made = new_recipe(folder)
    recipe(folder, made.text.encode())
    compare("tiny-llama", str(folder))


def safetensors(folder: Path, content: bytes) -> None:
    """`recipe new`, `recipe validate --checkpoint` and reading, of a model.safetensors beside a good config.json."""
    (folder / "config.json").write_bytes((TINY / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(content)
    _read(folder)


def index(folder: Path, content: bytes) -> None:
    """The same of an index of shards."""
    (folder / "config.json").write_bytes((TINY / "config.json").read_bytes())
    (folder / "model.safetensors.index.json").write_bytes(content)
    (folder / "model-00001-of-00001.safetensors").write_bytes((TINY / "model.safetensors").read_bytes())
    _read(folder)


def gguf(folder: Path, content: bytes) -> None:
    """The same of a GGUF file."""
    path = folder / "model.gguf"
    path.write_bytes(content)
    _read(path)


def _read(path: Path) -> None:
    from coreai_recipes.checkpoint.open import open_checkpoint
    from coreai_recipes.planning.authoring import new_recipe

    checkpoint = open_checkpoint(path)
    checkpoint.eos_token_ids()
    for name in list(checkpoint.tensors)[:2]:
        if checkpoint.why_unreadable(name) is None:
            for block in checkpoint.blocks(name):
                block.sum()
    new_recipe(path)


def template(folder: Path, source: str) -> None:
    """A chat template, compiled and rendered."""
    from coreai_recipes.tokenizer.template import ChatTemplate

    ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, "the bundle").render(PROMPT)


def bundle(folder: Path, given: Any) -> None:
    """A bundle with something changed in it: see bundles.py."""
    import bundles

    bundles.attempt(folder, given)


# What a fault looks like, so that a test sees that each is seen.


def raises(folder: Path, given: None) -> None:
    1 / 0  # noqa: B018


def is_slow(folder: Path, given: None) -> None:
    while True:
        pass


def is_large(folder: Path, given: None) -> None:
    bytearray(b"x") * (1100 << 20)


def dies(folder: Path, given: None) -> None:
    import os

    os._exit(3)
