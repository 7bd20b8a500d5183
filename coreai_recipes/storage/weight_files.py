"""What holds the weights of a package, by its format: an .aimodel's lie in its program. A leaf."""

WEIGHT_FILES = {"coreml": "weight.bin", "coreai": "main.mlirb"}
