"""Train gemma4-tiny, the embedded model of the project, on the King James Bible and save it beside this file.

apt-get install bible-kjv && python train.py
bible -f gen1:1-rev22:21 > kjv.txt && python train.py --text kjv.txt --out elsewhere
"""

import argparse
import json
import math
import re
import subprocess
import time
from itertools import groupby
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

END = "<|endoftext|>"
HELD_OUT_FROM = "1Th"  # 1 Thessalonians to Revelation, 5 % of the text, is never trained on
VERSE = re.compile(r"(?P<book>[1-3]?[A-Za-z]+)(?P<chapter>\d+):\d+ (?P<text>.+)")
PROMPT = "In the beginning God created"
CONTEXT = 512  # the longest training window; positions up to max_position_embeddings extrapolate

ARCHITECTURE = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 320,
    "num_hidden_layers": 8,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 2,
    "sliding_window": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "global_head_dim": 128,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 4,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 2048,
    "final_logit_softcapping": 30.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        # 16 of 64 pairs turn, the slowest once in 161 tokens: far enough for the contexts trained on
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    },
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,  # the default 0.02 suits widths of thousands
    "enable_moe_block": False,
}
# Off 1, and trained from there: a converter that forgets the buffer or reads the wrong layer's is seen at once.
LAYER_SCALARS = [0.80, 0.95, 1.10, 0.90, 1.05, 0.85, 1.00, 0.90]


def read_chapters(path: Path | None) -> list[tuple[str, str]]:
    """(book, text) of each chapter in order, one verse a line; from the `bible` command when `path` is None."""
    if path is None:
        command = ["bible", "-f", "gen1:1-rev22:21"]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    else:
        lines = path.read_text().splitlines()
    # Only verses match: a version banner or a prompt around them, as `echo ... | bible` prints, is left out.
    verses = [match for match in map(VERSE.fullmatch, lines) if match]
    chapters = groupby(verses, key=lambda verse: (verse["book"], verse["chapter"]))
    return [
        (book, "".join(re.sub(r"\s+", " ", verse["text"]).strip() + "\n" for verse in chapter))
        for (book, _), chapter in chapters
    ]


def split_chapters(chapters: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """The texts before HELD_OUT_FROM, and those from it on."""
    first = [book for book, _ in chapters].index(HELD_OUT_FROM)
    return [text for _, text in chapters[:first]], [text for _, text in chapters[first:]]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: END is token 0, then the 256 bytes, then the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ARCHITECTURE["vocab_size"],
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=ARCHITECTURE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """END, chapter, END, chapter, ... END, int64, (tokens,)."""
    ids = [tokenizer.eos_token_id]
    for text in texts:
        ids += [*tokenizer(text, verbose=False).input_ids, tokenizer.eos_token_id]
    return torch.tensor(ids)


def set_norms(attention: nn.Module) -> None:
    """Query and key norms that start the scores near 1 (Gemma 4 scales them by 1); fixed in full layers.

    A full layer turns a quarter of its pairs, and left to itself this small model looks there by content alone: after
    250 steps its loss was only 0.007 higher with no rotation at all. Its unturned dimensions are therefore held at a
    fifth of the turned ones, so that what it finds depends on where it looks, and a wrong rotary is felt.
    """
    dim = attention.head_dim
    weight = torch.full((dim,), dim**-0.25)
    if not attention.is_sliding:
        turned = torch.arange(dim) % (dim // 2) < dim // 8
        weight = torch.where(turned, 0.6, 0.12)
    for name in ("q_norm", "k_norm"):
        if hasattr(attention, name):
            norm = getattr(attention, name)
            norm.weight.copy_(weight)
            norm.weight.requires_grad_(attention.is_sliding)


def pick_prompts(tokenizer: PreTrainedTokenizerFast, held_out: Tensor, count: int = 16, length: int = 48) -> dict:
    """What measure.py and later experiments read: prompts that begin a verse, evenly spaced, and 8192 tokens to score.

    All of it is of the held-out books; the scored tokens are the first ones.
    """
    newline = tokenizer("\n").input_ids[0]
    verses = ((held_out == newline).nonzero().flatten() + 1).tolist()
    every = len(verses) // count
    prompts = [held_out[start : start + length].tolist() for start in verses[every // 2 :: every][:count]]
    return {"prompts": prompts, "held_out": held_out[:8192].tolist()}


def build_model(end: int) -> Gemma4ForCausalLM:
    """A fresh target whose layer scalars are parameters, so that they train; their name in the file is the buffer's."""
    config = Gemma4TextConfig(**ARCHITECTURE, bos_token_id=end, eos_token_id=end, pad_token_id=end)
    model = Gemma4ForCausalLM(config)
    with torch.no_grad():
        for layer, scalar in zip(model.model.layers, LAYER_SCALARS, strict=True):
            del layer.layer_scalar
            layer.layer_scalar = nn.Parameter(torch.tensor([scalar]))
            set_norms(layer.self_attn)
        # The padding row is END, which the text uses: it must not stay zero, and must get its gradient.
        for table in (model.model.embed_tokens, model.model.embed_tokens_per_layer):
            table.padding_idx = None
            table.weight[end].normal_(std=config.initializer_range)
    return model


def add_dropout(model: Gemma4ForCausalLM, rate: float) -> None:
    """Dropout on what each block adds to the residual stream: the text is passed a dozen times, which overfits."""

    def drop(module: nn.Module, _: tuple, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, rate, module.training)

    for layer in model.model.layers if rate else ():
        layer.post_attention_layernorm.register_forward_hook(drop)
        layer.post_feedforward_layernorm.register_forward_hook(drop)


def save_model(model: Gemma4ForCausalLM, out: Path) -> None:
    """Write a bfloat16 copy with its generation settings.

    Through float16 first: every saved bfloat16 value, however small, is then exact in float16 as well.
    """
    end = model.config.eos_token_id
    copy = Gemma4ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy = copy.half().bfloat16()
    copy.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    copy.save_pretrained(out)


def learning_rate(progress: float, warmup: float) -> float:
    """The share of the peak rate: a linear warmup, then a cosine to zero."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def make_optimizers(model: nn.Module, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for tables and vectors; only what is not a vector is decayed."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    tables = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" in n]
    vectors = [p for p in model.parameters() if p.ndim < 2 and p.requires_grad]
    adamw = [{"params": tables, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if not args.muon_lr:
        adamw[0]["params"] += inner
        return [torch.optim.AdamW(adamw, lr=args.lr, betas=(0.9, 0.95), fused=True)]
    muon = torch.optim.Muon(inner, lr=args.muon_lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(adamw, lr=args.lr, betas=(0.9, 0.95), fused=True)]


def train(model: Gemma4ForCausalLM, tokens: Tensor, held_out: Tensor, args: argparse.Namespace) -> None:
    """Random windows, half of CONTEXT long until the last quarter of the steps; matrix products in bfloat16.

    `--minutes` ends a run by the clock: the schedule follows whichever of steps and minutes is further along.
    """
    generator = torch.Generator().manual_seed(args.seed)
    optimizers = make_optimizers(model, args)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    forward = torch.compile(model, dynamic=False) if args.compile else model
    began, step, total, progress = time.monotonic(), 0, 0.0, 0.0
    model.train()
    while progress < 1:
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * learning_rate(progress, args.warmup)
        length = CONTEXT if progress >= 0.75 else CONTEXT // 2
        starts = torch.randint(len(tokens) - length + 1, (args.tokens // length, 1), generator=generator)
        batch = tokens[starts + torch.arange(length)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not args.float32):
            logits = forward(input_ids=batch, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        total += loss.item()
        step += 1
        minutes = (time.monotonic() - began) / 60
        progress = max(step / args.steps, minutes / args.minutes if args.minutes else 0.0)
        if step % args.every == 0 or progress >= 1:
            line = {"step": step, "progress": round(progress, 4), "minutes": round(minutes, 2)}
            line |= {"loss": round(total / (step % args.every or args.every), 4)}
            if step % (5 * args.every) == 0:
                line["held_out"] = round(mean_loss(model, held_out[:16384]), 4)
                save_model(model, args.out)
                model.train()
            print(json.dumps(line), flush=True)
            total = 0.0


@torch.no_grad()
def mean_loss(model: Gemma4ForCausalLM, tokens: Tensor) -> float:
    """Nats per token over disjoint windows of CONTEXT; the first token of a window is not scored."""
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    model.eval()
    losses = [model(input_ids=batch, labels=batch, use_cache=False).loss * len(batch) for batch in windows.split(8)]
    return (sum(losses) / len(windows)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="output of `bible -f gen1:1-rev22:21`; default: run that command")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1831)
    parser.add_argument("--minutes", type=float, help="end after as many, whatever the steps")
    parser.add_argument("--tokens", type=int, default=3072, help="in each step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--muon-lr", type=float, default=4e-3)
    parser.add_argument("--warmup", type=float, default=0.03, help="share of the run")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=50, help="steps between lines of the log")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 matrix products")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    training, held_out = split_chapters(read_chapters(args.text))
    tokenizer = train_tokenizer(training)
    size = len("".join(held_out).encode())
    training, held_out = encode(tokenizer, training), encode(tokenizer, held_out)
    tokenizer.save_pretrained(args.out)
    (args.out / "prompts.json").write_text(json.dumps(pick_prompts(tokenizer, held_out)) + "\n")
    model = build_model(tokenizer.eos_token_id)
    add_dropout(model, args.dropout)
    print(f"{model.num_parameters()} parameters, {len(training)} training tokens, {len(held_out)} held-out tokens")
    began = time.monotonic()
    train(model, training, held_out, args)
    print(f"trained in {time.monotonic() - began:.0f} s")
    save_model(model, args.out)

    # The stated figures are of the file as saved, computed in float32.
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    loss = mean_loss(model, held_out)
    bits = loss / math.log(2) * len(held_out) / size
    print(f"train loss {mean_loss(model, training[:131072]):.4f}, held-out loss {loss:.4f}, {bits:.4f} bits per byte")
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=120, do_sample=False)[0]))


if __name__ == "__main__":
    main()
