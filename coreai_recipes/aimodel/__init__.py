"""Core AI's .aimodel on disk: its folder, MLIR's bytecode as far as weights lie in it, its graphs as data. A leaf."""
