"""Fields of a protobuf message changed at random: other scalars, entries removed or repeated."""

import random
from typing import Any

WORDS = (
    "x",
    "input_ids",
    "logits",
    "kv_full",
    "kinds",
    "decode",
    "hidden_1",
    "",
    "../x",
    "@model_path/weights/weight.bin",
)
INTEGERS = (0, 1, -1, 2, 3, 7, 63, 64, 65, 1000, 2**20, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))


def change_message(message: Any, chance: random.Random) -> str:
    """Change one field somewhere in `message`, and say which."""
    path = []
    for _ in range(60):
        fields = message.ListFields()
        if not fields:
            break
        # the functions and their operations are where most of it is
        field, value = chance.choice(fields)
        path.append(field.name)
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            key = chance.choice(sorted(value))
            if chance.random() < 0.1:
                del value[key]
                break
            if field.message_type.fields_by_name["value"].message_type is None:
                break
            message = value[key]
        elif field.is_repeated:
            index = chance.randrange(len(value))
            act = chance.random()
            if act < 0.1:
                del value[index]
                break
            if act < 0.15:
                value.append(value[index])
                break
            if field.message_type is None:
                value[index] = _other_scalar(field, chance)
                break
            message = value[index]
        elif field.message_type is not None:
            if chance.random() < 0.05:
                message.ClearField(field.name)
                break
            message = value
        else:
            setattr(message, field.name, _other_scalar(field, chance))
            break
    return ".".join(path[-4:])


def _other_scalar(field: Any, chance: random.Random) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        return chance.randbytes(8) if field.type == field.TYPE_BYTES else chance.choice(WORDS)
    if field.cpp_type == field.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return chance.choice((0.0, -1.0, 1e30, float("inf"), float("nan")))
    if field.cpp_type == field.CPPTYPE_ENUM:
        return chance.choice([value.number for value in field.enum_type.values])
    bits = 31 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 63
    fitting = [n for n in INTEGERS if -(2**bits) <= n < 2**bits]
    unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    return chance.choice([n for n in fitting if n >= 0 or not unsigned])
