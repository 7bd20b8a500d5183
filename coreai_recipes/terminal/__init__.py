"""Whoever sits before the process: the standard streams, and being asked to stop. Light: it is imported first."""
