"""Measure the draft as generate() uses it: tokens accepted a round on the held-out prompts of prompts.json.

python measure.py                       # beside the files
python measure.py --target elsewhere    # with elsewhere/draft, or --draft
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import Gemma4AssistantForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig

HERE = Path(__file__).parent


def allow_models_that_share_every_layer() -> None:
    """Let transformers 5.23.0 build a draft: all of its layers read the target's keys and values.

    There `kv_sharing_modes` refuses a model in which no layer stores a cache of its own; 5.22.0 did not.
    """
    original = Gemma4TextConfig.kv_sharing_modes.fget

    def kv_sharing_modes(self: Gemma4TextConfig) -> list[str | None]:
        if self.num_kv_shared_layers and self.num_kv_shared_layers == self.num_hidden_layers:
            return ["reuse"] * self.num_hidden_layers
        return original(self)

    Gemma4TextConfig.kv_sharing_modes = property(kv_sharing_modes)


def load_draft(path: Path) -> Gemma4AssistantForCausalLM:
    """The draft in float32, on any transformers that has the class."""
    allow_models_that_share_every_layer()
    return Gemma4AssistantForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


class CallCounter:
    """Counts the calls of a model's forward while it is entered."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.calls = 0
        self._model = model

    def __enter__(self) -> "CallCounter":
        self._hook = self._model.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _count(self, *_: object) -> None:
        self.calls += 1


@torch.no_grad()
def continue_prompt(
    target: Gemma4ForCausalLM, prompt: Tensor, new_tokens: int, draft: Gemma4AssistantForCausalLM | None = None
) -> tuple[list[int], int]:
    """The greedy continuation of `prompt`, (1, tokens), and the target's calls after the one that read the prompt."""
    options = {"do_sample": False, "max_new_tokens": new_tokens, "assistant_model": draft}
    with CallCounter(target) as counter:
        # The mask says that END, which also pads, is text here.
        sequence = target.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return sequence[0, prompt.shape[1] :].tolist(), counter.calls - 1


@torch.no_grad()
def count_rounds(
    target: Gemma4ForCausalLM, draft: Gemma4AssistantForCausalLM, prompt: list[int], new: list[int]
) -> int:
    """The rounds that a runtime needs for `new` if the draft reads no row but those of accepted tokens.

    After a rejection generate() of transformers 5.23.0 leaves rejected tokens' keys and values among those that the
    draft reads: one row in full layers, up to four in sliding ones. Here round p reads rows before p, and of the
    sliding kind the last `sliding_window` of them.
    """
    ids = torch.tensor([prompt + new])
    output = target(ids, use_cache=False, output_hidden_states=True, return_shared_kv_states=True)
    embed, states, shared = target.get_input_embeddings(), output.hidden_states[-1], output.shared_kv_states
    rounds, last, end = 0, len(prompt), ids.shape[1] - 1  # `last` is the newest token's position
    while last < end:
        first = {"full_attention": 0, "sliding_attention": max(0, last - target.config.sliding_window)}
        rows = {kind: tuple(rows[:, :, first[kind] : last] for rows in pair) for kind, pair in shared.items()}
        token, state, position = ids[:, last : last + 1], states[:, last - 1 : last], torch.tensor([[last]])
        for _ in range(min(draft.generation_config.num_assistant_tokens, end - last - 1)):
            inputs = torch.cat([embed(token), state], dim=-1)
            guess = draft(inputs_embeds=inputs, position_ids=position, shared_kv_states=rows)
            token, state = guess.logits.argmax(-1), guess.last_hidden_state
            if token.item() != ids[0, last + 1]:
                break
            last += 1
        rounds, last = rounds + 1, last + 1  # the target's own token
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=HERE)
    parser.add_argument("--draft", type=Path, help="default: the folder `draft` of the target")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.json")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--assistant-tokens", type=int, default=4, help="drafted in each round")
    args = parser.parse_args()

    torch.set_num_threads(1)
    target = Gemma4ForCausalLM.from_pretrained(args.target, dtype=torch.float32).eval()
    draft = load_draft(args.draft or args.target / "draft")
    draft.generation_config.num_assistant_tokens = args.assistant_tokens
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    target.generation_config.eos_token_id = None  # every continuation has the full length

    tokens = calls = clean = same = 0
    prompts = json.loads(args.prompts.read_text())["prompts"]
    for prompt in prompts:
        ids = torch.tensor([prompt])
        plain, _ = continue_prompt(target, ids, args.new_tokens)
        assisted, rounds = continue_prompt(target, ids, args.new_tokens, draft)
        # The prompt's own call yields the first token; each later call yields one, plus what it accepted.
        print(f"{len(assisted)} tokens in {rounds} calls, accepted {(len(assisted) - 1) / rounds - 1:.3f} a call")
        tokens, calls, same = tokens + len(assisted) - 1, calls + rounds, same + (plain == assisted)
        clean += count_rounds(target, draft, prompt, plain)
    print(f"{same} of {len(prompts)} continuations equal plain greedy decoding")
    print(f"accepted {tokens / calls - 1:.3f} of {args.assistant_tokens} drafted tokens a call")
    print(f"accepted {tokens / clean - 1:.3f} if the draft never reads a rejected token's keys and values")


if __name__ == "__main__":
    main()
