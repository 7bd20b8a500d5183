"""What every test may use. This folder is on the path, so `families` and `figures` can be imported from any test."""
