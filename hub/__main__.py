"""`python -m hub OUT`: writes the repository for the Hugging Face Hub."""

import argparse
from pathlib import Path

from hub.layout import write

parser = argparse.ArgumentParser(prog="python -m hub", description=write.__doc__)
parser.add_argument("out", type=Path, metavar="OUT", help="the folder, which must not exist yet")
try:
    write(parser.parse_args().out)
except OSError as error:
    parser.exit(2, f"{parser.prog}: error: {error}\n")
