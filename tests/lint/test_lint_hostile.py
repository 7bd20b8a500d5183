"""Programs that nobody wrote in good faith: one sentence or findings, never a fault of ours."""

import random
from pathlib import Path

import pytest
from coremltools.proto import Model_pb2

from coreai_recipes.errors import UserError
from coreai_recipes.lint.findings import lint
from coreai_recipes.lint.reading import open_subject
from coreai_recipes.report.rules import print_lint
from tests.evaluate.mil_programs import write_package
from tests.lint.rule_cases import CASES


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Programs of many sorts of operations, as their files have them."""
    folder = tmp_path_factory.mktemp("hostile")
    names = ("gather-dyn", "state-shift", "repeat-kv", "mask-inf", "crossing", "pq-lut", "slice-w4094", "f32-mid")
    found = []
    for name in names:
        case = CASES[name][0]
        package = write_package(folder / f"{name}.mlpackage", case.build, case.inputs, case.states)
        found.append(next(package.glob("Data/**/*.mlmodel")).read_bytes())
    return found


def holds(content: bytes, folder: Path) -> None:
    file = folder / "one.mlmodel"
    file.write_bytes(content)
    try:
        found = lint(open_subject(file))
    except UserError:
        return
    print_lint(found.to_json())
    assert all(finding.place.isprintable() for finding in found.findings)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_that_were_changed(contents: list[bytes], seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    for _ in range(40):
        content = bytearray(contents[seed])
        for _ in range(draw.choice((1, 2, 8))):
            content[draw.randrange(len(content))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        holds(bytes(content), tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_fields_that_contradict_each_other(contents: list[bytes], seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    for _ in range(40):
        model = Model_pb2.Model.FromString(contents[seed])
        (block,) = model.mlProgram.functions["main"].block_specializations.values()
        operations = [operation for operation in block.operations if operation.type != "const"]
        for _ in range(3):
            operation = draw.choice(operations)
            spoil = draw.randrange(6)
            if spoil == 0:
                del operation.outputs[:]
            elif spoil == 1 and operation.inputs:
                del operation.inputs[draw.choice(sorted(operation.inputs))]
            elif spoil == 2 and operation.inputs:
                del operation.inputs[draw.choice(sorted(operation.inputs))].arguments[:]
            elif spoil == 3 and operation.outputs:
                dimension = operation.outputs[0].type.tensorType.dimensions.add().constant
                dimension.size = draw.choice((0, 1, 2**63, 2**64 - 1))
            elif spoil == 4 and operation.outputs:
                del operation.outputs[0].type.tensorType.dimensions[:]
            else:
                operation.type = draw.choice(sorted({other.type for other in operations} | {"gather", "tile", "topk"}))
        holds(model.SerializeToString(), tmp_path)


def test_a_program_that_reads_what_nothing_gives_is_one_sentence(contents: list[bytes], tmp_path: Path) -> None:
    model = Model_pb2.Model.FromString(contents[0])
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    block.operations[-1].inputs["x"].arguments[0].name = "nowhere\n"
    file = tmp_path / "one.mlmodel"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError) as caught:
        open_subject(file)
    assert caught.value.problems == (
        f"{file}: function 'main': 'gather' reads 'nowhere\\n', which no operation before it gives",
    )
