"""Core ML's .mlpackage: fragments converted by coremltools, linked into one ML Program, weights streamed beside it."""
