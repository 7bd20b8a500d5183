"""The figures of docs/performance.md, measured here: `python -m bench [NAME...]`. Nothing here is a test."""
