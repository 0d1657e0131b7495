"""Host tensors as kernel arguments: bounds, device addresses, and looking up raw addresses.

Nothing is copied. During a launch every tensor gets a device address range of its own (2^36 bytes
with the tensor in the middle), so an overrun cannot reach a neighbour; the executor translates.
Tensors whose memory overlaps share one range, as they would on a GPU.
"""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import dataclass, field

import numpy as np

from . import native
from .errors import LaunchError
from .lowering import FIRST_GLOBAL_SLOT, GlobalBuffer, slot_address

ALIGNMENT = 256  # of a CUDA allocation


@dataclass
class HostBuffer:
    """The host memory behind one tensor argument."""

    name: str
    address: int
    size: int  # bytes from the first to past the last element of the view
    storage_address: int  # start of the allocation the tensor is a view of
    item_size: int
    writable: bool
    owner: object = field(repr=False)  # keeps the memory alive

    @property
    def end(self) -> int:
        return self.address + self.size


def is_tensor(value) -> bool:
    return hasattr(value, "data_ptr") or isinstance(value, np.ndarray)


def _extent(shape, strides) -> int:
    """Elements from the first to past the last one of a strided view."""
    if any(n == 0 for n in shape):
        return 0
    return 1 + sum((n - 1) * abs(s) for n, s in zip(shape, strides, strict=False))


def describe(value, name: str) -> HostBuffer:
    """The buffer behind a torch CPU tensor or a numpy array."""
    if isinstance(value, np.ndarray):
        owner = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if any(s < 0 for s in value.strides):
            raise LaunchError(f"argument '{name}': arrays with negative strides cannot be passed to a kernel")
        size = _extent(value.shape, [s // max(value.itemsize, 1) for s in value.strides]) * value.itemsize
        return HostBuffer(
            name, value.ctypes.data, size, owner.ctypes.data, value.itemsize, value.flags.writeable, value
        )
    device = getattr(value, "device", None)
    if device is not None and getattr(device, "type", "cpu") != "cpu":
        raise LaunchError(f"argument '{name}' is on device {device}; ptxsim runs on CPU tensors")
    if hasattr(value, "untyped_storage"):
        size = _extent(value.shape, value.stride()) * value.element_size()
        storage = value.untyped_storage().data_ptr()
        return HostBuffer(name, value.data_ptr(), size, storage, value.element_size(), True, value)
    # A wrapper such as triton's TensorWrapper: take the tensor inside.
    base = getattr(value, "base", None)
    if base is not None and is_tensor(base):
        return describe(base, name)
    raise LaunchError(f"argument '{name}' of type {type(value).__name__} is not a tensor that ptxsim understands")


# ---------------------------------------------------------------- raw addresses

_registered: dict[int, object] = {}  # id -> weak reference (or the object itself)


def register(tensor):
    """Makes a tensor known, so that kernels may receive its address as an integer or from memory."""
    key = id(tensor)
    try:
        _registered[key] = weakref.ref(tensor, lambda _: _registered.pop(key, None))
    except TypeError:
        _registered[key] = lambda: tensor
    return tensor


def unregister_all() -> None:
    _registered.clear()


def registered() -> list:
    return [tensor for tensor in (reference() for reference in list(_registered.values())) if tensor is not None]


def _storage_buffer(tensor, name: str) -> HostBuffer:
    """Like describe, but with the bounds of the whole allocation: a raw address has lost the view."""
    buffer = describe(tensor, name)
    if isinstance(tensor, np.ndarray):
        owner = tensor
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        buffer.address, buffer.size = owner.ctypes.data, owner.nbytes
    else:
        storage = tensor.untyped_storage()
        buffer.address, buffer.size = storage.data_ptr(), storage.nbytes()
    return buffer


def find(address: int, name: str) -> HostBuffer | None:
    """The tensor that an integer address points into: a registered one, or any live torch tensor."""
    for tensor in reversed(registered()):  # most often the last: a launcher registers what it passes
        buffer = _storage_buffer(tensor, name)
        if buffer.address <= address < buffer.end:
            return buffer
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    for candidate in gc.get_objects():
        # type() rather than isinstance(): some objects run code when asked for their class
        if issubclass(type(candidate), torch.Tensor):
            try:
                if candidate.device.type != "cpu":
                    continue
                buffer = _storage_buffer(candidate, name)
            except (RuntimeError, NotImplementedError):
                continue
            if buffer.address <= address < buffer.end:
                register(candidate)
                return buffer
    return None


# ---------------------------------------------------------------- device addresses


@dataclass
class Segment:
    """One device address range and the arguments that live in it."""

    slot: int
    device_begin: int
    host_begin: int
    size: int
    item_size: int
    read_only: bool
    buffers: list[HostBuffer]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(b.name for b in self.buffers))

    def describe_offset(self, offset: int) -> tuple[str, int, int]:
        """(argument name, offset relative to it, its size) for an offset within the segment."""
        host = self.host_begin + offset
        inside = [b for b in self.buffers if b.address <= host < b.end]
        nearest = min(inside or self.buffers, key=lambda b: min(abs(host - b.address), abs(host - b.end)))
        return nearest.name, host - nearest.address, nearest.size


def build_segments(buffers: list[HostBuffer], module_globals: list[GlobalBuffer]) -> list[Segment]:
    """Groups overlapping buffers and places every group in an address slot."""
    segments: list[Segment] = []
    group: list[HostBuffer] = []
    end = 0

    def close_group():
        if not group:
            return
        if len(segments) >= FIRST_GLOBAL_SLOT:
            raise LaunchError(f"more than {FIRST_GLOBAL_SLOT} tensors in one launch")
        begin = group[0].address
        # A CUDA allocation is 256-byte aligned: keep the view's offset within its allocation. When the
        # host allocation is not even 16-byte aligned, compilers may have seen that; keep the address.
        storage = group[0].storage_address
        residue = (begin - storage if storage % 16 == 0 else begin) % ALIGNMENT
        segments.append(
            Segment(
                len(segments),
                slot_address(len(segments)) + residue,
                begin,
                max(b.end for b in group) - begin,
                min(b.item_size for b in group),
                not any(b.writable for b in group),
                list(group),
            )
        )

    for buffer in sorted(buffers, key=lambda b: (b.address, -b.size)):
        if buffer.size == 0:
            continue
        if group and buffer.address < end:
            group.append(buffer)
        else:
            close_group()
            group = [buffer]
            end = 0
        end = max(end, buffer.end)
    close_group()
    for g in module_globals:
        host = HostBuffer(g.name, g.data.ctypes.data, g.data.nbytes, g.data.ctypes.data, 1, not g.read_only, g.data)
        segments.append(Segment(g.slot, g.address, host.address, host.size, 1, g.read_only, [host]))
    return segments


def device_address(segments: list[Segment], address: int) -> int | None:
    """Device address of a host address that lies in one of the segments."""
    for segment in segments:
        if segment.host_begin <= address < segment.host_begin + segment.size:
            return segment.device_begin + (address - segment.host_begin)
    return None


def encode(segments: list[Segment]):
    """The segments as an array for the executor."""
    array = (native.SegmentDescription * max(len(segments), 1))()
    for target, s in zip(array, segments, strict=False):
        target.slot, target.device_begin, target.host_begin, target.size = s.slot, s.device_begin, s.host_begin, s.size
        target.granule_shift = {1: 0, 2: 1}.get(s.item_size, 2)
        target.read_only = s.read_only
    return array
