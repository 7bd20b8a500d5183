"""An asset for Apple's runner of coreai-models against that project's own torch modules, under the runner's own calls.

    python -m bench.coreai_models CHECKOUT

CHECKOUT is a clone of https://github.com/apple/coreai-models, of which nothing is held here. A small random Qwen3
becomes an asset here, and Qwen3ForCausalLMForiOS there: the modules that its exporter traces, in float32, unquantised.
Both are called by `running.coreai_models.Player`, and both are compared with transformers, token after token. The table
goes into docs/hosts.md.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor

from coreai_recipes.checkpoint import open_checkpoint
from coreai_recipes.decoder.filling import bind_stacks
from coreai_recipes.decoder.model import exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.hosts import coreai_models as contract
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.running.coreai_models import Player
from coreai_recipes.targets.coreai.exporter import export_package
from coreai_recipes.verification.figures import psnr

PAGE = Path(__file__).parents[1] / "docs/hosts.md"
BEGIN = "<!-- coreai-models: written by `python -m bench.coreai_models CHECKOUT` -->\n"
END = "<!-- end of coreai-models -->\n"
CONTEXT, PREFILL, PROMPT, STEPS = 128, 16, 37, 12


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout / "python/src"))
    with TemporaryDirectory() as name, torch.no_grad():
        folder, reference = Path(name), random_qwen3(CONTEXT)
        asset = export(reference, folder, {"host": "coreai-models", "functions": {"prefill": PREFILL}})
        modules = _their_modules(reference)
        _hold_names(modules, reference.config, CoreAIProgram(asset))
        lines = ["| least PSNR, dB | against transformers | against their modules |", "|---|---:|---:|"]
        for words, widened in (("the asset's float32 twin", True), ("the asset", False)):
            engine = CoreAIProgram(asset, widened=widened)
            ours, theirs = Player(engine, _settings(reference)), _their_player(modules, engine, reference)
            alone, both, by_them = _compare(reference, ours, theirs)
            lines.append(f"| {words} | {alone:.1f} | {both:.1f} |")
        lines.append(f"| their modules | {by_them:.1f} | - |")
    write_table(BEGIN, lines, END)


def write_table(begin: str, lines: Sequence[str], end: str) -> None:
    """Replace what stands between two marks of docs/hosts.md."""
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(before + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def random_qwen3(context: int) -> Any:
    """A small one of transformers, with so many positions. Every weight is one that float16 holds."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=context, tie_word_embeddings=True,
        eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    for parameter in model.parameters():
        spread = 0.2 * torch.randn(parameter.shape) + (1 if parameter.dim() == 1 else 0)
        parameter.data = spread.half().float()
    return model


def export(model: Any, folder: Path, form: Mapping[str, Any]) -> Path:
    """The asset in `folder` that a recipe gives with this form, its context the model's. The model's checkpoint is left
    beside it."""
    model.save_pretrained(folder / "checkpoint")
    checkpoint, asset = open_checkpoint(folder / "checkpoint"), folder / "model.aimodel"
    config = json.loads((folder / "checkpoint/config.json").read_text())
    said = recipe_from_config(config, "small").recipe.model_dump(mode="json", exclude_unset=True)
    own = {"format": "coreai", "context": model.config.max_position_embeddings, "residual_scale": 1.0}
    recipe = Recipe.model_validate({**said, "export": {**own, **form}})
    stacks = build_stacks(recipe, exported_form(recipe))
    export_package(stacks, bind_stacks(stacks, {"model": checkpoint}), asset, FragmentCache(None))
    return asset


def _settings(model: Any) -> contract.Settings:
    return contract.Settings("model.aimodel", CONTEXT, model.config.vocab_size)


def _their_modules(model: Any) -> Any:
    from coreai_models.models.ios.qwen3 import Qwen3ForCausalLMForiOS  # type: ignore[import-not-found]

    theirs = Qwen3ForCausalLMForiOS(model.config, model_device="cpu", disable_embedding_quantization=True)
    weights = dict(model.state_dict())
    theirs._mutate_state_dict(weights)
    theirs.load_state_dict(weights, assign=True)
    return theirs.float().eval()


def _hold_names(modules: Any, config: Any, engine: CoreAIProgram) -> None:
    """Say of each function whether its names and the shapes of its inputs are those that their exporter declares."""
    inputs, outputs = modules.export_input_names(), modules.export_output_names()
    shapes = modules.export_static_shape_configs(config, 256)  # its smallest cache
    shapes = shapes["extend"]['"256_16"'] | {contract.MASK: (1, CONTEXT, 1, PREFILL), contract.STEP: (1,)}
    for name in contract.functions_of(
        contract.StaticForm("small", "small", CONTEXT, PREFILL, config.vocab_size, config.hidden_size)
    ):
        kind = "extend" if name.startswith(("extend", "prompt")) else name.rstrip("_0123456789")
        found = engine.signatures[name]
        wanted = {*inputs[kind]} - ({contract.TABLE} if kind == "extend" else set())
        assert {*found["inputs"]} == wanted, (name, found["inputs"], wanted)
        assert {*found["outputs"]} == {*outputs[kind]}, (name, found["outputs"])
        if name.endswith(f"_{PREFILL}") and kind == "extend":
            sizes = {port: shape for port, (_, shape) in found["inputs"].items()}
            assert sizes == {port: shapes[port] for port in sizes}, (name, sizes)
        print(f"{name}: names as their exporter declares them")


class _Eager:
    """Their modules behind the functions of an asset."""

    def __init__(self, modules: Any, like: CoreAIProgram, config: Any) -> None:
        self._modules, self._config, self.signatures = modules, config, like.signatures

    def make_state(self) -> dict[str, Tensor]:
        config = self._config
        shape = config.num_hidden_layers, 1, config.num_key_value_heads * config.head_dim, 1, CONTEXT
        return {name: torch.zeros(shape) for name in contract.CACHES}

    def function(self, name: str) -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]:
        modules = self._modules

        def call(given: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if name == contract.LOAD:
                return {contract.TABLE: modules.load_embeddings()}
            if name.startswith(contract.GATHER):
                return {contract.GATHERED: modules.gather_embeddings(given[contract.IDS], given[contract.TABLE])}
            modules.set_prefill_mode(name.startswith(contract.PROMPT))
            positions, mask = given[contract.POSITIONS].to(torch.uint16), given[contract.MASK].float()
            caches, table = (state[each] for each in contract.CACHES), modules.load_embeddings()
            logits = modules.extend(given[contract.EMBEDDED], positions, given[contract.STEP], mask, *caches, table)
            return {contract.LOGITS: logits}

        return call


def _their_player(modules: Any, engine: CoreAIProgram, model: Any) -> Player:
    return Player(cast(CoreAIProgram, _Eager(modules, engine, model.config)), _settings(model))


def _compare(model: Any, ours: Player, theirs: Player) -> list[float]:
    """Of the last token of a prompt and of the tokens behind it, the least PSNR of ours against transformers, of ours
    against theirs, of theirs against transformers."""
    text = [(37 * index + 5) % model.config.vocab_size for index in range(PROMPT)]
    found = []
    for _ in range(STEPS):
        reference = model(torch.tensor([text])).logits[0, -1]
        given, answered = ours.next_logits(text), theirs.next_logits(text)
        found.append((psnr(reference, given), psnr(answered, given), psnr(reference, answered)))
        text.append(int(reference.argmax()))
    assert ours.calls == theirs.calls
    return [min(figures) for figures in zip(*found, strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
