"""The .mlpackage folder: the model's description, the program, Manifest.json."""

import json
import uuid
from hashlib import sha256
from pathlib import Path
from typing import Any

from coreai_recipes.export.fragments import Port
from coreai_recipes.export.reporting import Signature
from coreai_recipes.protobuf import FeatureTypes_pb2, Model_pb2
from coreai_recipes.targets.coreml.version import SPECIFICATION_VERSION

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")


def new_model() -> Any:
    """The message of a program without functions yet, in the form of coremltools' own save_multifunction."""
    model = Model_pb2.Model(specificationVersion=SPECIFICATION_VERSION)
    model.mlProgram.version = 1
    return model


def describe_function(model: Any, name: str, signature: Signature) -> None:
    """Add a function's signature to the model's description."""
    description = model.description.functions.add(name=name)
    for ports, features in ((signature.inputs, description.input), (signature.outputs, description.output)):
        for port_name, port in ports.items():
            _describe(features.add(name=port_name).type.multiArrayType, port)
    for port_name, port in signature.states.items():
        _describe(description.state.add(name=port_name).type.stateType.arrayType, port)


def write_model(data: bytes, package: Path) -> None:
    """Write model.mlmodel, which is `data`, and Manifest.json under `package`.

    The manifest's identifiers are made from the content, where coremltools draws them at random.
    """
    (package / MODEL).parent.mkdir(parents=True, exist_ok=True)
    (package / MODEL).write_bytes(data)
    items = {
        "model.mlmodel": ("com.apple.CoreML/model.mlmodel", "CoreML Model Specification"),
        "weights": ("com.apple.CoreML/weights", "CoreML Model Weights"),
    }
    digest = sha256(data).digest()
    identifiers = {name: str(uuid.uuid5(uuid.UUID(bytes=digest[:16]), name)).upper() for name in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {
                "author": "com.apple.CoreML",
                "description": description,
                "name": name,
                "path": path,
            }
            for name, (path, description) in items.items()
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")


def _describe(array_type: Any, port: Port) -> None:
    types = FeatureTypes_pb2.ArrayFeatureType
    array_type.dataType = {"int32": types.INT32, "float16": types.FLOAT16, "float32": types.FLOAT32}[port.dtype]
    array_type.shape.extend(port.shape)
