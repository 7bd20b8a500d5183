"""A recipe as a torch module: its stacks of layers, what a call computes before them, states, filling."""
