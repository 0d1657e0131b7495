"""What several tests of `lenet` share."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class Outcome(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


def idx(array: np.ndarray) -> bytes:
    """`array` of unsigned bytes as an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights in the checkpoint of the run in `out`."""
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refused(outcome: Outcome, *fragments: object) -> None:
    """`outcome` is one line of error, exit status 2, and names each of `fragments`."""
    assert outcome.status == 2
    assert outcome.err.startswith("lenet: error: ") and outcome.err.count("\n") == 1 and outcome.err.endswith("\n")
    for fragment in fragments:
        assert str(fragment) in outcome.err


def metrics(out: Path) -> list[dict[str, float]]:
    """The metrics of the run in `out`, without the times."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("seconds", "images_per_second")} for line in lines]
