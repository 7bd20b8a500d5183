"""Programs that a benchmark starts in a process of their own, so that time and memory are theirs alone.

Each prints one JSON document as the last line of its standard output.
"""
