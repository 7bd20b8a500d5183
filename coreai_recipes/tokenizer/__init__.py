"""Text and conversations to token ids, as transformers' tokenizer of the checkpoint makes them.

It needs tokenizers and jinja2 alone: what transformers knows beyond the checkpoint's files stands in tokens.json.
"""
