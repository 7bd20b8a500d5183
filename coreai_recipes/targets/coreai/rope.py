"""Rotaries as Core AI's composite operation `rope`: a private graph that is declared to be one, and calls of it.

    before: %y = coreai_recipes.rope_of_positions(%x, %positions, inv_freq)
    after:  %y = invoke @rope_of_positions_8x64x128_f16(%x, %positions, %freqs)
            graph private noinline @rope_of_positions_8x64x128_f16(...) {composite_decl = "rope"}     one for each shape

The graph's body is the operation's meaning, as coreai-torch decomposes it: what a compiler has no kernel for.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from coreai_recipes.primitives.rotary_operation import OF_ANGLES, OF_POSITIONS

Lower = Callable[[Any, Any, Any], Any]
NAMES: Mapping[str, list[str]] = {OF_POSITIONS: ["input", "position_ids", "freqs"], OF_ANGLES: ["input", "cos", "sin"]}
WHOLE = 2**31 - 1  # an end beyond every axis
# as a module of coreai-torch's own has them that says nothing: `base` is not used where frequencies or angles are given
ATTRIBUTES = {"scale": 1.0, "base": 10000.0, "interleaved": False}


def register_rope(register: Callable[[str, Lower], None]) -> None:
    """Register the lowerings of both forms."""

    def of_positions(values: Any, node: Any, loc: Any) -> Any:
        from coreai._compiler.dialects import coreai

        x, positions = (values[each.name] for each in node.args[:2])
        return _called(OF_POSITIONS, [x, positions, coreai.constant(np.array(node.args[2], np.float32))])

    def of_angles(values: Any, node: Any, loc: Any) -> Any:
        return _called(OF_ANGLES, [values[each.name] for each in node.args])

    register(OF_POSITIONS, of_positions)
    register(OF_ANGLES, of_angles)


def _called(form: str, operands: list[Any]) -> Any:
    """A call of the form's graph, which comes into the module when it is first called."""
    from coreai._compiler.ir import InsertionPoint, RankedTensorType
    from coreai.authoring.graph_builder import invoke

    kind = RankedTensorType(operands[0].type)
    sizes = ["any" if size == RankedTensorType.get_dynamic_size() else str(size) for size in kind.shape[1:]]
    name = f"{form.rpartition(':')[2]}_{'x'.join(sizes)}_{kind.element_type}"
    caller = InsertionPoint.current.block.owner
    body = caller.parent.regions[0].blocks[0]
    if all(graph.sym_name.value != name for graph in body.operations):
        _declare(form, name, [each.type for each in operands], InsertionPoint.at_block_begin(body))
    (result,) = invoke([kind], name, operands)
    return result


def _declare(form: str, name: str, types: list[Any], place: Any) -> None:
    """The graph of the operation on values of these types."""
    from coreai._compiler.dialects import coreai
    from coreai._compiler.ir import Location
    from coreai_torch._composite_declaration import generate_composite_decl

    with Location.unknown():
        graph = coreai.GraphOp(
            name=name,
            input_types=types,
            result_types=[],
            input_names=NAMES[form],
            private=True,
            no_inline=True,
            composite_decl=generate_composite_decl(types[0].context, "rope", NAMES[form], ["output"], {**ATTRIBUTES}),
            ip=place,
        )
        with graph.block:
            x, *given = graph.arguments
            cos, sin = _angles(types[0], *given) if form == OF_POSITIONS else given
            turned = _turned(x, cos, sin)
        graph.set_outputs_spec_from_dict({"output": turned})


def _angles(kind: Any, positions: Any, freqs: Any) -> tuple[Any, Any]:
    """cos and sin (1, 1, S, D/2) of positions (1, S) times frequencies (D/2,), in float32, and rounded."""
    from coreai._compiler.dialects import coreai
    from coreai._compiler.ir import RankedTensorType

    from coreai_recipes.targets.coreai.weights import element

    _, _, S, D = RankedTensorType(kind).shape
    column = coreai.expand_dims(positions, [1, 3])
    wide = RankedTensorType.get([1, 1, S, 1], element("float32"))
    angles = coreai.broadcasting_mul(coreai.cast(column, wide), freqs)
    narrow = RankedTensorType.get([1, 1, S, D // 2], RankedTensorType(kind).element_type)
    return coreai.cast(coreai.cos(angles), narrow), coreai.cast(coreai.sin(angles), narrow)


def _turned(x: Any, cos: Any, sin: Any) -> Any:
    """x (1, H, S, D), its pairs (i, i + D/2) turned."""
    from coreai._compiler.dialects import coreai
    from coreai._compiler.ir import RankedTensorType

    kind = RankedTensorType(x.type)
    *rest, width = kind.shape
    half = RankedTensorType.get([*rest, width // 2], kind.element_type)

    def cut(begin: int, end: int) -> Any:
        places = [coreai.constant(place) for place in ([0, 0, 0, begin], [WHOLE, WHOLE, WHOLE, end], [1, 1, 1, 1])]
        return coreai.SliceOp(x, *places, results=[half]).result

    first, second = cut(0, width // 2), cut(width // 2, width)
    times = coreai.broadcasting_mul
    turned = coreai.broadcasting_sub(times(first, cos), times(second, sin))
    behind = coreai.broadcasting_add(times(second, cos), times(first, sin))
    return coreai.concat(3, [turned, behind])
