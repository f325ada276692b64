"""The benchmarks: each gives a dictionary of ratios; `scripts/benchmark.py` runs them by name."""
