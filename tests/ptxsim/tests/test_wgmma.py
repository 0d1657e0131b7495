"""wgmma: every layout in shared memory, types, registers as operands; what Triton makes of matmul; missing waits."""

import kernels_triton as kernels
import numpy as np
import ptx
import ptxsim
import pytest
import torch

SWIZZLES = {0: 0, 32: 3, 64: 2, 128: 1}  # bytes -> code in the descriptor
STEPS = 2  # instructions in a row, along K


def image(x: np.ndarray, swizzle: int, k_major: bool) -> tuple[np.ndarray, int, int]:
    """Shared memory that holds the matrix x (M or N by K) in a canonical layout of the PTX manual.

    Returns it with the leading and the stride byte offset. Two elements of K more than needed between the repeating
    patterns, and none between swizzled ones, make every stride differ from the others.
    """
    rows, k = x.shape
    t = 16 // x.itemsize
    wide = max(swizzle // 16, 1)
    mn, kk = np.meshgrid(np.arange(rows), np.arange(k), indexing="ij")
    if k_major and not swizzle:  # ((8,m),(T,2k)):((1T,SBO),(1,LBO))
        leading, stride = 8 * t, 8 * t * (k // t) + 8 * t
        element = mn % 8 * t + mn // 8 * stride + kk % t + kk // t * leading
    elif k_major:  # ((8,m),(T,2k)):((wide T,SBO),(1,T))
        leading, stride = t, 8 * wide * t
        assert k <= wide * t
        element = mn % 8 * wide * t + mn // 8 * stride + kk
    elif not swizzle:  # ((T,1,m),(8,k)):((1,T,SBO),(1T,LBO))
        stride, leading = 8 * t, 8 * t * (rows // t) + 8 * t
        element = mn % t + mn // t * stride + kk % 8 * t + kk // 8 * leading
    else:  # ((T,wide,m),(8,k)):((1,T,LBO),(wide T,SBO))
        stride = 8 * wide * t
        leading = stride * (k // 8)
        element = mn % (wide * t) + mn // (wide * t) * leading + kk % 8 * wide * t + kk // 8 * stride
    byte = element * x.itemsize
    byte ^= (byte >> 7 & wide - 1) << 4
    memory = np.zeros(byte.max() + x.itemsize, np.uint8).view(x.dtype)
    memory[byte // x.itemsize] = x
    return memory.view(np.uint8), leading * x.itemsize, stride * x.itemsize


def descriptor(address: int, leading: int, stride: int, swizzle: int) -> int:
    return address >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | SWIZZLES[swizzle] << 62


def kernel(n, k, kind, sums="f32", a_registers=False, tail="1, 1, 0, 0", keep="1") -> str:
    """Copies an image of shared memory, multiplies STEPS times, stores every thread's registers."""
    count = n // 2 if sums == "f32" else n // 4
    d = "{" + ", ".join(f"%d{r}" for r in range(count)) + "}"
    a = "{%a0, %a1, %a2, %a3}" if a_registers else "%adesc"
    store = "\n".join(f"st.global.b32 [%out+{4 * r}], %d{r};" for r in range(count))
    return f"""{ptx.HEADER}.extern .shared .align 1024 .b8 smem[];
.visible .entry k(.param .u64 image, .param .u32 bytes, .param .u64 a, .param .u64 b, .param .u64 step_a,
                  .param .u64 step_b, .param .u64 registers, .param .u64 out) {{
  .reg .b32 %d<{count}>; .reg .b32 %a<4>; .reg .b32 %i; .reg .b32 %t; .reg .b32 %v; .reg .b32 %bytes;
  .reg .b64 %in; .reg .b64 %at; .reg .b64 %adesc; .reg .b64 %bdesc; .reg .b64 %step; .reg .b64 %out; .reg .pred %p; .reg .pred %keep;
  mov.u32 %t, %tid.x; shl.b32 %i, %t, 2; ld.param.u64 %in, [image]; ld.param.u32 %bytes, [bytes];
COPY:
  cvt.u64.u32 %at, %i; add.u64 %at, %at, %in; ld.global.b32 %v, [%at]; mov.u32 %a0, smem; add.u32 %a0, %a0, %i;
  st.shared.b32 [%a0], %v; add.u32 %i, %i, 512; setp.lt.u32 %p, %i, %bytes; @%p bra COPY;
  ld.param.u64 %at, [registers]; mad.wide.u32 %at, %t, 16, %at;
  ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%at];
  ld.param.u64 %adesc, [a]; ld.param.u64 %bdesc, [b]; setp.ne.u32 %keep, {keep}, 0;
  {" ".join(f"mov.b32 %d{r}, 0;" for r in range(count))}
  fence.proxy.async.shared::cta;
  bar.sync 0;
  wgmma.fence.sync.aligned;
  wgmma.mma_async.sync.aligned.m64n{n}k{k}.{sums}.{kind}.{kind} {d}, {a}, %bdesc, %keep, {tail};
  ld.param.u64 %step, [step_a]; add.u64 %adesc, %adesc, %step; ld.param.u64 %step, [step_b]; add.u64 %bdesc, %bdesc, %step;
  setp.eq.u32 %keep, 0, 0;
  wgmma.mma_async.sync.aligned.m64n{n}k{k}.{sums}.{kind}.{kind} {d}, {a}, %bdesc, %keep, {tail};
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
  // after
  ld.param.u64 %out, [out]; mad.wide.u32 %out, %t, {4 * count}, %out;
  {store}
  ret;
}}"""


class Case:
    """A product of 64 by n, with the arguments of `kernel` for it."""

    def __init__(self, n=32, kind="f16", swizzle=128, a_k_major=True, b_k_major=True, a_registers=False):
        rng = np.random.default_rng(0)
        k = 8 if kind == "tf32" else 16
        dtype = np.float32 if kind == "tf32" else np.float16 if kind == "f16" else np.uint16
        numbers = [rng.integers(-8, 8, (rows, STEPS * k)).astype(np.float32) for rows in (64, n)]
        if a_registers:
            numbers[0] = np.tile(numbers[0][:, :k], STEPS)  # both instructions take the same registers
        self.a, self.b = numbers
        encode = (
            (lambda x: (x.view(np.uint32) >> 16).astype(np.uint16)) if kind == "bf16" else (lambda x: x.astype(dtype))
        )
        self.n, self.k = n, k
        parts, self.descriptors, self.steps, at = [], [], [], 0
        for x, k_major in ((self.a, a_k_major), (self.b, b_k_major)):
            # A swizzled row of K holds both steps if it is long enough; otherwise each step has an image of its own.
            together = not k_major or not swizzle or swizzle >= STEPS * k * np.dtype(dtype).itemsize
            first = encode(x if together else x[:, :k])
            memory, leading, stride = image(first, swizzle, k_major)
            memories = [memory] if together else [memory, image(encode(x[:, k:]), swizzle, k_major)[0]]
            padded = [np.pad(m, (0, -len(m) % 1024)) for m in memories]
            self.descriptors.append(descriptor(at, leading, stride, swizzle))
            if not together:
                step = len(padded[0])
            elif k_major:
                step = k * np.dtype(dtype).itemsize if swizzle else leading * k * np.dtype(dtype).itemsize // 16
            else:
                step = k // 8 * (stride if swizzle else leading)
            self.steps.append(step >> 4)
            parts += padded
            at += sum(map(len, padded))
        self.image = np.concatenate(parts)
        lane, register = np.arange(128)[:, None], np.arange(4)[None, :]
        row, pairs = lane // 32 * 16 + lane % 32 // 4 + 8 * (register & 1), 1 if kind == "tf32" else 2
        column = (lane % 4) * pairs + 4 * pairs * (register >> 1)
        encoded = encode(self.a)
        self.registers = np.stack([encoded[row, column + e] for e in range(pairs)], -1).view(np.uint32).squeeze(-1)

    def run(self, text: str, count: int, **options) -> np.ndarray:
        out = np.zeros((128, count), np.uint32)
        arguments = [self.image, len(self.image), *self.descriptors, *self.steps, self.registers, out]
        self.record = ptxsim.launch(
            ptxsim.Module(text).kernels["k"], 1, 128, arguments, shared=len(self.image), **{"races": True, **options}
        )
        return out

    def product(self, text: str, sums="f32", **options) -> np.ndarray:
        """D, put together from the threads' registers."""
        count = self.n // 2 if sums == "f32" else self.n // 4
        out = self.run(text, count, **options)
        thread, register = np.arange(128)[:, None], np.arange(self.n // 2)[None, :]
        row = thread // 32 * 16 + thread % 32 // 4 + 8 * (register >> 1 & 1)
        column = register // 4 * 8 + thread % 4 * 2 + (register & 1)
        result = np.zeros((64, self.n), np.float32)
        result[row, column] = out.view(np.float32 if sums == "f32" else np.float16)
        return result


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
def test_rows_along_k(kind, swizzle):
    case = Case(kind=kind, swizzle=swizzle)
    tail = "1, 1" if kind == "tf32" else "1, 1, 0, 0"
    np.testing.assert_array_equal(case.product(kernel(case.n, case.k, kind, tail=tail)), case.a @ case.b.T)


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("a_k_major, b_k_major", [(False, True), (True, False), (False, False)])
def test_transposed(swizzle, a_k_major, b_k_major):
    case = Case(n=128, swizzle=swizzle, a_k_major=a_k_major, b_k_major=b_k_major)
    tail = f"1, 1, {int(not a_k_major)}, {int(not b_k_major)}"
    np.testing.assert_array_equal(case.product(kernel(128, 16, "f16", tail=tail)), case.a @ case.b.T)


@pytest.mark.parametrize("kind, transposed", [("f16", 0), ("f16", 1), ("bf16", 0), ("tf32", None)])
def test_left_operand_in_registers(kind, transposed):
    case = Case(n=64, kind=kind, a_registers=True, b_k_major=not transposed)
    tail = "1, 1" if kind == "tf32" else f"1, 1, {transposed}"
    text = kernel(64, case.k, kind, a_registers=True, tail=tail)
    np.testing.assert_array_equal(case.product(text), case.a @ case.b.T)


def test_signs_and_former_sums():
    case = Case(n=256)
    product = case.a @ case.b.T
    np.testing.assert_array_equal(case.product(kernel(256, 16, "f16", tail="-1, 1, 0, 0")), -product)
    np.testing.assert_array_equal(case.product(kernel(256, 16, "f16", tail="-1, -1, 0, 0")), product)
    seven = kernel(256, 16, "f16").replace("mov.b32 %d9, 0;", "mov.b32 %d9, 0f40E00000;")
    assert np.count_nonzero(case.product(seven) - product) == 128
    np.testing.assert_array_equal(case.product(seven.replace("%keep, 1, 0", "%keep, 0, 0")), product)


def test_half_precision_sums():
    case = Case(n=16)
    product = case.product(kernel(16, 16, "f16", sums="f16"), sums="f16")
    np.testing.assert_array_equal(product, (case.a @ case.b.T).astype(np.float16))


@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_counters(swizzle):
    """Every swizzle reads 128 bytes at a time: A once, and B once for the four warps together."""
    case = Case(swizzle=swizzle)
    case.product(kernel(32, 16, "f16"))
    counters = case.record.counters
    assert counters.tensor_flops == {"f16": STEPS * 2 * 64 * 32 * 16}
    assert counters.by_class["tensor"] == 4 * (STEPS + 3)
    copied = len(case.image) // 128
    assert counters.shared_wavefronts - copied == STEPS * (64 + 32) * 32 // 128


# ---------------------------------------------------------------- missing synchronisation

WORKING = kernel(32, 16, "f16")


def without(text: str) -> str:
    assert text in WORKING
    return WORKING.replace(text, "")


@pytest.mark.parametrize("races", [False, True])
@pytest.mark.parametrize(
    "text, message",
    [
        (without("wgmma.wait_group.sync.aligned 0;"), "has not been waited for"),
        (without("wgmma.commit_group.sync.aligned;"), "has not been waited for"),
        (WORKING.replace("wait_group.sync.aligned 0", "wait_group.sync.aligned 1"), "has not been waited for"),
        (without("wgmma.fence.sync.aligned;"), "since the last wgmma.fence"),
        (WORKING.replace("setp.eq.u32 %keep", "add.f32 %d3, %d3, %d3; setp.eq.u32 %keep"), "has not been waited for"),
        (WORKING.replace("wgmma.commit", "st.shared.b32 [smem], %v; wgmma.commit"), "a wgmma still reads"),
    ],
)
def test_pending(text, message, races):
    with pytest.raises(ptxsim.DeviceFault, match=message) as caught:
        Case().run(text, 16, races=races)
    assert caught.value.kind == "pending-wgmma"


def test_registers_of_the_left_operand_are_pending():
    case = Case(n=8, a_registers=True)
    text = kernel(8, 16, "f16", a_registers=True, tail="1, 1, 0")
    with pytest.raises(ptxsim.DeviceFault) as caught:
        case.run(text.replace("wgmma.commit", "add.u32 %a1, %a1, 1; wgmma.commit"), 4)
    assert caught.value.kind == "pending-wgmma"


def test_a_move_renames_a_pending_register():
    """Compilers leave moves between wgmma and its wait; the assembler removes them."""
    text = WORKING.replace(".reg .b32 %i;", ".reg .b32 %i; .reg .b32 %x;")
    renamed = text.replace("wgmma.commit", "mov.b32 %x, %d5; wgmma.commit").replace("+20], %d5", "+20], %x")
    case = Case()
    np.testing.assert_array_equal(case.product(renamed), case.a @ case.b.T)
    with pytest.raises(ptxsim.DeviceFault) as caught:
        case.run(renamed.replace("wgmma.wait_group.sync.aligned 0;", ""), 16)
    assert caught.value.kind == "pending-wgmma"


@pytest.mark.parametrize(
    "text, kind",
    [
        (without("fence.proxy.async.shared::cta;"), "missing-proxy-fence"),
        (WORKING.replace("// after", "st.shared.b32 [smem], %a1;"), "write-after-read"),
    ],
)
def test_races(text, kind):
    with pytest.raises(ptxsim.RaceFound) as caught:
        Case().run(text, 16)
    assert kind in {race.kind for race in caught.value.races}
    assert all(
        "wgmma" in race.first_instruction + race.second_instruction for race in caught.value.races if race.kind == kind
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_missing_barrier(seed):
    with pytest.raises(ptxsim.DeviceFault):
        Case().run(without("  bar.sync 0;"), 16, seed=seed)


def test_the_reader_may_publish_what_others_wrote():
    case = Case()
    text = WORKING.replace(
        "fence.proxy.async.shared::cta;\n  bar.sync 0;", "bar.sync 0;\n  fence.proxy.async.shared::cta;"
    )
    assert text != WORKING
    np.testing.assert_array_equal(case.product(text), case.a @ case.b.T)


def test_outside_a_group_of_four_warps():
    text = WORKING.replace("wgmma.fence", "setp.lt.u32 %p, %t, 8; @%p wgmma.fence", 1)
    text = text.replace("wgmma.mma_async", "@%p wgmma.mma_async")
    with pytest.raises(ptxsim.DeviceFault) as caught:
        Case().run(text, 16)
    assert caught.value.kind == "invalid-warp-operation"


# ---------------------------------------------------------------- Triton


@pytest.mark.parametrize(
    "dtype, precision, tile, left, right",
    [
        (torch.float16, "ieee", (64, 64, 32), "row", "row"),
        (torch.float16, "ieee", (64, 64, 32), "column", "column"),
        (torch.float16, "ieee", (128, 16, 64), "column", "row"),
        (torch.float16, "ieee", (64, 256, 16), "row", "row"),
        (torch.bfloat16, "ieee", (128, 128, 64), "column", "row"),
        (torch.bfloat16, "ieee", (64, 32, 128), "row", "column"),
        (torch.float32, "tf32", (64, 64, 32), "row", "row"),
        (torch.float32, "tf32", (128, 32, 16), "row", "column"),
        (torch.float32, "tf32", (64, 16, 64), "column", "row"),
    ],
)
def test_matmul(dtype, precision, tile, left, right):
    torch.manual_seed(0)
    m, n, k = 130, 140, 96
    a = torch.randint(-8, 8, (m, k)).to(dtype)
    b = torch.randint(-8, 8, (k, n)).to(dtype)
    a = a if left == "row" else a.t().contiguous().t()
    b = b if right == "row" else b.t().contiguous().t()
    c = torch.zeros(m, n)
    with ptxsim.triton_device(arch=90, races=True) as device:
        compiled = kernels.matmul_strided[(-(-m // tile[0]), -(-n // tile[1]))](
            a, b, c, m, n, k, *a.stride(), *b.stride(), *tile, precision, num_stages=3
        )
    assert "wgmma.mma_async" in compiled.asm["ptx"]
    assert torch.equal(c, a.float() @ b.float())
    padded = -(-m // tile[0]) * tile[0] * -(-n // tile[1]) * tile[1] * -(-k // tile[2]) * tile[2]
    assert sum(device.launches[0].counters.tensor_flops.values()) == 2 * padded


@pytest.mark.parametrize(
    "dtype, precision", [(torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "tf32")]
)
def test_matmul_of_registers(dtype, precision):
    """What was computed goes to wgmma as registers."""
    torch.manual_seed(0)
    a, b, c = torch.randint(-8, 8, (64, 64)).to(dtype), torch.randint(-8, 8, (64, 64)).to(dtype), torch.zeros(64, 64)
    with ptxsim.triton_device(arch=90, races=True):
        compiled = kernels.matmul_strided[1, 1](
            a, b, c, 64, 64, 64, *a.stride(), *b.stride(), 64, 64, 32, precision, DOUBLE=True, num_stages=3
        )
    assert "}, {" in next(line for line in compiled.asm["ptx"].splitlines() if "wgmma.mma_async" in line)
    assert torch.equal(c, 2 * (a.float() @ b.float()))
