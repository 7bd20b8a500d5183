"""Sources of weights: safetensors, GGUF and the hub, and the names that families give their tensors."""
