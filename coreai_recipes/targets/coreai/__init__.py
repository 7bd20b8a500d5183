"""Core AI's .aimodel: fragments converted by coreai-torch, linked as graphs, weights streamed into the file."""
