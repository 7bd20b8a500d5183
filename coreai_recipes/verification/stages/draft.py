"""Stage `draft`: the recipe's draft against transformers', and its rounds against transformers' assisted generation.

Compared are the logits and the hidden state that it is given next, over several steps of a round, on the target's own
caches at several places; then, token for token, what is drafted and what is accepted, by our torch modules and by the
functions of the saved package where there is one. Where the target does not fit in memory the caches are random and
the rounds are left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.draft import Draft, step_names
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.states import state_specs, states_of
from coreai_recipes.hosts.logits import best, choices
from coreai_recipes.primitives.rotary import fold_order
from coreai_recipes.recipe.schema import DRAFT, Recipe
from coreai_recipes.running.program import SavedProgram
from coreai_recipes.running.speculation import Round, Speculator, seen_positions
from coreai_recipes.storage.chunks import drafting_states
from coreai_recipes.storage.reading import stored_weights
from coreai_recipes.verification.calls import Note
from coreai_recipes.verification.draft_reference import assisted_rounds, load_draft
from coreai_recipes.verification.figures import compare
from coreai_recipes.verification.greedy import fill_whole
from coreai_recipes.verification.memory import needs
from coreai_recipes.verification.reference import Reference
from coreai_recipes.verification.report import Figures, StageResult, figures_json, judge, number, skip
from coreai_recipes.verification.runtime import open_program
from coreai_recipes.verification.streamed import StreamedDecoder
from coreai_recipes.verification.subject import Subject

if TYPE_CHECKING:
    from coreai_recipes.running.speculation import Call

NAME = "draft"
PSNR_FLOOR, SNR_MIN_FLOOR = 100.0, 80.0
TOKENS = 48
PACKAGE_PSNR_FLOOR, PACKAGE_SNR_MIN_FLOOR = 90.0, 70.0
PLACES = 6
LONGEST = 1500  # positions of random caches: beyond every window that is known
NO_DRAFT = "no draft in this recipe"
NO_DRAFT_CHECKPOINT = "no checkpoint of the draft: pass one with --draft SRC"


def run(subject: Subject) -> StageResult:
    recipe = subject.recipe
    if recipe.draft is None:
        return skip(NAME, NO_DRAFT)
    checkpoint = subject.sources.get(DRAFT)
    if checkpoint is None:
        return skip(NAME, subject.missing.get(DRAFT, NO_DRAFT_CHECKPOINT))
    subject.close_packages()  # two models come into memory
    with torch.inference_mode():
        theirs = load_draft(recipe, checkpoint)
        if not subject.fits_in_memory:
            drafter = Draft.build(recipe)
            fill_from(drafter, bind_weights(drafter, checkpoint))
            figures = compare_steps(subject, theirs, drafter, _random_places(recipe, drafter))
            skipped = {"caches": "random", "rounds": f"skipped: {needs(subject.float32_bytes)}"}
            return _judge(subject, figures, skipped)
        target, ours = (
            Reference(recipe, subject.weights).fill_all(),
            OfTorch.fill(recipe, subject.weights, checkpoint),
        )
        figures = compare_steps(subject, theirs, ours.draft, _places(subject, target, ours))
        rounds = _compare_rounds(subject, target, theirs, ours)
    result = _judge(subject, figures, rounds)
    if result.passed and not all(rounds["equal"].values()):
        return StageResult(NAME, False, result.psnr_db, result.snr_min_db, result.floor_db, result.detail)
    return result


def _judge(subject: Subject, figures: list[Figures], rounds: dict[str, Any]) -> StageResult:
    """The verdict on our modules, and on the package's function `draft` where there is one to be run."""
    package: dict[str, Any] = {"skipped": "no package" if subject.package is None else "Core ML's states cannot be set"}
    wrong = None
    if subject.package is not None and DRAFT in subject.sources and subject.runtime != "coreml":
        found = compare_package(subject, subject.sources[DRAFT])
        lowest = min(found, key=lambda f: f.psnr_db)
        package = {"psnr_db": number(lowest.psnr_db), "snr_min_db": number(min(f.snr_min_db for f in found))}
        wrong = next((f for f in found if f.is_below(PACKAGE_PSNR_FLOOR, PACKAGE_SNR_MIN_FLOOR)), None)
    result = judge(NAME, figures, PSNR_FLOOR, SNR_MIN_FLOOR, {"positions": PLACES, "package": package, **rounds})
    if wrong is None or not result.passed:
        return result
    detail = {**result.detail, "first_below": figures_json(wrong)}
    return StageResult(NAME, False, result.psnr_db, result.snr_min_db, result.floor_db, detail)


def compare_package(subject: Subject, checkpoint: Checkpoint) -> list[Figures]:
    """The package's function `draft` against our module with the weights as stored, on random caches."""
    recipe = subject.recipe
    draft = Draft.build(recipe)
    fill_from(draft, stored_weights(recipe, checkpoint, DRAFT, subject.package))
    fold, kinds = recipe.export.rotary_fold, recipe.model.kinds
    folded = {owner: fold_order(kind.rotary, kind.attention.rotary_dim, fold) for owner, kind in kinds.items()}
    program, windows = open_program(subject, "float32"), windows_of(recipe, draft)
    embedding = StreamedDecoder(recipe, subject.stored_weights)
    held = drafting_states(recipe)
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for place in _random_places(recipe, draft):
        seen = {owner: seen_positions(window, place.end, place.end + 1, place.end) for owner, window in windows.items()}
        program.reset()
        for owner, spec in draft.owners.items():
            order, last = folded[owner], spec.layers - 1
            turned = True, recipe.model.kinds[owner].attention.k_eq_v  # keys always, values where they are keys
            saved = held[owner].of_layer(program.states, held[owner].layers - 1)
            pairs = zip(saved, spec.of_layer(place.states, last), turned, strict=True)
            for state, values, is_turned in pairs:
                state.copy_(values[..., list(order)] if order is not None and is_turned else values)
        inputs = {
            "input_ids": place.token.to(torch.int32),
            "last_hidden": place.hidden,
            "position": torch.tensor([place.end], dtype=torch.int32),
            **{f"seen_{owner}": torch.tensor([count], dtype=torch.int32) for owner, count in seen.items()},
        }
        token, hidden = place.token, place.hidden
        for logits, next_hidden in _steps_of_package(program, inputs, draft):
            ours = draft(embedding.embed(token), hidden, place.end, seen, place.states)
            for name, pair in {"logits": (ours[0], logits), "hidden": (ours[1], next_hidden)}.items():
                rows.setdefault(f"package.{name}", []).append((pair[0][0], pair[1][0].float()))
            token, hidden = torch.tensor([[best(logits[0, 0])]]), next_hidden
    return [compare(name, *(torch.cat(side) for side in zip(*pairs, strict=True))) for name, pairs in rows.items()]


def _steps_of_package(
    program: SavedProgram, inputs: Mapping[str, Tensor], draft: Draft
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits (1, 1, V) and the hidden state (1, 1, C) of each step of a call, which may be values inside."""
    names = step_names(draft.spec.steps)
    wanted, shown = {name for pair in names for name in pair}, dict[str, Tensor]()

    def look(name: str, value: Tensor, _: str) -> None:
        if name in wanted:
            shown[name] = value.clone()

    program.call(DRAFT, inputs, look)
    for logits, hidden in names:
        yield choices({"logits": shown[logits]}, draft.spec.vocab_size)[None], shown[hidden]


@dataclass(frozen=True)
class Place:
    """A target that has processed `end` positions and picked `token` (1, 1): its last hidden state (1, 1, C), its keys
    and values as transformers hands them to a draft and as our states hold them, and the embedding of a token
    (1, 1, C) by either."""

    end: int
    token: Tensor
    hidden: Tensor
    shared: dict[str, tuple[Tensor, Tensor]]
    states: dict[str, Tensor]
    embed: Callable[[Tensor], Tensor]
    our_embed: Callable[[Tensor], Tensor]


class OfTorch:
    """The functions of a package by our torch modules, as a Speculator calls them."""

    def __init__(self, decoder: Decoder, draft: Draft) -> None:
        self.decoder, self.draft = decoder, draft
        self.reset()

    @classmethod
    def fill(cls, recipe: Recipe, target: Checkpoint, draft: Checkpoint) -> "OfTorch":
        """Both models with their checkpoints' weights."""
        drafter = Draft.build(recipe)
        fill_from(drafter, bind_weights(drafter, draft))
        return cls(fill_whole(recipe, target, recipe.export.context), drafter)

    @classmethod
    def fill_as_stored(cls, subject: Subject, draft: Checkpoint) -> "OfTorch":
        """Both with the weights as the package gives them back."""
        recipe, drafter = subject.recipe, Draft.build(subject.recipe)
        fill_from(drafter, stored_weights(recipe, draft, DRAFT, subject.package))
        return cls(fill_whole(recipe, subject.stored_weights, recipe.export.context), drafter)

    def reset(self) -> None:
        self.states = self.decoder.make_states()

    def rounds(self, prompt: Sequence[int], tokens: int) -> list[Round]:
        self.reset()
        return rounds_of(self, self.draft, prompt, tokens)

    def __call__(self, function: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids, position = inputs["input_ids"], int(inputs["position"])
        if function == "draft":
            seen = {name.removeprefix("seen_"): int(n) for name, n in inputs.items() if name.startswith("seen_")}
            embedded = self.decoder.embedding(ids)
            logits, hidden = self.draft(embedded, inputs["last_hidden"], position, seen, self.states)
            return {"logits": logits, "hidden": hidden}
        count = int(inputs["count"]) if "count" in inputs else 1
        x = self.decoder.hidden(ids, position, count, self.states)
        if function == "prefill":
            x = x[..., count - 1 : count]
        return {"logits": self.decoder.logits(x), "hidden": self.decoder.norm(x).squeeze(2).transpose(1, 2)}


def windows_of(recipe: Recipe, draft: Draft) -> dict[str, int | None]:
    """The window of each kind of the target that a draft reads, None for full ones."""
    return {owner: state.window for owner, state in draft.owners.items()}


def draft_windows(recipe: Recipe) -> dict[str, int | None]:
    """As `windows_of`, of the recipe's draft; empty where it has none."""
    return {} if recipe.draft is None else windows_of(recipe, Draft.build(recipe))


def call_draft(
    program: SavedProgram, windows: Mapping[str, int | None], token: int, end: int, hidden: Tensor, note: Note | None
) -> None:
    """Have a package draft behind `token`, which follows `end` positions that the target has processed, the last of
    them with `hidden` (1, 1, C). `note` is told each float value."""
    counts = {f"seen_{kind}": [seen_positions(window, end, end + 1, end)] for kind, window in windows.items()}
    given = {"input_ids": [[token]], "position": [end], **counts}
    inputs = {name: torch.tensor(value, dtype=torch.int32) for name, value in given.items()}

    def watch(name: str, value: Tensor, operation: str) -> None:
        if note is not None and value.is_floating_point():
            note(NAME, name, value)

    program.call(NAME, {**inputs, "last_hidden": hidden}, watch)


def rounds_of(call: "Call", draft: Draft, prompt: Sequence[int], tokens: int) -> list[Round]:
    """Greedy rounds, by calls on empty states."""
    recipe = draft.recipe
    queries, context, vocab_size = recipe.export.functions.queries, recipe.export.context, recipe.model.vocab_size
    speculator = Speculator(call, windows_of(recipe, draft), queries, context, vocab_size)
    return list(speculator.rounds(prompt, tokens, best))


def compare_steps(subject: Subject, theirs: nn.Module, draft: Draft, places: Iterable[Place]) -> list[Figures]:
    """Logits and hidden states of the steps of a round, each step from transformers' own hidden state before it."""
    windows = windows_of(subject.recipe, draft)
    steps = (subject.recipe.export.functions.score or 2) - 1
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for done, place in enumerate(places, 1):
        end, token, hidden = place.end, place.token, place.hidden
        seen = {owner: seen_positions(window, end, end + 1, end) for owner, window in windows.items()}
        for step in range(steps):
            answer: Any = theirs(
                inputs_embeds=torch.cat((place.embed(token), hidden), -1),
                attention_mask=torch.ones(1, end + 1),
                position_ids=torch.tensor([[end]]),
                shared_kv_states=place.shared,
            )
            embedded = place.our_embed(token).transpose(1, 2).unsqueeze(2)  # (1, C, 1, 1)
            logits, next_hidden = draft(embedded, hidden, end, seen, place.states)
            rows.setdefault(f"step {step}.logits", []).append((answer.logits[0], logits[0]))
            rows.setdefault(f"step {step}.hidden", []).append((answer.last_hidden_state[0], next_hidden[0]))
            hidden, token = answer.last_hidden_state, answer.logits.argmax(-1)
        subject.progress(NAME, done, PLACES)
    return [compare(name, *(torch.cat(side) for side in zip(*pairs, strict=True))) for name, pairs in rows.items()]


def _places(subject: Subject, target: nn.Module, ours: OfTorch) -> Iterator[Place]:
    """Places in the text that the stages compare, with what the target makes of it up to there."""
    from transformers import DynamicCache

    ids, decoder = subject.tokens.sequence, ours.decoder
    for end in sorted({max(2, len(ids) * (i + 1) // PLACES) - 1 for i in range(PLACES)}):
        found: Any = target(
            input_ids=torch.tensor([ids[:end]]),
            past_key_values=DynamicCache(config=target.config),
            output_hidden_states=True,
            return_shared_kv_states=True,
        )
        ours.reset()
        for start in range(0, end, 64):
            chunk = torch.tensor([ids[start : min(end, start + 64)]])
            decoder.hidden(chunk, start, chunk.shape[1], ours.states)
        yield Place(
            end,
            torch.tensor([[ids[end]]]),
            found.hidden_states[-1][:, -1:],
            found.shared_kv_states,
            ours.states,
            target.get_input_embeddings(),  # type: ignore[operator]
            lambda token: decoder.embedding(token).squeeze(2).transpose(1, 2),
        )


def _random_places(recipe: Recipe, draft: Draft) -> Iterator[Place]:
    """Places of a target that does not fit in memory: random keys, values, hidden states and embeddings."""
    generator = torch.Generator().manual_seed(0)
    hidden_size, longest = recipe.model.hidden_size, min(recipe.export.context - 1, LONGEST)

    def embed(token: Tensor) -> Tensor:
        of_token = torch.Generator().manual_seed(int(token))
        return torch.randn(1, 1, hidden_size, generator=of_token)

    for index in range(PLACES):
        end = max(1, longest * (index + 1) // PLACES)
        states = {name: torch.zeros(state.shape) for name, state in states_of(state_specs(recipe)).items()}
        shared: dict[str, tuple[Tensor, Tensor]] = {}
        for owner, state in draft.owners.items():
            held = min(end, state.rows)
            positions = torch.arange(end - held, end)
            both = torch.randn(2, state.num_kv_heads, held, state.head_dim, generator=generator)
            for rows, values in zip(state.of_layer(states, state.layers - 1), both, strict=True):
                rows[:, positions % state.rows] = values
            shared[f"{recipe.model.kinds[owner].attention.kind}_attention"] = both[0][None], both[1][None]
        token = torch.randint(recipe.model.vocab_size, (1, 1), generator=generator)
        hidden = torch.randn(1, 1, hidden_size, generator=generator)
        yield Place(end, token, hidden, shared, states, embed, embed)


def _compare_rounds(subject: Subject, target: nn.Module, theirs: nn.Module, ours: OfTorch) -> dict[str, Any]:
    """Rounds of four prompts: ours beside transformers', and the package's beside ours with the weights as stored."""
    recipe, functions = subject.recipe, subject.recipe.export.functions
    stored = package = None
    if subject.package is not None and DRAFT in subject.sources and subject.runtime != "coreml":
        stored = OfTorch.fill_as_stored(subject, subject.sources[DRAFT])
        package = open_program(subject, "float32")
    equal = {"torch": True} if package is None else {"torch": True, "package": True}
    accepted, calls, parted = 0, 0, []
    prompts = subject.tokens.prompts
    for index, prompt in enumerate(prompts):
        tokens = min(TOKENS, recipe.export.context - len(prompt))
        pairs = {
            "torch": (
                assisted_rounds(target, theirs, prompt, tokens, (functions.score or 2) - 1),
                ours.rounds(prompt, tokens),
            )
        }
        if package is not None and stored is not None:
            package.reset()
            pairs["package"] = stored.rounds(prompt, tokens), rounds_of(package.call, ours.draft, prompt, tokens)
        accepted += sum(r.accepted for r in pairs["torch"][0])
        calls += len(pairs["torch"][0]) - 1
        for name, (expected, found) in pairs.items():
            if found != expected:
                equal[name] = False
                parted.append(f"{name}: prompt {index}: {_first_difference(expected, found)}")
        subject.progress(f"{NAME}: rounds", index + 1, len(prompts))
    return {
        "equal": equal,
        "prompts": len(prompts),
        "tokens": TOKENS,
        "accepted_per_round": round(accepted / max(calls, 1), 3),
        "not_equal": parted,
    }


def _first_difference(theirs: Sequence[Round], ours: Sequence[Round]) -> str:
    for index, (one, other) in enumerate(zip(theirs, ours, strict=False)):
        if one != other:
            return f"round {index}: expected {one}, found {other}"
    return f"{len(theirs)} rounds expected, {len(ours)} found"
