"""A bundle on a user's text: perplexity, and KL divergence where the checkpoint is at hand."""
