"""Distil the multi-token draft of gemma4-tiny from the target beside this file and save it in the folder `draft`.

apt-get install bible-kjv && python train_draft.py
python train_draft.py --text kjv.txt --target elsewhere --out elsewhere/draft
"""

import argparse
import json
import time
from pathlib import Path

import torch
from measure import allow_models_that_share_every_layer
from torch import Tensor, nn
from train import encode, learning_rate, make_optimizers, read_chapters, set_norms, split_chapters
from transformers import (
    AutoTokenizer,
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GenerationConfig,
)

DRAFTED = 4  # tokens a round
PROMPT, LONG_PROMPT, CONTINUATION = 48, 368, 112  # tokens
LONG_EVERY = 6  # steps: one in six sees contexts of 480 tokens, the others of 160
LAYER_SCALARS = [0.95, 1.05, 0.90, 1.10]

ARCHITECTURE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
    "num_attention_heads": 4,
    "num_kv_shared_layers": 4,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "use_double_wide_mlp": False,
    "initializer_range": 0.05,
}
# What the draft reads of the target's cache, or must agree on to read it.
INHERITED = [
    "vocab_size",
    "sliding_window",
    "attention_k_eq_v",
    "rope_parameters",
    "hidden_activation",
    "rms_norm_eps",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
]


def build_draft(target: Gemma4TextConfig) -> Gemma4AssistantForCausalLM:
    """A fresh draft for `target`, with the layer scalars as parameters, as train.build_model does."""
    allow_models_that_share_every_layer()
    inherited = {name: getattr(target, name) for name in INHERITED}
    sliding, full = (target.per_layer_config[kind] for kind in ("sliding_attention", "full_attention"))
    heads = {
        "head_dim": sliding.head_dim,
        "num_key_value_heads": sliding.num_key_value_heads,
        "global_head_dim": full.head_dim,
        "num_global_key_value_heads": full.num_key_value_heads,
    }
    config = Gemma4AssistantConfig(
        text_config=Gemma4TextConfig(**inherited, **heads, **ARCHITECTURE),
        backbone_hidden_size=target.hidden_size,
        use_ordered_embeddings=False,
        tie_word_embeddings=True,
    )
    draft = Gemma4AssistantForCausalLM(config)
    draft.model.embed_tokens.padding_idx = None
    with torch.no_grad():
        draft.model.embed_tokens.weight.normal_(std=ARCHITECTURE["initializer_range"])
        for projection in (draft.pre_projection, draft.post_projection):
            projection.weight.normal_(std=projection.in_features**-0.5)
        for layer, scalar in zip(draft.model.layers, LAYER_SCALARS, strict=True):
            del layer.layer_scalar
            layer.layer_scalar = nn.Parameter(torch.tensor([scalar]))
            set_norms(layer.self_attn)
    return draft


def save_draft(draft: Gemma4AssistantForCausalLM, out: Path) -> None:
    """Write a bfloat16 copy, exact in float16 too, whose generation settings draft DRAFTED tokens a round."""
    copy = Gemma4AssistantForCausalLM(draft.config)
    copy.load_state_dict(draft.state_dict())
    copy = copy.half().bfloat16()
    end = draft.config.text_config.eos_token_id
    copy.generation_config = GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        num_assistant_tokens=DRAFTED,
        num_assistant_tokens_schedule="constant",
    )
    copy.save_pretrained(out)


@torch.no_grad()
def continue_text(target: Gemma4ForCausalLM, tokens: Tensor, count: int, prompt: int, temperature: float) -> Tensor:
    """`count` prompts from random places of the text with the target's own continuations, (count, prompt + 112).

    Acceptance is measured on greedy continuations, so those (temperature 0) are what the draft must know best.
    """
    starts = torch.randint(len(tokens) - prompt + 1, (count, 1))
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    prompts = tokens[starts + torch.arange(prompt)]
    length = {"max_new_tokens": CONTINUATION, "min_new_tokens": CONTINUATION}
    # The mask says that END, which also pads, is text here.
    rows = [
        target.generate(batch, attention_mask=torch.ones_like(batch), **length, **sampling)
        for batch in prompts.split(128)
    ]
    return torch.cat(rows)


def make_masks(length: int, window: int) -> dict[str, Tensor]:
    """Which keys the round at each position may read, (1, 1, positions, keys) bool.

    When token p has just been picked the target has processed tokens 0 to p - 1. transformers gives the sliding
    layers the last `window` + 1 of them. Round 0 has no key and is not used.
    """
    distance = torch.arange(length)[:, None] - torch.arange(length)
    full = distance >= 1
    full[0, 0] = True
    return {"full_attention": full[None, None], "sliding_attention": (full & (distance <= window + 1))[None, None]}


@torch.no_grad()
def run_target(target: Gemma4ForCausalLM, ids: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Hidden states after the final norm, the stored keys and values of each kind, logits: of every position."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = target(ids, use_cache=False, output_hidden_states=True, return_shared_kv_states=True)
    shared = {kind: (keys.float(), values.float()) for kind, (keys, values) in output.shared_kv_states.items()}
    return output.hidden_states[-1].float(), shared, output.logits.float()


def draft_losses(
    draft: Gemma4AssistantForCausalLM,
    embeddings: Tensor,
    states: Tensor,
    shared: dict[str, tuple[Tensor, Tensor]],
    logits: Tensor,
    masks: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Loss and agreement with the target's argmax of each of DRAFTED steps, (DRAFTED,), averaged over rounds.

    All rounds of a sequence at once: round p starts from the embedding of token p and the target's state at p - 1,
    keeps position p throughout, and goes on from the sequence's own tokens and the draft's own states.
    """
    rounds = states.shape[1] - DRAFTED  # the last tokens have no DRAFTED successors
    masks = {kind: mask[:, :, 1:rounds] for kind, mask in masks.items()}
    positions = torch.arange(1, rounds)[None]
    state, losses, agreements = states[:, : rounds - 1], [], []
    for step in range(DRAFTED):
        inputs = torch.cat([embeddings[:, 1 + step : rounds + step], state], dim=-1)
        hidden = draft.model(
            inputs_embeds=draft.pre_projection(inputs),
            attention_mask=masks,
            position_ids=positions,
            shared_kv_states=shared,
            use_cache=False,
            output_hidden_states=True,  # else 5.23.0 slices per-layer inputs, which no draft has
        ).last_hidden_state
        state = draft.post_projection(hidden)
        guess = draft.lm_head(hidden).float().log_softmax(-1)
        wanted = logits[:, 1 + step : rounds + step].log_softmax(-1)
        best = wanted.argmax(-1)
        hard = nn.functional.nll_loss(guess.flatten(0, 1), best.flatten())
        soft = -(wanted.exp() * guess).sum(-1).mean()
        losses.append(0.5 * hard + 0.5 * soft)
        agreements.append((guess.argmax(-1) == best).float())
    accepted = torch.stack(agreements).cumprod(0)  # a round ends at its first wrong token
    return torch.stack(losses), accepted.mean((1, 2))


def make_corpora(target: Gemma4ForCausalLM, text: Tensor, args: argparse.Namespace) -> dict[str, Tensor]:
    """The continuations trained on: greedy and sampled ones of short prompts, greedy ones of long prompts.

    The prompts are trained on as well: they are the share of text that the target did not write.
    """
    torch.manual_seed(args.seed)
    return {
        "greedy": continue_text(target, text, args.greedy, PROMPT, 0.0),
        "sampled": continue_text(target, text, args.sampled, PROMPT, 0.7),
        "long": continue_text(target, text, args.long, LONG_PROMPT, 0.0),
    }


def sample_batch(corpora: dict[str, Tensor], step: int, batch: int, generator: torch.Generator) -> Tensor:
    """Seven greedy continuations to each sampled one; at every LONG_EVERY-th step long ones, about as many tokens."""
    parts = {"greedy": batch - batch // 8, "sampled": batch // 8}
    if step % LONG_EVERY == LONG_EVERY - 1:
        parts = {"long": max(1, batch * (PROMPT + CONTINUATION) // (LONG_PROMPT + CONTINUATION))}
    drawn = [corpora[name][torch.randint(len(corpora[name]), (n,), generator=generator)] for name, n in parts.items()]
    return torch.cat(drawn)


def train(
    draft: Gemma4AssistantForCausalLM, target: Gemma4ForCausalLM, corpora: dict[str, Tensor], args: argparse.Namespace
) -> None:
    """Muon and AdamW as the target's; later steps of a round weigh less, for they count only if the first agree."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizers = make_optimizers(draft, args)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    lengths = [prompt + CONTINUATION for prompt in (PROMPT, LONG_PROMPT)]
    masks = {length: make_masks(length, target.config.sliding_window) for length in lengths}
    weights = 0.8 ** torch.arange(DRAFTED)
    step_losses = torch.compile(draft_losses, dynamic=False) if args.compile else draft_losses
    began, step, progress = time.monotonic(), 0, 0.0
    total = torch.zeros(DRAFTED)
    while progress < 1:
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * learning_rate(progress, args.warmup)
        ids = sample_batch(corpora, step, args.batch, generator)
        states, shared, logits = run_target(target, ids)
        embeddings = target.get_input_embeddings()(ids).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses, accepted = step_losses(draft, embeddings, states, shared, logits, masks[ids.shape[1]])
        (losses * weights).sum().backward()
        nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        total += accepted.detach()
        step += 1
        minutes = (time.monotonic() - began) / 60
        progress = max(step / args.steps, minutes / args.minutes if args.minutes else 0.0)
        if step % args.every == 0 or progress >= 1:
            mean = total / (step % args.every or args.every)
            line = {"step": step, "progress": round(progress, 4), "minutes": round(minutes, 2)}
            line |= {"losses": [round(loss, 3) for loss in losses.tolist()]}
            line |= {"survival": [round(share, 3) for share in mean.tolist()], "accepted": round(mean.sum().item(), 3)}
            print(json.dumps(line), flush=True)
            total.zero_()
            save_draft(draft, args.out)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, help="output of `bible -f gen1:1-rev22:21`; default: run that command")
    parser.add_argument("--target", type=Path, default=here)
    parser.add_argument("--out", type=Path, default=here / "draft")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--greedy", type=int, default=3072, help="greedy continuations to train on")
    parser.add_argument("--sampled", type=int, default=512, help="continuations at temperature 0.7")
    parser.add_argument("--long", type=int, default=256, help="greedy continuations of long prompts")
    parser.add_argument("--corpus", type=Path, help="keep the continuations in this file, and read it if it is there")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--minutes", type=float, help="end after as many, whatever the steps")
    parser.add_argument("--batch", type=int, default=16, help="sequences in each step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--muon-lr", type=float, default=5e-3)
    parser.add_argument("--warmup", type=float, default=0.03, help="share of the run")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=50, help="steps between lines of the log")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    target = Gemma4ForCausalLM.from_pretrained(args.target, dtype=torch.float32).eval().requires_grad_(False)
    target.generation_config.eos_token_id = None
    text = encode(AutoTokenizer.from_pretrained(args.target), split_chapters(read_chapters(args.text))[0])
    began = time.monotonic()
    if args.corpus and args.corpus.exists():
        corpora = torch.load(args.corpus)
    else:
        corpora = make_corpora(target, text, args)
        print(f"{sum(map(len, corpora.values()))} continuations in {time.monotonic() - began:.0f} s", flush=True)
        if args.corpus:
            torch.save(corpora, args.corpus)

    torch.manual_seed(args.seed)
    draft = build_draft(target.config)
    print(f"{draft.num_parameters()} parameters", flush=True)
    began = time.monotonic()
    train(draft, target, corpora, args)
    print(f"trained in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
