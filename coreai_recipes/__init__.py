"""coreai-recipes: a language model described as data, built for the Apple Neural Engine, proven equal to transformers."""
