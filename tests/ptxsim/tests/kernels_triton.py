"""Triton kernels used by the tests."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out + i, tl.load(x + i, mask=mask) + tl.load(y + i, mask=mask), mask=mask)


@triton.jit
def add_unmasked_store(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out + i, tl.load(x + i, mask=mask) + tl.load(y + i, mask=mask))


@triton.jit
def add_unmasked_load(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out + i, tl.load(x + i) + tl.load(y + i, mask=mask), mask=mask)


@triton.jit
def sum_atomic(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out, tl.sum(tl.load(x + i, mask=i < n, other=0.0)))


@triton.jit
def sum_racy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out, tl.load(out) + tl.sum(tl.load(x + i, mask=i < n, other=0.0)))


@triton.jit
def overlapping_store(x, out, n, BLOCK: tl.constexpr):
    """Each program also writes the first element of its neighbour."""
    pid = tl.program_id(0)
    i = pid * (BLOCK - 1) + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out + i, tl.load(x + i, mask=mask) + pid, mask=mask)


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    v = tl.load(x + row * columns + i, mask=i < columns, other=-float("inf"))
    e = tl.exp(v - tl.max(v, 0))
    tl.store(out + row * columns + i, e / tl.sum(e, 0), mask=i < columns)


@triton.jit
def layer_norm(x, weight, bias, out, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    mask = i < columns
    v = tl.load(x + row * columns + i, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(v, 0) / columns
    d = tl.where(mask, v - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(d * d, 0) / columns + eps)
    o = d * inverse * tl.load(weight + i, mask=mask) + tl.load(bias + i, mask=mask)
    tl.store(out + row * columns + i, o.to(out.dtype.element_ty), mask=mask)


@triton.jit
def cumulative_sum(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.cumsum(tl.load(x + i), 0))


@triton.jit
def sort(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.sort(tl.load(x + i)))


@triton.jit
def matmul(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        left = tl.load(
            a + m[:, None] * K + (k0 + k)[None, :], mask=(m[:, None] < M) & ((k0 + k)[None, :] < K), other=0.0
        )
        right = tl.load(
            b + (k0 + k)[:, None] * N + n[None, :], mask=((k0 + k)[:, None] < K) & (n[None, :] < N), other=0.0
        )
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    tl.store(c + m[:, None] * N + n[None, :], acc, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def matmul_strided(
    a, b, c, M, N, K, am, ak, bk, bn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr, DOUBLE: tl.constexpr = False,
):  # fmt: skip
    """c = a b, or 2 a b with the doubling done in registers."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for k0 in range(0, K, BK):
        left = tl.load(
            a + m[:, None] * am + (k0 + k)[None, :] * ak, mask=(m[:, None] < M) & ((k0 + k)[None, :] < K), other=0.0
        )
        right = tl.load(
            b + (k0 + k)[:, None] * bk + n[None, :] * bn, mask=((k0 + k)[:, None] < K) & (n[None, :] < N), other=0.0
        )
        if DOUBLE:
            left += left
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    tl.store(c + m[:, None] * N + n[None, :], acc, mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def matmul_int8(a, b, c, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.int32)
    for k0 in range(0, K, BK):
        acc += tl.dot(tl.load(a + m[:, None] * K + (k0 + k)[None, :]), tl.load(b + (k0 + k)[:, None] * N + n[None, :]))
    tl.store(c + m[:, None] * N + n[None, :], acc)


@triton.jit
def histogram(x, bins, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0)
    tl.atomic_add(bins + v, 1, mask=i < n)


@triton.jit
def conv5x5(x, w, out, H, W, OH, OW, F: tl.constexpr, FP: tl.constexpr, BLOCK: tl.constexpr):
    image = tl.program_id(0)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    oy, ox, inside = p // OW, p % OW, p < OH * OW
    f = tl.arange(0, FP)
    acc = tl.zeros((FP, BLOCK), tl.float32)
    for k in tl.static_range(25):
        v = tl.load(x + image * H * W + (oy + k // 5) * W + ox + k % 5, mask=inside, other=0.0)
        acc += tl.load(w + f * 25 + k, mask=f < F, other=0.0)[:, None] * v[None, :]
    tl.store(out + (image * F + f)[:, None] * OH * OW + p[None, :], acc, mask=(f < F)[:, None] & inside[None, :])


@triton.jit
def max_pool2x2(x, out, index, H, W, n, BLOCK: tl.constexpr):
    """2x2 pooling of single images; index is the flat position of the maximum in its image."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = p < n
    oh, ow = H // 2, W // 2
    image, y, column = p // (oh * ow), p // ow % oh, p % ow
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    for k in tl.static_range(4):
        position = (2 * y + k // 2) * W + 2 * column + k % 2
        v = tl.load(x + image * H * W + position, mask=mask, other=-float("inf"))
        better = v > best
        best = tl.where(better, v, best)
        where = tl.where(better, position, where)
    tl.store(out + p, best, mask=mask)
    tl.store(index + p, where.to(tl.int64), mask=mask)


@triton.jit
def flash_attention(Q, K, V, Out, S, scale, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    head = tl.program_id(1) * S * D
    d = tl.arange(0, D)
    q = tl.load(Q + head + m[:, None] * D + d[None, :])
    highest = tl.full((BM,), -float("inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, D), tl.float32)
    for n0 in range(0, S, BN):
        n = n0 + tl.arange(0, BN)
        k = tl.load(K + head + n[None, :] * D + d[:, None])
        s = tl.dot(q, k) * scale
        new_highest = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s - new_highest[:, None])
        rescale = tl.exp2(highest - new_highest)
        total = total * rescale + tl.sum(p, 1)
        v = tl.load(V + head + n[:, None] * D + d[None, :])
        acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None])
        highest = new_highest
    tl.store(Out + head + m[:, None] * D + d[None, :], (acc / total[:, None]).to(Out.dtype.element_ty))


@triton.jit
def double_descriptor(x_ptr, y_ptr, M, N, BLOCK: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [BLOCK, BLOCK])
    y = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [BLOCK, BLOCK])
    i, j = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    y.store([i, j], x.load([i, j]) * 2)


@triton.jit
def mean_pair(x, out, scale, flag, n, BLOCK: tl.constexpr):
    """Takes a float and a bool argument, and an integer that may be specialised."""
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0.0)
    if flag:
        v = v * scale
    tl.store(out + i, v, mask=i < n)


@triton.jit
def locked_sum(x, out, lock, n, BLOCK: tl.constexpr):
    """Read-modify-write under a spin lock: correct, and must not be reported as a race."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.arange(0, BLOCK)
    v = tl.load(x + i, mask=i < n, other=0.0)
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    tl.store(out + j, tl.load(out + j) + v)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


@triton.jit
def grid_barrier(counter, phase, HOW: tl.constexpr):
    """Waits for all programs, or makes the mistake that HOW names. `phase` counts the barriers, from 1."""
    tl.debug_barrier()
    if HOW == "relaxed arrival":
        tl.atomic_add(counter, 1, sem="relaxed")
    elif HOW == "arrival for the block only":
        tl.atomic_add(counter, 1, sem="release", scope="cta")
    elif HOW != "no barrier":
        tl.atomic_add(counter, 1, sem="release")
    awaited = phase * tl.num_programs(0)
    if HOW == "one program fewer":
        awaited -= 1
    if HOW == "counter not reset":
        awaited = tl.num_programs(0)
    if HOW == "volatile polls" or HOW == "no acquire":
        while tl.load(counter, volatile=True) < awaited:
            pass
    if HOW == "relaxed polls":
        while tl.atomic_add(counter, 0, sem="relaxed") < awaited:
            pass
    elif HOW != "no acquire" and HOW != "no barrier":
        while tl.atomic_add(counter, 0, sem="acquire") < awaited:
            pass
    tl.debug_barrier()


@triton.jit
def sum_of_blocks(x, partial, counter, n, HOW: tl.constexpr, BLOCK: tl.constexpr):
    """A sum over programs in phases: after every barrier, each that is left adds another's values."""
    b, lane = tl.program_id(0), tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(b * BLOCK, n, tl.num_programs(0) * BLOCK):
        total += tl.load(x + start + lane, mask=start + lane < n, other=0.0)
    tl.store(partial + b * BLOCK + lane, total)
    left = tl.num_programs(0)
    phase = 0
    while left > 1:
        phase += 1
        grid_barrier(counter, phase, HOW)
        half = (left + 1) // 2
        if b + half < left:
            total += tl.load(partial + (b + half) * BLOCK + lane)
            tl.store(partial + b * BLOCK + lane, total)
        left = half
