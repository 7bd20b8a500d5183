"""How parameters lie in a package: a file for each way, and which parameter takes which."""
