"""Our kernels against torch's: `python -m benchmarks` checks the values, then measures, prints, and writes results/."""
