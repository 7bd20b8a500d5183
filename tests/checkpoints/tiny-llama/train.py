"""Train tiny-llama, the checkpoint of the fast tests, on the King James Bible and save it beside this file.

apt-get install bible-kjv && python train.py
bible -f gen1:1-rev22:21 > kjv.txt && python train.py --text kjv.txt --out elsewhere
"""

import argparse
import math
import re
import subprocess
import time
from itertools import groupby
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
HELD_OUT_FROM = "1Th"  # 1 Thessalonians to Revelation, 5 % of the text, is never trained on
VERSE = re.compile(r"(?P<book>[1-3]?[A-Za-z]+)(?P<chapter>\d+):\d+ (?P<text>.+)")
PROMPT = "In the beginning God created"

ARCHITECTURE = {
    "vocab_size": 512,
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 176,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "initializer_range": 0.06,  # the default 0.02 suits widths of thousands
}


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
        model_max_length=ARCHITECTURE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """END, chapter, END, chapter, ... END, int64, (tokens,)."""
    ids = [tokenizer.eos_token_id]
    for text in texts:
        ids += [*tokenizer(text, verbose=False).input_ids, tokenizer.eos_token_id]
    return torch.tensor(ids)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """A linear warmup over 200 steps, then a cosine to zero."""
    warmup = min(200, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def train(model: LlamaForCausalLM, tokens: torch.Tensor, args: argparse.Namespace) -> None:
    """AdamW on random windows, half the context long until the last quarter of the steps; norms are not decayed."""
    generator = torch.Generator().manual_seed(args.seed)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    context = model.config.max_position_embeddings
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    model.train()
    total = 0.0
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        length = context if step >= args.steps * 3 // 4 else context // 2
        starts = torch.randint(len(tokens) - length + 1, (args.tokens // length, 1), generator=generator)
        batch = tokens[starts + torch.arange(length)]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{args.steps}  loss {total / 100:.4f}", flush=True)
            total = 0.0


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """Nats per token over disjoint windows of the whole context; the first token of a window is not scored."""
    length = ARCHITECTURE["max_position_embeddings"]
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    model.eval()
    losses = [model(input_ids=batch, labels=batch, use_cache=False).loss * len(batch) for batch in windows.split(16)]
    return (sum(losses) / len(windows)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="output of `bible -f gen1:1-rev22:21`; default: run that command")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--tokens", type=int, default=1024, help="in each step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    training, held_out = split_chapters(read_chapters(args.text))
    tokenizer = train_tokenizer(training)
    training, held_out = encode(tokenizer, training), encode(tokenizer, held_out)
    end = tokenizer.eos_token_id
    config = LlamaConfig(**ARCHITECTURE, bos_token_id=end, eos_token_id=end)
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters()} parameters, {len(training)} training tokens, {len(held_out)} held-out tokens")
    began = time.monotonic()
    train(model, training, args)
    print(f"trained in {time.monotonic() - began:.0f} s")

    # Through float16 first: every saved bfloat16 value, however small, is then exact in float16 as well.
    model = model.half().bfloat16()
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    # The stated figures are of the file as saved, computed in float32.
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    print(f"train loss {mean_loss(model, training):.4f}, held-out loss {mean_loss(model, held_out):.4f}")
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=120, do_sample=False)[0]))


if __name__ == "__main__":
    main()
