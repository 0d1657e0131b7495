"""Parser, argument placement, and the build of the executor."""

import os
import subprocess
import sys

import numpy as np
import ptxsim
import pytest
from ptxsim import buffers, native
from ptxsim.lowering import parse_immediate
from ptxsim.parser import parse, split_operands

PTX = """
.version 8.0
.target sm_80
.address_size 64
.file 1 "folder" "kernel.py"
.global .align 4 .b8 table[8] = {1, 0, 0, 0, 2};
/* a comment
   over two lines */
.visible .entry copy(
  .param .u64 .ptr .global .align 16 copy_param_0,
  .param .align 4 .b8 copy_param_1[12], .param .u32 copy_param_2 ) .reqntid 32, 1, 1
{
  .reg .b32 %r<4>;   // declares %r0..%r3
  .reg .b64 %rd<3>;
  .reg .pred %p<2>;
  .loc 1 7 3
  ld.param.u64 %rd1, [copy_param_0];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd1, %rd1, %rd2;
  { .reg .b32 %r1; mov.b32 %r1, 5; st.global.u32 [%rd1], %r1; }
  setp.lt.u32 %p1, %r1, 16;
  @!%p1 bra $done;
  st.global.v2.b16 [%rd1], {1, 2};
$done:
  ret;
}
"""


def test_parser():
    module = parse(PTX)
    assert (module.version, module.target) == ("8.0", "sm_80")
    kernel = module.functions["copy"]
    assert [(p.name, p.offset, p.size) for p in kernel.parameters] == [
        ("copy_param_0", 0, 8),
        ("copy_param_1", 8, 12),
        ("copy_param_2", 20, 4),
    ]
    assert kernel.required_threads == (32, 1, 1) and kernel.labels == {"$done": 9}
    branch = kernel.instructions[7]
    assert (branch.opcode, branch.guard, branch.guard_negated) == ("bra", "%p1", True)
    assert branch.source == ptxsim.SourceLine("kernel.py", 7)
    assert PTX.splitlines()[branch.ptx_line - 1].strip() == branch.text
    assert kernel.instructions[8].operands == ["[%rd1]", "{1, 2}"]


def test_nested_scope_has_its_own_registers():
    x = np.zeros(32, np.int32)
    ptxsim.launch(ptxsim.Module(PTX).kernels["copy"], 1, 32, [x, bytes(12), 0])
    assert x.tolist() == [0x20001] * 16 + [5] * 16


def test_global_initialiser():
    assert ptxsim.Module(PTX).globals["table"].data.view(np.int32).tolist() == [1, 2]


def test_split_operands():
    assert split_operands("{%a, %b}, [%c+4], 0f3F800000") == ["{%a, %b}", "[%c+4]", "0f3F800000"]


@pytest.mark.parametrize(
    "token, kind, bits",
    [
        ("0f3F800000", "f32", 0x3F800000),
        ("0f3F800000", "f64", 0x3FF0000000000000),
        ("0d3FF0000000000000", "f64", 0x3FF0000000000000),
        ("-1", "s32", -1),
        ("0x10", "u32", 16),
        ("017", "u32", 15),
        ("1.5", "f32", 0x3FC00000),
        ("4U", "u32", 4),
    ],
)
def test_immediates(token, kind, bits):
    assert parse_immediate(token, kind) == bits


def test_overlapping_arguments_share_a_segment_and_others_do_not():
    memory = np.zeros(1000, np.float32)
    views = [memory[:500], memory[100:200], memory[500:]]
    segments = buffers.build_segments([buffers.describe(v, str(k)) for k, v in enumerate(views)], [])
    assert [s.names for s in segments] == [["0", "1"], ["2"]]
    assert segments[1].device_begin % 256 == (500 * 4) % 256
    assert segments[1].device_begin - segments[0].device_begin > 1 << 35


def test_in_place_arguments_see_each_other():
    """Two names for one tensor: writes through one are races with reads through the other."""
    code = """.version 8.0
.target sm_80
.address_size 64
.visible .entry shift(.param .u64 a, .param .u64 b) {
  .reg .b32 %r<3>; .reg .b64 %rd<5>;
  ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b];
  mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4;
  add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;
  ld.global.u32 %r2, [%rd1+4]; st.global.u32 [%rd2], %r2; ret;
}"""
    kernel = ptxsim.Module(code).kernels["shift"]
    x = np.arange(65, dtype=np.int32)
    ptxsim.launch(kernel, 1, 64, [x, np.zeros(64, np.int32)], races=True)
    with pytest.raises(ptxsim.RaceFound):
        ptxsim.launch(kernel, 1, 64, [x, x], races=True)


def test_runs_are_deterministic_for_a_seed(cuda_module):
    x = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    kernel = cuda_module.get_function("reduce_sum").kernel

    def total(seed):
        out = np.zeros(1, np.float32)
        ptxsim.launch(kernel, 16, 256, [x, out, 4000], races="report", seed=seed)
        return out[0]

    assert len({float(total(3)) for _ in range(3)}) == 1
    assert len({float(total(seed)) for seed in range(8)}) > 1  # the order of the atomic additions differs


def test_missing_compiler_is_explained(tmp_path):
    script = "import ptxsim.native as n\ntry: n.build()\nexcept Exception as e: print(type(e).__name__, e)"
    environment = {**os.environ, "PTXSIM_CACHE": str(tmp_path), "PATH": str(tmp_path)}
    environment.pop("CXX", None)
    output = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True).stdout
    assert output.startswith("BuildError") and "g++" in output


def test_library_is_built_once():
    assert native.build() == native.build() and native.build().exists()
