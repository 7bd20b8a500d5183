"""Weights as others quantise them, dequantised while they stream: a file for each who writes such checkpoints."""
