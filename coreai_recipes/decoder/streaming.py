"""The start of sequences through a Decoder whose table is too large to be held: the rows of their tokens are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from coreai_recipes.decoder.filling import Weight, fill_from
from coreai_recipes.decoder.model import PER_LAYER_TABLE, Decoder, empty, rows_of_tokens
from coreai_recipes.primitives.layer_inputs import LayerInputs

# The first hidden state (N, C, 1, S), the inputs of each kind's layers, the per-layer inputs (L, P, 1, S).
Start = tuple[Tensor, dict[str, LayerInputs], Tensor | None]


@contextmanager
def started(
    decoder: Decoder, weights: Mapping[str, Weight], sequences: Sequence[Sequence[int]]
) -> Iterator[Callable[[int], Start]]:
    """A function that gives what the first layer is given of each sequence, by its number, without caches. The modules
    before the layers are filled meanwhile, and empty again afterwards."""
    table = decoder.embedding
    ids, places = torch.unique(torch.tensor([*sequences]), return_inverse=True)  # (sequences, S)
    meta = table.weight
    table.weight = nn.Parameter(weights["embedding.weight"].read_rows(ids.tolist()).float(), requires_grad=False)
    for name, part in table.named_children():
        fill_from(part, weights, f"embedding.{name}.")
    rows = None
    if decoder.per_layer is not None and decoder.per_layer_table is not None:
        fill_from(decoder.per_layer, weights, "per_layer.")
        held = rows_of_tokens(ids, decoder.per_layer_table.num_embeddings)
        rows = weights[PER_LAYER_TABLE].read_rows(held.tolist()).float()
    call = decoder.front.call(places.shape[1], cached=False)
    position, count = (torch.tensor([n], dtype=torch.int32) for n in (0, places.shape[1]))

    def start(number: int) -> Start:
        of_sequence = places[number : number + 1]
        with torch.inference_mode():
            own = None if rows is None else rows[of_sequence]
            found: Start = decoder.front(call, of_sequence, position, count, own)
        return found

    try:
        yield start
    finally:
        table.weight = meta
        for part in table.children():
            empty(part)
        if decoder.per_layer is not None:
            empty(decoder.per_layer)
