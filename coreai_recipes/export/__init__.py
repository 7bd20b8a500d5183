"""A decoder taken apart for a target: fragments, each converted once, and how they make up functions again."""
