"""Hosts of other projects that a package can be written for: what they call, what they are told. Each is a file."""
