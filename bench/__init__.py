"""The figures of docs/performance.md, measured on the machine at hand: `python -m bench [NAME...]`. Nothing here is a test."""
