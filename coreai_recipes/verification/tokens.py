"""The tokens that every stage sees: plain English where the checkpoint has a tokenizer, else fixed random ids."""

from dataclasses import dataclass

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.errors import CheckpointError
from coreai_recipes.manifest.staging import temporary_folder

SEED = 20240229
MAX_PROMPT_TOKENS = 16
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):",
    "Once upon a time, in a small village by the sea,",
)
PASSAGE = """\
The Moon is the only natural satellite of the Earth. It orbits at an average distance of about 384,400 kilometres,
roughly thirty times the diameter of our planet, and it takes 27.3 days to complete one revolution. Because it turns
once about its own axis in exactly the same time, we always see the same side of it. The first people to walk on its
surface were Neil Armstrong and Buzz Aldrin, who landed in the Sea of Tranquillity on 20 July 1969, while Michael
Collins stayed in orbit. "That's one small step for man," Armstrong said, "one giant leap for mankind." Twelve people
have walked there so far; the last of them left in December 1972.

Tides are mostly its work. The side of the Earth that faces the Moon is pulled a little more strongly than the centre,
and the far side a little less, so that the oceans bulge in both directions. As the planet rotates beneath these two
bulges, most coasts have two high tides and two low tides every day. The friction of all this water slows the rotation
down: a day grows longer by some two milliseconds in a century, and the Moon drifts away by 3.8 centimetres a year. In
code, the length of a day after n centuries could be written as

    def day_length(n):
        return 86400 + 0.002 * n  # seconds
"""


@dataclass(frozen=True)
class Tokens:
    """`sequence` for the comparisons, `prompts` for greedy decoding, and where they come from."""

    sequence: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]
    origin: str


def choose_tokens(checkpoint: Checkpoint, vocab_size: int, length: int) -> Tokens:
    """`length` tokens of the passage, repeated as often as needed, and the four prompts, each shorter than that."""
    encoded = encode_texts(checkpoint, (PASSAGE, *PROMPTS))
    if encoded is None or not all(encoded) or max(max(ids) for ids in encoded) >= vocab_size:
        return random_tokens(vocab_size, length)
    passage, *prompts = encoded
    sequence, longest = (passage * (-(-length // len(passage))))[:length], min(MAX_PROMPT_TOKENS, length - 1)
    return Tokens(tuple(sequence), tuple(tuple(ids[:longest]) for ids in prompts), "an English passage")


def random_tokens(vocab_size: int, length: int) -> Tokens:
    """Fixed random ids, for a checkpoint without a tokenizer."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(vocab_size, (length + 4 * 8,), generator=generator).tolist()
    prompts = tuple(tuple(ids[length + 8 * i : length + 8 * i + min(8, max(length - 1, 1))]) for i in range(4))
    return Tokens(tuple(ids[:length]), prompts, "random ids: the checkpoint has no tokenizer that fits")


def encode_texts(checkpoint: Checkpoint, texts: tuple[str, ...]) -> list[list[int]] | None:
    """The ids of each text, None where the checkpoint has no tokenizer."""
    from tokenizers import Tokenizer

    with temporary_folder() as folder:
        try:
            checkpoint.write_tokenizer(folder)
        except CheckpointError:
            return None
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return [tokenizer.encode(text).ids for text in texts]
