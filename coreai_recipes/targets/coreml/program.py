"""The model message: every function of a package, linked and described."""

from collections.abc import Sequence

from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.functions import link_functions
from coreai_recipes.export.linked import LinkedProgram
from coreai_recipes.export.linking import Numbers
from coreai_recipes.protobuf import Model_pb2
from coreai_recipes.storage.chunks import Chunk
from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.targets.coreml.linker import FunctionLinker
from coreai_recipes.targets.coreml.mlpackage import describe_function, new_model


def link_program(
    stacks: Sequence[StackModule],
    chunks: Sequence[Chunk],
    chunk: Chunk,
    converted: dict[str, bytes],
    layout: WeightLayout,
    numbers: Numbers,
) -> LinkedProgram:
    """Each function of a package, linked from `converted` fragments; the weights get their places in `layout`."""
    models = {name: Model_pb2.Model.FromString(data) for name, data in converted.items()}
    model = new_model()
    functions = model.mlProgram.functions
    signatures = link_functions(
        stacks, chunks, chunk, models, lambda name: FunctionLinker(layout, functions[name]), numbers
    )
    model.description.defaultFunctionName = next(iter(signatures))
    for name, signature in signatures.items():
        describe_function(model, name, signature)
    return LinkedProgram(model.SerializeToString(deterministic=True), signatures)
