"""The dynamic form that the Swift runner of Apple's coreai-models loads: one function whose lengths each call decides.

Its sources are the specification, as of commit 86b363dca67cf276c1a5c96eea5e4b57e3a0643c of
github.com/apple/coreai-models, under swift/Sources: CoreAIShared/Runtime/ModelStructure.swift (by which function it
knows the form), and of CoreAILanguageModels InferenceEngines/CoreAISequentialEngine.swift and
CoreAIPipelinedEngine.swift (the calls), KVCache+CoreAI.swift and Handlers/StateHandler+NDArray.swift (the caches).
docs/hosts.md says what follows.
"""

from dataclasses import dataclass

from coreai_recipes.hosts.coreai_models import Ports, bundle_files

MAIN = "main"
IDS, POSITIONS, LOGITS = "input_ids", "position_ids", "logits"
CACHES = ("keyCache", "valueCache")
OPEN = -1  # a size that each call decides, as the runtime describes it

FIRST_ROWS = 256  # of a cache, which is made twice as long whenever it is full
WHOLE_PROMPT, BATCH = 1024, 512  # tokens: a longer prompt is taken in batches


@dataclass(frozen=True)
class DynamicForm:
    """What decides the bundle: its name and its tokenizer's, the positions of a session, and the model's tokens."""

    name: str
    tokenizer: str
    context: int
    vocab_size: int


def ports_of(form: DynamicForm) -> tuple[Ports, Ports]:
    """Inputs and outputs of `main`. The positions are those of all tokens up to the last of the call."""
    inputs: Ports = {IDS: ("int32", (1, OPEN)), POSITIONS: ("int32", (1, OPEN))}
    return inputs, {LOGITS: ("float16", (1, OPEN, form.vocab_size))}


def files_of(form: DynamicForm, package: str) -> dict[str, str]:
    """The text of the files that the runner reads beside the asset and the tokenizer's."""
    functions = {"function_map": {MAIN: [MAIN]}}
    return bundle_files(form.name, form.tokenizer, form.context, form.vocab_size, package, functions)
