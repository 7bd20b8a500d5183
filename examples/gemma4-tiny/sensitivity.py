"""What a wrong rotary in the full layers costs: acceptance, greedy tokens and loss, on prompts.json.

python sensitivity.py
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from measure import HERE, continue_prompt, load_draft
from torch import Tensor, nn
from train import mean_loss
from transformers import Gemma4ForCausalLM
from transformers.models.gemma4 import modeling_gemma4

FULL = "full_attention"


def turned_pairs(inv_freq: Tensor) -> int:
    """How many pairs turn; the others have frequency 0."""
    return int(inv_freq.count_nonzero())


def divide_by_turned(inv_freq: Tensor) -> Tensor:
    """The exponents over the turned dimensions, as `partial` rotary has them, not over head_dim."""
    count, theta = turned_pairs(inv_freq), (1 / inv_freq[1]) ** len(inv_freq)
    wrong = torch.zeros_like(inv_freq)
    wrong[:count] = theta ** (-torch.arange(count) / count)
    return wrong


def rotate_front(turned: int, head_dim: int) -> Callable:
    """Pairs i and i + R/2 of the first R dimensions, as `partial` rotary lays them out, not i and i + head_dim/2."""
    right = modeling_gemma4.apply_rotary_pos_emb

    def apply(x: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Tensor:
        if x.shape[-1] != head_dim:
            return right(x, cos, sin, unsqueeze_dim=unsqueeze_dim)
        cos, sin = (torch.cat((table[..., :turned],) * 2, -1) for table in (cos, sin))
        front = right(x[..., : 2 * turned], cos, sin, unsqueeze_dim=unsqueeze_dim)
        return torch.cat((front, x[..., 2 * turned :]), -1)

    return apply


@contextmanager
def change_frequencies(models: list[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The full layers' frequencies of `models` changed while entered."""
    buffers = [getattr(model.model.rotary_emb, f"{FULL}_inv_freq") for model in models]
    kept = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        buffer.copy_(change(buffer))
    yield
    for buffer, values in zip(buffers, kept, strict=True):
        buffer.copy_(values)


@contextmanager
def change_layout(models: list[nn.Module]) -> Iterator[None]:
    """The full layers' pairs of `models` laid out as `partial` rotary's while entered; each call sets its own."""
    right = modeling_gemma4.apply_rotary_pos_emb
    inv_freq = getattr(models[0].model.rotary_emb, f"{FULL}_inv_freq")
    wrong = rotate_front(turned_pairs(inv_freq), 2 * len(inv_freq))

    def choose(function: Callable) -> Callable:
        return lambda *_: setattr(modeling_gemma4, "apply_rotary_pos_emb", function)

    hooks = [model.register_forward_pre_hook(choose(wrong)) for model in models]
    hooks += [model.register_forward_hook(choose(right)) for model in models]
    yield
    for hook in hooks:
        hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=HERE)
    parser.add_argument("--new-tokens", type=int, default=96)
    args = parser.parse_args()

    torch.set_num_threads(1)
    target = Gemma4ForCausalLM.from_pretrained(args.target, dtype=torch.float32).eval()
    draft = load_draft(args.target / "draft")
    target.generation_config.eos_token_id = None
    data = json.loads((HERE / "prompts.json").read_text())
    prompts, held_out = [torch.tensor([prompt]) for prompt in data["prompts"]], torch.tensor(data["held_out"])
    plain = [continue_prompt(target, prompt, args.new_tokens)[0] for prompt in prompts]
    written = torch.cat([torch.cat(prompts), torch.tensor(plain)], dim=1)

    def report(name: str) -> None:
        """One row: acceptance, how many of the right model's greedy tokens this one would not pick, loss."""
        runs = [continue_prompt(target, prompt, args.new_tokens, draft) for prompt in prompts]
        accepted = sum(len(new) - 1 for new, _ in runs) / sum(calls for _, calls in runs) - 1
        with torch.no_grad():
            picks = target(written, use_cache=False).logits[:, prompts[0].shape[1] - 1 : -1].argmax(-1)
        other = (picks != torch.tensor(plain)).float().mean().item()
        print(f"| {name} | {accepted:.3f} | {other:.1%} | {mean_loss(target, held_out):.4f} |", flush=True)

    print("| full layers' rotary | accepted | other greedy tokens | held-out loss |\n|---|---|---|---|")
    report("right")
    for models, where in (([target, draft], "both"), ([draft], "draft only")):
        with change_layout(models):
            report(f"{where}: pairs i, i + R/2 of the first R dimensions")
        with change_frequencies(models, divide_by_turned):
            report(f"{where}: exponents over R, not over head_dim")
        with change_frequencies(models, torch.zeros_like):
            report(f"{where}: none at all")


if __name__ == "__main__":
    main()
