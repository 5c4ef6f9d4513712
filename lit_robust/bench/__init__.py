"""Benchmarks side by side with peers, in one run: `lit-robust bench data`. Figures are kept in ``RESULTS.md``."""
