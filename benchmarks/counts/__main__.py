"""`python -m benchmarks.counts`: what the kernels of a LeNet training step do."""

from benchmarks.command import run
from benchmarks.counts.counters import main

run(main)
