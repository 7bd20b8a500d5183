"""Train tiny-qwen3_5, a small Qwen3.5 with the states of a language model, and save it beside this file.

apt-get install bible-kjv && python train.py
bible -f gen1:1-rev22:21 > kjv.txt && python train.py --text kjv.txt --out elsewhere

The text, its split and its tokenizer are those of examples/gemma4-tiny/train.py.
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3_5ForCausalLM, Qwen3_5TextConfig

HERE = Path(__file__).parent
PROMPT = "In the beginning God created"
SHORT, LONG = 256, 2048  # tokens of a window: the long ones come last, so that positions up to LONG are trained

ARCHITECTURE = {
    "vocab_size": 512,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
    "initializer_range": 0.05,  # the default 0.02 suits widths of thousands
}
SLOWEST, FASTEST = 1e-3, 1e-1  # how much of its state a head forgets with each token at first, as in Mamba-2


def load_example() -> ModuleType:
    """examples/gemma4-tiny/train.py, which is no package: it is a script that users copy."""
    path = HERE.parents[2] / "examples" / "gemma4-tiny" / "train.py"
    spec = importlib.util.spec_from_file_location("gemma4_tiny_train", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_model(end: int) -> Qwen3_5ForCausalLM:
    """A fresh model, its heads forgetting at rates between SLOWEST and FASTEST: transformers starts them all alike."""
    model = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**ARCHITECTURE, bos_token_id=end, eos_token_id=end, pad_token_id=end))
    model.model.embed_tokens.padding_idx = None
    with torch.no_grad():
        model.model.embed_tokens.weight[end].normal_(std=ARCHITECTURE["initializer_range"])
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                share = torch.rand(parameter.shape)
                rate = SLOWEST * (FASTEST / SLOWEST) ** share
                parameter.copy_(rate + torch.log(-torch.expm1(-rate)))  # whose softplus is the rate
            if name.endswith("A_log"):
                parameter.zero_()
    return model


def train(model: Qwen3_5ForCausalLM, tokens: Tensor, args: argparse.Namespace, rate: Callable[..., float]) -> None:
    """AdamW on random windows, SHORT ones and for the last tenth of the steps LONG ones; vectors are not decayed."""
    generator = torch.Generator().manual_seed(args.seed)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    model.train()
    began, total = time.monotonic(), 0.0
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate(step / args.steps, 0.05)
        length = LONG if step >= args.steps * 9 // 10 else SHORT
        starts = torch.randint(len(tokens) - length + 1, (args.tokens // length, 1), generator=generator)
        batch = tokens[starts + torch.arange(length)]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - began
            print(f"step {step + 1}/{args.steps}  loss {total / 50:.4f}  {seconds:.0f} s", flush=True)
            total = 0.0


@torch.no_grad()
def mean_loss(model: Qwen3_5ForCausalLM, tokens: Tensor) -> float:
    """Nats per token over disjoint windows of LONG; the first token of a window is not scored."""
    windows = tokens[: len(tokens) // LONG * LONG].view(-1, LONG)
    model.eval()
    losses = [model(input_ids=batch, labels=batch, use_cache=False).loss * len(batch) for batch in windows.split(2)]
    return (sum(losses) / len(windows)).item()


def forgetting(model: Qwen3_5ForCausalLM) -> list[list[float]]:
    """Of each recurrent layer, how much of its state each head forgets with a token, at a decay input of 0."""
    layers = [layer.linear_attn for layer in model.model.layers if hasattr(layer, "linear_attn")]
    kept = [torch.exp(-layer.A_log.exp() * nn.functional.softplus(layer.dt_bias)) for layer in layers]
    return [[round(1 - value, 4) for value in each.tolist()] for each in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="output of `bible -f gen1:1-rev22:21`; default: run that command")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=2048, help="in each step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    example = load_example()
    example.ARCHITECTURE = ARCHITECTURE
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    training, held_out = example.split_chapters(example.read_chapters(args.text))
    size = len("".join(held_out).encode())
    tokenizer = example.train_tokenizer(training)
    training, held_out = example.encode(tokenizer, training), example.encode(tokenizer, held_out)
    end = tokenizer.eos_token_id
    model = build_model(end)
    print(f"{model.num_parameters()} parameters, {len(training)} training tokens, {len(held_out)} held-out tokens")
    began = time.monotonic()
    train(model, training, args, example.learning_rate)
    print(f"trained in {time.monotonic() - began:.0f} s")
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    # The stated figures are of the file as saved, computed in float32.
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    loss = mean_loss(model, held_out)
    print(f"held-out loss {loss:.4f}, {loss / math.log(2) * len(held_out) / size:.4f} bits per byte")
    for layer in forgetting(model):
        print("forgets with each token:", layer)
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]))


if __name__ == "__main__":
    main()
