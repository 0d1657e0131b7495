"""The compile matrix: what NVRTC makes of the CuPy backend's kernels, the summaries, the exit status. For Triton's
kernels see test_triton_compiler.py."""

from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.compile import matrix
from benchmarks.compile.built import SHARED_LIMIT_UNASKED, Built, spills_in_loops, tensor_core_loops
from benchmarks.exercise import operations

BUILT = Built("triton", "90", "float16", "a_kernel", 4, 64, 0, 0, 1024, 49152, True)


@pytest.mark.parametrize(("target", "precision"), (("75", "float32"), ("120", "bfloat16")))
def test_cupys_kernels_fit(target: str, precision: str) -> None:
    pytest.importorskip("cupy")
    from benchmarks.compile.cupy import PRECISIONS, build

    calls = operations(PRECISIONS[precision])
    rows = build(target, precision, [calls[name] for name in ("conv2d, conv1", "linear, fc3", "softmax", "SGD")])
    by_name = {row.kernel: row for row in rows}
    assert set(by_name) >= {"conv2d_forward", "conv2d_weight_grad", "linear_forward", "softmax_backward", "sgd"}
    assert [row for row in rows if not row.fits] == []
    assert all(16 <= row.registers <= 255 for row in rows)
    assert by_name["conv2d_forward"].shared > 0  # dynamic
    assert by_name["linear_forward"].shared > 0  # static


@pytest.mark.parametrize(
    ("change", "status"),
    (
        ({}, 0),
        ({"spilled": 8}, 0),
        ({"spilled": 8, "spills_in_loops": 1}, 1),
        ({"spilled": 8, "spills_in_loops": 1, "target": "gfx942"}, 0),
        ({"shared": SHARED_LIMIT_UNASKED + 1}, 1),
    ),
    ids=str,
)
def test_summaries_and_exit_status(
    change: dict[str, int | str], status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [BUILT, BUILT._replace(registers=32, tensor_cores=False, **change)]
    monkeypatch.setattr(matrix, "build", lambda *_: rows)
    app = typer.Typer()
    app.command()(matrix.main)
    result = CliRunner().invoke(app, ["--backend", "triton", "--out", str(tmp_path)])
    assert result.exit_code == status, result.output
    by_kernel, by_target = pd.read_csv(tmp_path / "kernels.csv"), pd.read_csv(tmp_path / "targets.csv")
    assert by_kernel["variants"].sum() == by_target["variants"].sum() == 2
    assert by_target["registers"].max() == 64
    assert by_target["tensor_cores"].sum() == 1
    assert by_target["spilling"].sum() == ("spilled" in change)


def test_spills_are_counted_in_loops_only() -> None:
    lines = ("STL [R1], R3", "LDL R4, [R1]", "@!P0 BRA 0x00", "@P1 BRA 0x0070", "LDL.LU R3, [R1]", "EXIT", "BRA 0x0060")
    assembly = "\n".join(f"        /*{16 * n:04x}*/        {line};    /* 0xffff */" for n, line in enumerate(lines))
    assert spills_in_loops(assembly) == 2
    assert spills_in_loops(assembly.replace("0x00;", "0x10;")) == 1
    assert spills_in_loops(assembly.replace("0x00;", "0x20;")) == 0


def test_tables_keep_what_a_run_does_not_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(matrix.main)
    for target, registers in (("90", 64), ("gfx942", 80), ("80", 32), ("90", 48)):
        rows = [BUILT._replace(target=target, registers=registers), BUILT._replace(target=target, kernel="another")]
        monkeypatch.setattr(matrix, "build", lambda *_, rows=rows: rows)
        CliRunner().invoke(app, ["--backend", "triton", "--out", str(tmp_path)], catch_exceptions=False)
    by_kernel, by_target = pd.read_csv(tmp_path / "kernels.csv"), pd.read_csv(tmp_path / "targets.csv")
    assert [*by_kernel["target"]] == ["80", "80", "90", "90", "gfx942", "gfx942"]
    assert [*by_kernel["registers"]] == [32, 64, 48, 64, 80, 64]
    assert [*by_target["registers"]] == [64, 64, 80]


def test_what_is_unknown_is_refused() -> None:
    app = typer.Typer()
    app.command()(matrix.main)
    for option, value in (("--backend", "numpy"), ("--arch", "70"), ("--precision", "int8")):
        result = CliRunner().invoke(app, [option, value])
        assert result.exit_code == 2, result.output
        assert value in result.output


def test_products_are_counted_in_innermost_loops() -> None:
    lines = (
        "HMMA.16816.F32 R1, R2",
        "HGMMA.64x64x16.F32 R4, gdesc",
        "IADD R1, R2",
        "@P1 BRA 0x0010",
        "@P0 BRA 0x0000",
        "BRA 0x0050",
    )
    assembly = "\n".join(f"        /*{16 * n:04x}*/        {line};    /* 0xffff */" for n, line in enumerate(lines))
    assert tensor_core_loops(assembly) == [(3, 1, 64 * 64 * 16 // 4)]
    assert tensor_core_loops(assembly.replace("0x0010", "0x0000")) == [(4, 2, 64 * 64 * 16 // 4 + 16 * 8 * 16)]
