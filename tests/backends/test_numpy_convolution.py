"""Convolution in NumPy: the ways that only some shapes or some machines take, all exact on whole numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from judge import CONV2D, check, exact

import kernels.functional as F
from kernels.numpy import bands, conv2d, lowering, tile, workspaces
from kernels.numpy.geometry import geometry as sizes


@pytest.fixture(autouse=True)
def anew(backend: str) -> Iterator[None]:
    """NumPy alone, which remembers nothing of how it cut other tests' convolutions."""
    if backend != "numpy":
        pytest.skip("a way of NumPy's alone")
    forget()
    yield
    forget()


def forget() -> None:
    for remembering in (bands.parts, bands.bands_of_x, bands.bands_of_y):
        remembering.cache_clear()
    lowering.pieces_of.cache_clear()
    workspaces._kept.workspaces.clear()


def check_exactly(image: tuple[int, ...], weight: tuple[int, ...], order: Any = lambda x: x, **geometry: Any) -> None:
    inputs = [order(torch.randint(-3, 4, image).float()).requires_grad_()]
    inputs += [torch.randint(-3, 4, shape).float().requires_grad_() for shape in (weight, weight[:1])]
    operation = CONV2D._replace(sizes=exact)
    check(operation, *inputs, **geometry, make_dy=lambda y: torch.randint(-3, 4, y.shape).float())


@pytest.mark.parametrize("order", (lambda x: x, lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0)))
@pytest.mark.parametrize("geometry", ({}, {"stride": (2, 3)}, {"padding": 1}, {"groups": 2}), ids=str)
@pytest.mark.parametrize("batch", (1, 5, 70))
@pytest.mark.usefixtures("poisoned")
def test_windows_of_one_pixel(batch: int, geometry: dict[str, Any], order: Any) -> None:
    check_exactly((batch, 4, 5, 7), (6, 4 // geometry.get("groups", 1), 1, 1), order, **geometry)


GEOMETRIES = (
    {"padding": (0, 1)},
    {"stride": 2, "padding": (3, 1)},
    {"stride": (3, 4), "padding": 1},
    {"stride": (4, 2), "dilation": (2, 3), "padding": 2},
    {"dilation": (1, 2), "padding": 2},
)


@pytest.mark.parametrize(("of_a_band", "copied"), ((1, 0), (1 << 14, 0), (1 << 14, 1 << 20)))
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("maps", "weight"), ((6, (6, 1, 3, 2)), (6, (12, 2, 2, 3)), (3, (4, 3, 3, 3))), ids=str)
@pytest.mark.parametrize("batch", (1, 70))
@pytest.mark.usefixtures("poisoned")
def test_parts_of_the_groups_and_bands_of_the_rows(
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    maps: int,
    weight: Any,
    geometry: dict[str, Any],
    of_a_band: int,
    copied: int,
) -> None:
    """Some rows of x are in no window, some windows in the padding alone."""
    monkeypatch.setattr(bands, "BYTES", of_a_band)
    monkeypatch.setattr(tile, "COPIED", copied)
    check_exactly((batch, maps, 12, 13), weight, groups=maps // weight[1], **geometry)


@pytest.mark.parametrize("cut", (bands.bands_of_x, bands.bands_of_y))
def test_bands_cover_all_rows_once(cut: Any) -> None:
    g = sizes((32, 32), (16, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1)
    found = cut(g, 4 * 32)
    rows = [band.x if cut is bands.bands_of_x else band.y for band in found]
    assert 2 < len(found) < 32 and rows[0].start == 0 and rows[-1].stop == 32
    assert [at.start for at in rows[1:]] == [at.stop for at in rows[:-1]]
    assert len({band.g for band in found}) < len(found)


@pytest.mark.parametrize("long_row", (1, 1 << 20), ids=("folded", "lowered"))
@pytest.mark.parametrize("of_a_band", (1, 1 << 20))
@pytest.mark.parametrize(
    ("maps", "weight", "geometry"),
    (
        (6, (2, 6, 3, 3), {"padding": 1}),
        (4, (4, 2, 3, 5), {"padding": (1, 2), "groups": 2}),
        (3, (4, 3, 5, 3), {"padding": (4, 1), "dilation": (2, 1)}),
        (2, (2, 1, 3, 3), {"padding": 1, "groups": 2}),
    ),
    ids=str,
)
@pytest.mark.parametrize("batch", (9, 70))
@pytest.mark.usefixtures("poisoned")
def test_images_that_keep_their_size(
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    maps: int,
    weight: Any,
    geometry: dict[str, Any],
    of_a_band: int,
    long_row: int,
) -> None:
    """Their convolution is an input gradient, and their input gradient a convolution, with as many, more or fewer maps."""
    monkeypatch.setattr(bands, "BYTES", of_a_band)
    monkeypatch.setattr(conv2d, "LONG_ROW", long_row)
    monkeypatch.setattr(tile, "COPIED", 0)
    check_exactly((batch, maps, 7, 8), weight, **geometry)


def test_which_convolutions_are_folded() -> None:
    def is_folded(maps: int, of_y: int, columns: int, groups: int = 1) -> bool:
        weight = (of_y, maps // groups, 3, 3)
        return conv2d.is_folded(sizes((columns, columns), weight, (1, 1), (1, 1), (1, 1), groups), 32)

    assert is_folded(16, 16, 32) and is_folded(32, 16, 32) and not is_folded(16, 32, 32)
    assert is_folded(16, 8, 4) and not is_folded(16, 16, 4)  # rows of 128
    assert not is_folded(64, 64, 32)  # filtered
    assert not is_folded(8, 8, 32, groups=8)


def test_how_many_parts() -> None:
    def groups(maps: int, size: int, bytes_per_number: int) -> list[int]:
        g = sizes((size, size), (maps, 1, 3, 3), (1, 1), (1, 1), (1, 1), maps)
        cut = bands.parts(g, bytes_per_number)
        assert [part.inputs.start for part in cut[1:]] == [part.inputs.stop for part in cut[:-1]]
        return [part.g.groups for part in cut]

    assert groups(96, 16, 4 * 32) == [16] * 6
    assert groups(4, 16, 4 * 32) == [4]
    assert groups(3, 512, 4 * 32) == [1, 1, 1]


@pytest.mark.usefixtures("poisoned")
def test_pieces_and_transposing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pays where OpenBLAS has code for small matrices is right elsewhere, too."""
    for module in (lowering, tile):
        monkeypatch.setattr(module, "SMALL_PRODUCT", 10**6)
    assert lowering.pieces_of(1024, 2304) == 4
    check_exactly((32, 16, 8, 32), (16, 16, 3, 3), padding=1)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("batch", "copied"), ((1, 0), (3, 1 << 20)))
@pytest.mark.usefixtures("poisoned")
def test_narrow_rows_of_windows_together(
    monkeypatch: pytest.MonkeyPatch, batch: int, copied: int, geometry: dict[str, Any]
) -> None:
    monkeypatch.setattr(tile, "MANY_WEIGHTS", 1)
    monkeypatch.setattr(tile, "COPIED", copied)
    check_exactly((batch, 4, 12, 13), (6, 2, 3, 2), groups=2, **geometry)


def test_which_rows_of_windows_are_together() -> None:
    def are_together(n: int, size: int, maps: int) -> bool:
        g = sizes((size, size), (maps, maps, 3, 3), (1, 1), (1, 1), (1, 1), 1)
        return tile.are_together(g, n)

    assert are_together(1, 14, 256) and are_together(3, 14, 128)
    assert not are_together(4, 14, 256)  # a row has 56 columns
    assert not are_together(1, 14, 16)  # few weights
    assert not are_together(1, 47, 512)  # more than a cache holds


def test_patches_lie_as_in_torch() -> None:
    """Those of 4 x 4 pixels or more; other results have the batch innermost."""
    x = torch.randn(2, 3, 8, 8)
    for size, contiguous in ((4, True), (2, False)):
        assert F.conv2d(x, torch.randn(5, 3, size, size), stride=size).is_contiguous() == contiguous
    assert not F.conv2d(x, torch.randn(5, 3, 4, 4), stride=4, padding=1).is_contiguous()
    assert not F.conv2d(x, torch.randn(5, 3, 4, 4), stride=2).is_contiguous()
