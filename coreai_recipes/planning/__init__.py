"""What a recipe will be, before any weight is read: its cost, its program in outline, and a recipe for a checkpoint."""
