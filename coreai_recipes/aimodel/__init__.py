"""Core AI's .aimodel on disk: its folder, and MLIR's bytecode as far as weights lie in it. A leaf."""
