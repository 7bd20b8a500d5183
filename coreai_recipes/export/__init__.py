"""Decoder -> .mlpackage: each kind is converted once, the copies are linked, the weights are streamed in."""
