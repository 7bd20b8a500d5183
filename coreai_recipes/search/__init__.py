"""Widths for weights: what an error of each matrix costs, from one backward pass, and where bits are best spent."""
