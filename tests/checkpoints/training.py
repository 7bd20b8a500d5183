"""How tiny-qwen3_5 and tiny-granite were trained: a language model whose layers carry states, on the text of
examples/gemma4-tiny, with what its heads forget chosen at first."""

import argparse
import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

EXAMPLE = Path(__file__).parents[2] / "examples/gemma4-tiny/train.py"
PROMPT = "In the beginning God created"
SHORT, LONG = 256, 2048  # tokens of a window: the long ones come last, so that positions up to LONG are trained
SLOWEST, FASTEST = 1e-3, 1e-1  # how much of its state a head forgets with each token at first, as in Mamba-2
INITIALIZER_RANGE = 0.05  # transformers' default 0.02 suits widths of thousands


@dataclass(frozen=True)
class Training:
    """What is trained: `build` makes a fresh model for an end token, `recurrent` names its recurrent layers' modules,
    whose parameters `A_log` and `dt_bias` say how fast they forget; beside it the defaults of the command line."""

    folder: Path
    architecture: dict[str, object]
    build: Callable[[int], PreTrainedModel]
    recurrent: str
    steps: int
    learning_rate: float


def load_example() -> ModuleType:
    """It is no package: it is a script that users copy."""
    spec = importlib.util.spec_from_file_location("gemma4_tiny_train", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def spread_forgetting(model: PreTrainedModel, end: int) -> None:
    """Let heads forget at rates between SLOWEST and FASTEST, where transformers starts them all alike; and give the end
    token, which is the padding too, a row of its own in the table."""
    table = model.get_input_embeddings()
    table.padding_idx = None
    with torch.no_grad():
        table.weight[end].normal_(std=INITIALIZER_RANGE)
        for name, parameter in model.named_parameters():
            if name.endswith("dt_bias"):
                rate = SLOWEST * (FASTEST / SLOWEST) ** torch.rand(parameter.shape)
                parameter.copy_(rate + torch.log(-torch.expm1(-rate)))  # whose softplus is the rate
            if name.endswith("A_log"):
                parameter.zero_()


def train(model: PreTrainedModel, tokens: Tensor, args: argparse.Namespace, rate: Callable[..., float]) -> None:
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
def mean_loss(model: PreTrainedModel, tokens: Tensor) -> float:
    """Nats per token over disjoint windows of LONG; the first token of a window is not scored."""
    windows = tokens[: len(tokens) // LONG * LONG].view(-1, LONG)
    model.eval()
    losses = [model(input_ids=batch, labels=batch, use_cache=False).loss * len(batch) for batch in windows.split(2)]
    return (sum(losses) / len(windows)).item()


def forgetting(model: PreTrainedModel, recurrent: str) -> list[list[float]]:
    """Of each recurrent layer, how much of its state each head forgets with a token, at a decay input of 0."""
    layers = [getattr(layer, recurrent, None) for layer in model.model.layers]
    kept = [torch.exp(-each.A_log.exp() * nn.functional.softplus(each.dt_bias)) for each in layers if each is not None]
    return [[round(1 - value, 4) for value in each.tolist()] for each in kept]


def main(training: Training, description: str) -> None:
    """Train, save, and print the figures of the README beside the weights."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--text", type=Path, help="output of `bible -f gen1:1-rev22:21`; default: run that command")
    parser.add_argument("--out", type=Path, default=training.folder)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=training.steps)
    parser.add_argument("--tokens", type=int, default=2048, help="in each step")
    parser.add_argument("--lr", type=float, default=training.learning_rate)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    example = load_example()
    example.ARCHITECTURE = training.architecture
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    training_texts, held_out_texts = example.split_chapters(example.read_chapters(args.text))
    size = len("".join(held_out_texts).encode())
    tokenizer = example.train_tokenizer(training_texts)
    tokens, held_out = example.encode(tokenizer, training_texts), example.encode(tokenizer, held_out_texts)
    end = tokenizer.eos_token_id
    model = training.build(end)
    print(f"{model.num_parameters()} parameters, {len(tokens)} training tokens, {len(held_out)} held-out tokens")
    began = time.monotonic()
    train(model, tokens, args, example.learning_rate)
    print(f"trained in {time.monotonic() - began:.0f} s")
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    # The stated figures are of the file as saved, computed in float32.
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    loss = mean_loss(model, held_out)
    print(f"held-out loss {loss:.4f}, {loss / math.log(2) * len(held_out) / size:.4f} bits per byte")
    for layer in forgetting(model, training.recurrent):
        print("forgets with each token:", layer)
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=60, do_sample=False)[0]))
