"""Train gemma4-moe, a tiny Gemma 4 with experts for the fast tests, and save it beside this file.

apt-get install bible-kjv && python train.py
bible -f gen1:1-rev22:21 > kjv.txt && python train.py --text kjv.txt --out elsewhere

The text, its split and the training loop are those of examples/gemma4-tiny/train.py.
"""

import argparse
import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig

HERE = Path(__file__).parent
PROMPT = "In the beginning God created"

ARCHITECTURE = {
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 64,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 512,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "final_logit_softcapping": 30.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    },
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
}
LAYER_SCALARS = [0.80, 1.10, 0.90, 1.05]


def load_example() -> ModuleType:
    """examples/gemma4-tiny/train.py, which is no package: it is a script that users copy."""
    path = HERE.parents[2] / "examples" / "gemma4-tiny" / "train.py"
    spec = importlib.util.spec_from_file_location("gemma4_tiny_train", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_model(end: int) -> Gemma4ForCausalLM:
    """A fresh model, its layer scalars and its experts' scales off 1 so that a converter cannot forget them.

    The scalars stay as they are; the router's scales train.
    """
    model = Gemma4ForCausalLM(Gemma4TextConfig(**ARCHITECTURE, bos_token_id=end, eos_token_id=end, pad_token_id=end))
    model.model.embed_tokens.padding_idx = None
    with torch.no_grad():
        model.model.embed_tokens.weight[end].normal_(std=ARCHITECTURE["initializer_range"])
        for layer, scalar in zip(model.model.layers, LAYER_SCALARS, strict=True):
            layer.layer_scalar.fill_(scalar)
            layer.router.per_expert_scale.uniform_(0.7, 1.3)
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                norm.weight.fill_(layer.self_attn.head_dim**-0.25)
    return model


def balance_loss(router_logits: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean over layers of E * sum(share of tokens * mean probability), 1 when all experts are used alike.

    The router's first output is its probabilities, (tokens, E). Without this term two experts would get every token.
    """
    losses = []
    for probabilities in router_logits:
        experts = probabilities.shape[-1]
        chosen = probabilities.topk(ARCHITECTURE["top_k_experts"], dim=-1).indices
        share = nn.functional.one_hot(chosen, experts).float().mean((0, 1))
        losses.append(experts * (share * probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


def train(
    model: Gemma4ForCausalLM,
    tokens: torch.Tensor,
    args: argparse.Namespace,
    learning_rate: Callable[[float, float], float],
) -> None:
    """AdamW on random windows of 256."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    model.train()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * learning_rate(step / args.steps, 0.05)
        starts = torch.randint(len(tokens) - 255, (args.tokens // 256, 1), generator=generator)
        batch = tokens[starts + torch.arange(256)]
        output = model(input_ids=batch, labels=batch, use_cache=False, output_router_logits=True)
        loss = output.loss + 0.01 * balance_loss(output.router_logits)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{args.steps}  loss {output.loss.item():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="output of `bible -f gen1:1-rev22:21`; default: run that command")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=2048, help="in each step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    example = load_example()
    example.ARCHITECTURE = ARCHITECTURE
    example.CONTEXT = 256
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    training, held_out = example.split_chapters(example.read_chapters(args.text))
    size = len("".join(held_out).encode())
    tokenizer = example.train_tokenizer(training)
    training, held_out = example.encode(tokenizer, training), example.encode(tokenizer, held_out)
    model = build_model(tokenizer.eos_token_id)
    print(f"{model.num_parameters()} parameters, {len(training)} training tokens, {len(held_out)} held-out tokens")
    began = time.monotonic()
    train(model, training, args, example.learning_rate)
    print(f"trained in {time.monotonic() - began:.0f} s")
    example.save_model(model, args.out)
    tokenizer.save_pretrained(args.out)

    # The stated figures are of the file as saved, computed in float32.
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    loss = example.mean_loss(model, held_out)
    bits = loss / math.log(2) * len(held_out) / size
    print(f"held-out loss {loss:.4f}, {bits:.4f} bits per byte")
    with torch.no_grad():
        routers = model(held_out[None, :256], output_router_logits=True).router_logits
    for probabilities in routers:
        print("tokens per expert:", probabilities.topk(2).indices.flatten().bincount(minlength=8).tolist())
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]))


if __name__ == "__main__":
    main()
