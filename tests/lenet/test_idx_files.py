"""Reading IDX files."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from lenet_helpers import idx

from lenet.idx import parse_idx, read_content
from lenet.messages import LenetError

BYTES = arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))


@given(BYTES)
def test_round_trip(array: np.ndarray) -> None:
    parsed = parse_idx(idx(array), array.ndim, Path("x"))
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, array)


@given(BYTES, st.data())
def test_truncated(array: np.ndarray, data: st.DataObject) -> None:
    content = idx(array)
    with pytest.raises(LenetError, match="^x: truncated, .* expected$"):
        parse_idx(content[: data.draw(st.integers(0, len(content) - 1))], array.ndim, Path("x"))


@given(BYTES, st.binary(min_size=1))
def test_trailing(array: np.ndarray, more: bytes) -> None:
    with pytest.raises(LenetError, match="^x: trailing bytes, .* expected$"):
        parse_idx(idx(array) + more, array.ndim, Path("x"))


@given(st.binary(min_size=4, max_size=4).filter(lambda magic: magic != b"\0\0\x08\x01"))
def test_magic(magic: bytes) -> None:
    with pytest.raises(LenetError, match=f"magic number 0x{magic.hex()} found, 0x00000801 expected"):
        parse_idx(magic + b"\0\0\0\0", 1, Path("x"))


def test_gzipped_or_not(tmp_path: Path) -> None:
    content = idx(np.arange(10, dtype=np.uint8))
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "packed").write_bytes(gzip.compress(content))
    assert read_content(tmp_path / "plain") == read_content(tmp_path / "packed") == content
