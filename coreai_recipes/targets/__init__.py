"""The formats that a package is written in, a folder each; none knows of another."""
