"""`python -m benchmarks.compile`: the compile matrix."""

from benchmarks.command import run
from benchmarks.compile.matrix import main

run(main)
