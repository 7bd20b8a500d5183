"""The benchmarks, one file each: `measure(options)` gives a Result."""
