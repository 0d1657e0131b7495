"""The self-test, `python -m kernels check`: every operation on every backend that can run here, judged by NumPy in float64."""
