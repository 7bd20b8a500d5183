"""What recurrent states lose in each form, token by token, on the trained models of tests/checkpoints.

    python -m bench.recurrent_states tiny-qwen3_5
    python -m bench.recurrent_states tiny-granite

Prints the rows of docs/verification.md: the package in float32 but for its states, against our Decoder with the same
weights, and all of it in float16, against transformers in float32, on text that was held out of the training.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
CHECKPOINTS = ROOT / "tests/checkpoints"
MODELS = ["tiny-qwen3_5", "tiny-granite"]
FORMS = [("float16", 0), ("two_float16", 0), ("float16", 64), ("two_float16", 64)]
AFTER, LAST = (500, 2000), 64


def held_out(model: str, tokens: int) -> list[int]:
    """The first tokens of the books that no model here was trained on: gemma4-tiny's, in this model's tokens."""
    from transformers import AutoTokenizer

    example = ROOT / "examples/gemma4-tiny"
    theirs = json.loads((example / "prompts.json").read_text())["held_out"]
    text = AutoTokenizer.from_pretrained(example).decode(theirs, skip_special_tokens=True)
    return list(AutoTokenizer.from_pretrained(CHECKPOINTS / model)(text, verbose=False).input_ids[:tokens])


def reference(name: str, ids: list[int]) -> Tensor:
    """transformers' logits (S, V) in float32 of the whole sequence."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def runs(
    model: str, ids: list[int], state: str, buffer: int, theirs: Tensor, modes: list[str]
) -> Iterator[tuple[str, str]]:
    """What the package loses in each mode, one token a call: `states`, in float32 but for its states, and `all`."""
    from coreai_recipes.checkpoint import open_checkpoint
    from coreai_recipes.decoder.filling import bind_weights
    from coreai_recipes.decoder.model import build_decoder
    from coreai_recipes.export.cache import FragmentCache
    from coreai_recipes.recipe import Recipe
    from coreai_recipes.recipe.importing.assembling import recipe_from_config
    from coreai_recipes.targets.coreml.exporter import export_package
    from coreai_recipes.verification.calls import FunctionCall, run_call
    from coreai_recipes.verification.runtime import open_program
    from coreai_recipes.verification.subject import Subject

    config = json.loads((CHECKPOINTS / model / "config.json").read_text())
    content = recipe_from_config(config, model).recipe.model_dump(mode="json", exclude_unset=True)
    content["export"] |= {"context": 2048, "residual_scale": 1.0, "recurrent_state": state, "buffer": buffer}
    recipe, checkpoint = Recipe.model_validate(content), open_checkpoint(CHECKPOINTS / model)
    decoder = build_decoder(recipe)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.mlpackage"
        export_package([decoder], bind_weights(decoder, checkpoint), package, FragmentCache(Path(folder) / "cache"))
        subject = Subject(recipe, {"model": checkpoint}, package, tuple(ids))
        for name in modes:
            ref, precision = (subject.as_stored(), "float32") if name == "states" else (theirs, "rounded")
            program = open_program(subject, precision, float16_states=True)  # type: ignore[arg-type]
            calls = (FunctionCall("decode", position, 1, 1) for position in range(len(ids)))
            ours = torch.cat([run_call(program, ids, call, set(), recipe).logits for call in calls])
            yield name, describe(ids, ref, ours)


def describe(ids: list[int], ref: Tensor, ours: Tensor) -> str:
    """dB of the last LAST logits after so many tokens, and the perplexity of all."""
    from coreai_recipes.verification.figures import psnr
    from coreai_recipes.verification.loss import surprise

    after = [psnr(ref[end - LAST : end], ours[end - LAST : end]) for end in AFTER if end <= len(ids)]
    perplexity = math.exp(surprise(ours, ids) / (len(ids) - 1))
    return " | ".join([*(f"{value:.1f}" for value in after), f"{perplexity:.4f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--tokens", type=int, default=max(AFTER))
    parser.add_argument("--modes", nargs="+", default=["states", "all"], choices=["states", "all"])
    args = parser.parse_args()
    ids = held_out(args.model, args.tokens)
    ref = reference(args.model, ids)
    print(f"transformers float32: perplexity {math.exp(surprise_of(ids, ref)):.4f}", flush=True)
    for state, buffer in FORMS:
        for name, found in runs(args.model, ids, state, buffer, ref, args.modes):
            print(f"| {state} | {buffer} | {name} | {found} |", flush=True)


def surprise_of(ids: list[int], logits: Tensor) -> float:
    """Nats a token."""
    from coreai_recipes.verification.loss import surprise

    return surprise(logits, ids) / (len(ids) - 1)


if __name__ == "__main__":
    main()
