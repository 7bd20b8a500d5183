"""Which tensors of a checkpoint our parameters are made of, and how they are rewritten exactly."""
