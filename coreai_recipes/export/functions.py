"""All functions of a package: what of a recipe's stacks is in it."""

from collections.abc import Callable, Iterator, Sequence

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.anemll_program import AnemllProgram
from coreai_recipes.export.coreai_models_dynamic_program import CoreAIModelsDynamicProgram
from coreai_recipes.export.coreai_models_program import CoreAIModelsProgram
from coreai_recipes.export.decoder_program import DecoderProgram
from coreai_recipes.export.draft_program import DraftProgram
from coreai_recipes.export.fragments import Fragment
from coreai_recipes.export.linking import Linker, Models, Numbers
from coreai_recipes.export.reporting import Signature
from coreai_recipes.export.stack_program import StackProgram
from coreai_recipes.storage.chunks import Chunk, chunks_of


def programs_of(stacks: Sequence[StackModule], chunks: Sequence[Chunk], chunk: Chunk) -> Iterator[StackProgram]:
    """What each stack becomes in one of the packages."""
    for stack in stacks:
        match stack:
            case Decoder():
                match stack.recipe.export.host:
                    case "anemll":
                        yield AnemllProgram(stack, chunk)
                    case "coreai-models":
                        yield CoreAIModelsProgram(stack, chunk)
                    case "coreai-models-dynamic":
                        yield CoreAIModelsDynamicProgram(stack, chunk)
                    case None:
                        yield DecoderProgram(stack, chunks, chunk)
            case Draft() if chunk.drafts:
                yield DraftProgram(stack, stacks[0], chunk)
            case Draft():
                pass
            case _:
                raise TypeError(f"nothing is known of how {type(stack).__name__} is exported")


def fragments_of(stacks: Sequence[StackModule]) -> dict[str, Fragment]:
    """Every fragment that the functions of all packages need, by name."""
    chunks = chunks_of(stacks)
    return {
        fragment.name: fragment
        for chunk in chunks
        for program in programs_of(stacks, chunks, chunk)
        for fragment in program.fragments()
    }


def link_functions(
    stacks: Sequence[StackModule],
    chunks: Sequence[Chunk],
    chunk: Chunk,
    models: Models,
    new_linker: Callable[[str], Linker],
    numbers: Numbers,
) -> dict[str, Signature]:
    """Link each function of a package, by name, from the converted fragments `models`, with a linker of its own.

    `numbers` are the parameters that are no weights, by their names in a package: what of a checkpoint stands in the
    program itself.
    """
    return {
        name: program.link(name, models, new_linker(name), numbers)
        for program in programs_of(stacks, chunks, chunk)
        for name in program.functions
    }
