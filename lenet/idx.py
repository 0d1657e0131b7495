"""IDX, the file format of MNIST: two zero bytes, the element type, the number of dimensions, their sizes, the elements."""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lenet.messages import LenetError

UNSIGNED_BYTE = 8


def read_content(path: Path) -> bytes:
    """The bytes of a file, unpacked where they are gzipped. LenetError: missing, unreadable or damaged."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except FileNotFoundError:
        raise LenetError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LenetError(f"{path}: truncated or damaged gzip file ({error})") from error
    except OSError as error:
        raise LenetError(f"{path}: cannot be read ({error.strerror})") from error


def parse_idx(content: bytes, ndim: int, path: Path) -> NDArray[np.uint8]:
    """The array of unsigned bytes with `ndim` dimensions that `content` holds; `path` is named in the LenetError."""
    header = 4 + 4 * ndim
    if len(content) < header:
        raise LenetError(f"{path}: truncated, {len(content)} bytes found, a header of {header} expected")
    magic = bytes([0, 0, UNSIGNED_BYTE, ndim])
    if content[:4] != magic:
        raise LenetError(f"{path}: magic number 0x{content[:4].hex()} found, 0x{magic.hex()} expected")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, offset=4))
    found, expected = len(content) - header, prod(shape)
    if found != expected:
        what = "truncated" if found < expected else "trailing bytes"
        sizes = " x ".join(map(str, shape))
        raise LenetError(f"{path}: {what}, {found} bytes of data found, {sizes} = {expected} expected")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
