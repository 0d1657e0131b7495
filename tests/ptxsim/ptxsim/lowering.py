"""Parsed PTX -> encoded programs for the executor.

Registers become offsets in a per-warp register file (32 lanes each), constants become registers that
are filled once, predicates become 32-bit masks. Device functions are inlined at their calls.
"""

from __future__ import annotations

import ctypes
import re
import struct
from dataclasses import dataclass, field

import numpy as np

from . import native
from .errors import UnsupportedPTX
from .parser import TYPE_SIZES, Function, Instruction, ParsedModule, split_operands

# Orders below mirror enums in the C++ headers.
SPECIAL_REGISTERS = [
    "tid.x",
    "tid.y",
    "tid.z",
    "ntid.x",
    "ntid.y",
    "ntid.z",
    "ctaid.x",
    "ctaid.y",
    "ctaid.z",
    "nctaid.x",
    "nctaid.y",
    "nctaid.z",
    "laneid",
    "warpid",
    "lanemask_eq",
    "lanemask_lt",
    "lanemask_le",
    "lanemask_ge",
    "lanemask_gt",
    "smid",
    "nsmid",
    "nwarpid",
    "dynamic_smem_size",
    "total_smem_size",
    "cluster_zero",
    "cluster_one",
    "envreg1",
    "envreg2",
]
_CLUSTER_REGISTERS = {  # every block is a cluster of its own
    "cluster_ctaid.x": "cluster_zero",
    "cluster_ctaid.y": "cluster_zero",
    "cluster_ctaid.z": "cluster_zero",
    "cluster_ctarank": "cluster_zero",
    "cluster_nctaid.x": "cluster_one",
    "cluster_nctaid.y": "cluster_one",
    "cluster_nctaid.z": "cluster_one",
    "cluster_nctarank": "cluster_one",
    "clusterid.x": "ctaid.x",
    "clusterid.y": "ctaid.y",
    "clusterid.z": "ctaid.z",
    "nclusterid.x": "nctaid.x",
    "nclusterid.y": "nctaid.y",
    "nclusterid.z": "nctaid.z",
}
_CLOCK_REGISTERS = {"clock", "clock_hi", "clock64", "globaltimer", "globaltimer_lo", "globaltimer_hi"}
SPACES = {"global": 1, "shared": 2, "local": 3, "param": 4, "const": 5}
GENERIC, LOCAL, PARAM = 0, 3, 4
GUARD_NEGATED, OPERAND_NEGATED, FLUSH_SUBNORMALS = 1, 2, 4
STRONG_ACCESS, ACQUIRES, RELEASES, BLOCK_SCOPE = 8, 16, 32, 64
TOUCHES, RENAMES = 1, 2  # how an instruction uses registers of wgmma
ATOMIC_OPERATIONS = ["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"]
ATOMIC_TYPES = ["u32", "s32", "u64", "s64", "f32", "f64", "f16", "bf16", "f16x2", "bf16x2", "b16"]
MMA_TYPES = ["f16", "bf16", "tf32", "s8", "u8"]
CONVERT_TYPES = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "f16", "bf16", "f32", "f64"]
CONVERT_ROUNDINGS = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rni": 0, "rzi": 1, "rmi": 2, "rpi": 3, "rna": 0}

DEVICE_BASE, SEGMENT_BITS = 1 << 48, 36
SHARED_BASE, LOCAL_BASE, PARAM_BASE = 1 << 60, 1 << 61, 1 << 62
FIRST_GLOBAL_SLOT = 1024  # address slots of module variables; kernel arguments use the lower ones

# Instructions with no effect here: memory is sequentially consistent and warps run converged.
_NO_EFFECT = {
    "prefetch",
    "prefetchu",
    "nanosleep",
    "griddepcontrol",
    "discard",
    "applypriority",
    "setmaxnreg",
    "pragma",
    "pmevent",
}
_ARITHMETIC = {
    "add",
    "sub",
    "mul",
    "mad",
    "fma",
    "div",
    "rem",
    "min",
    "max",
    "abs",
    "neg",
    "and",
    "or",
    "xor",
    "not",
    "cnot",
    "sqrt",
    "rsqrt",
    "rcp",
    "ex2",
    "lg2",
    "sin",
    "cos",
    "tanh",
    "copysign",
    "shl",
    "shr",
    "popc",
    "clz",
    "brev",
    "bfind",
    "bfe",
    "bfi",
    "prmt",
    "shf",
    "mul24",
    "sad",
    "bmsk",
    "dp4a",
}
_IGNORED_MODIFIERS = {"rn", "approx", "full", "ftz", "uni"}  # values are exact, so these change nothing


def slot_address(slot: int) -> int:
    """Device address of the middle of an address slot."""
    return DEVICE_BASE + (slot << SEGMENT_BITS) + (1 << (SEGMENT_BITS - 1))


@dataclass
class GlobalBuffer:
    """A __device__ or __constant__ variable; lives as long as its module."""

    name: str
    data: np.ndarray
    slot: int
    read_only: bool

    @property
    def address(self) -> int:
        return slot_address(self.slot)


@dataclass
class Program:
    """A kernel ready to run. `instructions[pc]` is the PTX behind each encoded instruction."""

    function: Function
    instructions: list[Instruction]
    static_shared: int
    local_bytes: int
    globals: list[GlobalBuffer]
    handle: int = field(repr=False, default=0)

    def __del__(self):
        if self.handle:
            native.library().ptxsim_program_destroy(self.handle)
            self.handle = 0


def lower_globals(module: ParsedModule) -> dict[str, GlobalBuffer]:
    """Allocates and initialises the module's .global and .const variables."""
    buffers: dict[str, GlobalBuffer] = {}
    for variable in module.variables.values():
        if variable.space in ("global", "const"):
            data = np.zeros(max(variable.size, 1), np.uint8)
            buffers[variable.name] = GlobalBuffer(
                variable.name, data, FIRST_GLOBAL_SLOT + len(buffers), variable.space == "const"
            )
    for variable in module.variables.values():
        if variable.initial and variable.name in buffers:
            width = TYPE_SIZES[variable.element_type]
            values = [v for v in re.split(r"[\s,{}]+", variable.initial) if v]
            raw = b""
            for value in values:
                symbol = re.fullmatch(r"(?:generic\()?([\w$.]+)\)?", value)
                if symbol and symbol[1] in buffers:
                    raw += buffers[symbol[1]].address.to_bytes(8, "little")
                else:
                    raw += (parse_immediate(value, variable.element_type) & ((1 << 8 * width) - 1)).to_bytes(
                        width, "little"
                    )
            buffers[variable.name].data[: len(raw)] = np.frombuffer(raw, np.uint8)
    return buffers


def parse_immediate(token: str, type_name: str) -> int:
    """Bits of a literal operand of the given type."""

    def float_bits(value: float) -> int:
        if type_name == "f64":
            return struct.unpack("<Q", struct.pack("<d", value))[0]
        return struct.unpack("<I", struct.pack("<f", value))[0]

    prefix = token[:2].lower()
    if prefix == "0f":
        bits = int(token[2:], 16)
        return float_bits(struct.unpack("<f", struct.pack("<I", bits))[0]) if type_name == "f64" else bits
    if prefix == "0d":
        bits = int(token[2:], 16)
        return (
            bits
            if type_name in ("f64", "b64", "u64", "s64")
            else float_bits(struct.unpack("<d", struct.pack("<Q", bits))[0])
        )
    try:
        text = token.rstrip("U")
        negative = text.startswith("-")
        digits = text.lstrip("-")
        value = int(digits, 8) if re.fullmatch(r"0[0-7]+", digits) else int(digits, 0)
        return -value if negative else value
    except ValueError:
        pass
    try:
        return float_bits(float(token))
    except ValueError:
        raise UnsupportedPTX(f"operand '{token}'") from None


class _Encoding:
    """Fields of one encoded instruction while it is built."""

    def __init__(self):
        self.handler: str | None = None
        self.operands = [native.NO_OPERAND] * native.MAX_OPERANDS
        self.widths = [0] * native.MAX_OPERANDS
        self.guard = -1
        self.flags = 0
        self.space = self.count = self.element_size = self.kind = self.wgmma = 0
        self.offset = self.offset2 = self.immediate = 0
        self.label: str | None = None
        self.registers: list[int] = []  # a list of any length besides the operands

    def set(self, index: int, slot: tuple[int, int]) -> None:
        self.operands[index], self.widths[index] = slot


class KernelLowering:
    """Lowers one kernel of a module."""

    def __init__(self, module: ParsedModule, kernel: Function, buffers: dict[str, GlobalBuffer]):
        self.module, self.kernel, self.buffers = module, kernel, buffers
        self.register_bytes = 0
        self.register_slots: dict[str, tuple[int, int]] = {}
        self.predicates: dict[str, int] = {}
        self.predicate_constants: dict[int, int] = {}
        self.constants: dict[tuple[int, int], int] = {}
        self.special: dict[str, int] = {}
        self.shared_addresses: dict[str, int] = {}
        self.local_addresses: dict[str, int] = {}
        self.shared_top = self.local_top = 0
        self.parameter_offsets = {p.name: p.offset for p in kernel.parameters}
        self.register_types: dict[str, str] = {}
        self.encoded: list[_Encoding] = []
        self.origin: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.inline_depth = 0
        self.inline_count = 0
        self.prefix = ""  # makes names of inlined functions unique
        self.current: Instruction | None = None

    # ------------------------------------------------------------ driver

    def lower(self) -> Program:
        self._place_shared()
        self._body(self.kernel, end_label=None)
        self._emit_simple("exit", self.kernel.instructions[-1] if self.kernel.instructions else None)
        return self._finish()

    def _place_shared(self) -> None:
        """Static shared variables first; extern arrays all start after them."""
        variables = list(self.module.variables.values())
        for function in self.module.functions.values():
            if function is self.kernel or not function.is_kernel:
                variables += function.variables.values()
        extern = [v for v in variables if v.space == "shared" and v.size == 0]
        for v in variables:
            if v.space == "shared" and v.size:
                self.shared_top = -(-self.shared_top // v.align) * v.align
                self.shared_addresses[v.name] = self.shared_top
                self.shared_top += v.size
        if extern:
            self.shared_top = -(-self.shared_top // 16) * 16
        for v in extern:
            self.shared_addresses[v.name] = self.shared_top

    def _body(self, function: Function, end_label: str | None) -> None:
        """Encodes a function's instructions; `end_label` is where an inlined function returns to."""
        for name, kind in function.registers.items():
            self.register_types[self.prefix + name] = kind
        for v in function.variables.values():
            if v.space in ("local", "param"):
                self._place_local(self.prefix + v.name, v.size or TYPE_SIZES[v.element_type], v.align)
        at = {}
        for label, position in function.labels.items():
            at.setdefault(position, []).append(self.prefix + label)
        for position, instruction in enumerate(function.instructions):
            for label in at.get(position, ()):
                self.labels[label] = len(self.encoded)
            self.current = instruction
            if instruction.opcode == "call":
                self._call(instruction)
            elif instruction.opcode == "ret" and end_label is not None:
                self._emit_branch(instruction, end_label)
            else:
                self._instruction(instruction)
        for label in at.get(len(function.instructions), ()):
            self.labels[label] = len(self.encoded)

    def _place_local(self, name: str, size: int, align: int) -> None:
        self.local_top = -(-self.local_top // max(align, 16)) * max(align, 16)
        self.local_addresses[name] = self.local_top
        self.local_top += size

    def _finish(self) -> Program:
        handlers = native.handlers()
        self._mark_wgmma_registers()
        lists: list[int] = []
        code = (native.EncodedInstruction * len(self.encoded))()
        for target, e in zip(code, self.encoded, strict=False):
            target.handler = handlers[e.handler]
            target.guard = e.guard
            target.target = self.labels[e.label] if e.label is not None else len(lists)
            lists += e.registers
            target.operand[:] = e.operands
            target.width[:] = e.widths
            target.flags, target.space, target.count = e.flags, e.space, e.count
            target.element_size, target.kind, target.wgmma = e.element_size, e.kind, e.wgmma
            target.offset, target.offset2, target.immediate = e.offset, e.offset2, e.immediate
        registers = np.zeros(max(self.register_bytes, 64), np.uint8)
        for (value, width), offset in self.constants.items():
            registers[offset : offset + 32 * width] = np.frombuffer(value.to_bytes(width, "little") * 32, np.uint8)
        predicates = np.zeros(max(len(self.predicates), 1), np.uint32)
        for index, value in self.predicate_constants.items():
            predicates[index] = value
        special = np.array(
            [x for name, offset in self.special.items() for x in (offset, SPECIAL_REGISTERS.index(name))] or [0],
            np.uint32,
        )
        register_lists = np.array(lists or [0], np.uint32)
        handle = native.library().ptxsim_program_create(
            ctypes.cast(code, ctypes.c_void_p),
            len(self.encoded),
            registers.ctypes.data,
            len(registers),
            predicates.ctypes.data,
            len(predicates),
            special.ctypes.data,
            len(self.special),
            register_lists.ctypes.data,
            len(lists),
            self.shared_top,
            -(-self.local_top // 16) * 16,
        )
        return Program(self.kernel, self.origin, self.shared_top, self.local_top, list(self.buffers.values()), handle)

    def _mark_wgmma_registers(self) -> None:
        """Flags what touches the registers of wgmma, which are out of bounds until it has been waited for."""
        used = {
            offset for e in self.encoded if e.handler == "wgmma.mma_async" for offset in e.registers + e.operands[3:7]
        }
        fixed = {native.NO_OPERAND, *self.constants.values(), *self.special.values()}
        moves = [e for e in self.encoded if e.handler == "mov.b32" and not fixed & set(e.operands[:2])]
        grown = 0
        while used and grown != len(used):
            grown = len(used)
            for e in moves:
                if used & set(e.operands[:2]):
                    used.update(e.operands[:2])
        used -= fixed
        for e in self.encoded:
            registers = {offset for offset, width in zip(e.operands, e.widths, strict=True) if width}
            if registers & used and e.handler != "wgmma.mma_async":
                e.wgmma = RENAMES if registers <= used and e in moves else TOUCHES

    # ------------------------------------------------------------ operands

    def _allocate(self, width: int) -> int:
        offset = self.register_bytes
        self.register_bytes += max(32 * width, 64)  # keeps registers 64-byte aligned
        return offset

    def _constant(self, value: int, width: int) -> tuple[int, int]:
        key = (value & ((1 << 8 * width) - 1), width)
        if key not in self.constants:
            self.constants[key] = self._allocate(width)
        return self.constants[key], width

    def _register(self, token: str) -> tuple[int, int]:
        name = self.prefix + token
        if name not in self.register_slots:
            kind = self.register_types.get(name)
            if kind is None or kind == "pred":
                raise UnsupportedPTX(
                    f"register '{token}' in '{self.current.text}'", self.current.ptx_line, self.current.source
                )
            width = TYPE_SIZES[kind]
            self.register_slots[name] = (self._allocate(width), width)
        return self.register_slots[name]

    def _predicate(self, token: str) -> int:
        return self.predicates.setdefault(self.prefix + token, len(self.predicates))

    def _is_predicate(self, token: str) -> bool:
        return self.register_types.get(self.prefix + token) == "pred"

    def _source_predicate(self, e: _Encoding, token: str) -> int:
        if token.startswith("!"):
            e.flags |= OPERAND_NEGATED
            token = token[1:].strip()
        if self._is_predicate(token):
            return self._predicate(token)
        value = 0xFFFFFFFF if int(token, 0) else 0
        index = self.predicates.setdefault(f"constant {value}", len(self.predicates))
        self.predicate_constants[index] = value
        return index

    def _symbol(self, name: str) -> int | None:
        """Address of a variable within its own space."""
        for table in (self.local_addresses, self.shared_addresses):
            if self.prefix + name in table:
                return table[self.prefix + name]
        if name in self.shared_addresses:
            return self.shared_addresses[name]
        if name in self.buffers:
            return self.buffers[name].address
        if not self.prefix and name in self.parameter_offsets:
            return self.parameter_offsets[name]
        return None

    def _source(self, token: str, type_name: str) -> tuple[int, int]:
        width = TYPE_SIZES[type_name]
        if token == "_":
            return native.NO_OPERAND, width
        if self.prefix + token in self.register_types:
            return self._register(token)
        if token.startswith("%"):
            name = _CLUSTER_REGISTERS.get(token[1:], token[1:])
            if name in SPECIAL_REGISTERS:
                if name not in self.special:
                    self.special[name] = self._allocate(4)
                return self.special[name], 4
            if name.startswith(("envreg", "gridid")):
                return self._constant(0, width)
            return self._register(token)  # raises
        if token == "WARP_SZ":
            return self._constant(32, width)
        m = re.fullmatch(r"([A-Za-z_$][\w$.@]*)(?:\s*\+\s*(\d+))?", token)
        if m and (address := self._symbol(m[1])) is not None:
            return self._constant(address + int(m[2] or 0), width)
        return self._constant(parse_immediate(token, type_name), width)

    def _destination(self, token: str) -> tuple[int, int]:
        return (native.NO_OPERAND, 8) if token == "_" else self._register(token)

    def _address(self, e: _Encoding, index: int, token: str) -> int:
        """Sets operand `index` to the base of '[base+offset]' and returns the constant offset."""
        m = re.fullmatch(r"\[\s*([^\s+\-\]]+)\s*(?:([+-])\s*(-?\w+))?\s*\]", token)
        if not m:
            raise UnsupportedPTX(
                f"address {token} in '{self.current.text}'", self.current.ptx_line, self.current.source
            )
        offset = parse_immediate(m[3], "s64") * (-1 if m[2] == "-" else 1) if m[3] else 0
        base = m[1]
        if self.prefix + base in self.register_types:
            e.set(index, self._register(base))
            return offset
        if self.prefix + base in self.local_addresses and e.space in (PARAM, GENERIC):
            e.space = LOCAL  # arguments of device functions are passed in local memory
        address = self._symbol(base)
        e.set(index, self._constant(parse_immediate(base, "u64") if address is None else address, 8))
        return offset

    @staticmethod
    def _vector(token: str) -> list[str]:
        return split_operands(token[1:-1]) if token.startswith("{") else [token]

    # ------------------------------------------------------------ emission

    def _emit(self, instruction: Instruction, e: _Encoding) -> None:
        if e.handler not in native.handlers():
            raise UnsupportedPTX(instruction.text, instruction.ptx_line, instruction.source)
        if instruction.guard:
            if instruction.guard_negated:
                e.flags |= GUARD_NEGATED
            e.guard = self._predicate(instruction.guard)
        if "ftz" in instruction.modifiers:
            e.flags |= FLUSH_SUBNORMALS
        self.encoded.append(e)
        self.origin.append(instruction)

    def _emit_simple(self, handler: str, instruction: Instruction | None) -> None:
        e = _Encoding()
        e.handler = handler
        self.encoded.append(e)
        self.origin.append(
            Instruction(
                "exit",
                [],
                [],
                None,
                False,
                instruction.source if instruction else None,
                None,
                instruction.ptx_line if instruction else 0,
                "<end of kernel>",
            )
        )

    def _emit_branch(self, instruction: Instruction, label: str) -> None:
        e = _Encoding()
        e.handler, e.label = "bra", label
        self._emit(instruction, e)

    def _instruction(self, instruction: Instruction) -> None:
        e = _Encoding()
        method = getattr(self, f"_lower_{instruction.opcode}", None)
        try:
            if instruction.opcode in _NO_EFFECT:
                e.handler = "nop"
            elif instruction.opcode in ("and", "or", "xor", "not") and instruction.modifiers[-1] == "pred":
                self._lower_predicate_logic(instruction, e)
            elif method:
                method(instruction, e)
            elif instruction.opcode in _ARITHMETIC:
                self._lower_arithmetic(instruction, e)
        except UnsupportedPTX as error:
            if error.ptx_line:
                raise
            raise UnsupportedPTX(
                f"{error.what} in '{instruction.text}'", instruction.ptx_line, instruction.source
            ) from None
        except (IndexError, KeyError, ValueError, StopIteration):
            e.handler = None  # a form of the instruction this module does not know
        self._emit(instruction, e)

    def _call(self, instruction: Instruction) -> None:
        """Inlines a device function: its parameters become names for the caller's .param variables."""
        operands = instruction.operands
        groups = [split_operands(o[1:-1]) for o in operands if o.startswith("(")]
        name = next(o for o in operands if not o.startswith("("))
        has_returns = operands[0].startswith("(")
        returns = groups.pop(0) if has_returns else []
        arguments = groups[0] if groups else []
        if name == "vprintf":
            e = _Encoding()
            e.handler = "nop"
            return self._emit(instruction, e)
        if name in ("__assertfail", "__assert_fail", "__trap"):
            e = _Encoding()
            e.handler = "trap"
            return self._emit(instruction, e)
        function = self.module.functions.get(name)
        if function is None or instruction.guard or self.inline_depth > 16:
            raise UnsupportedPTX(instruction.text, instruction.ptx_line, instruction.source)
        self.inline_count += 1
        outer_prefix, inner_prefix = self.prefix, f"{name}#{self.inline_count}:"
        for formal, actual in zip(function.returns + function.parameters, returns + arguments, strict=False):
            if outer_prefix + actual in self.local_addresses:
                self.local_addresses[inner_prefix + formal.name] = self.local_addresses[outer_prefix + actual]
            else:
                raise UnsupportedPTX(instruction.text, instruction.ptx_line, instruction.source)
        self.prefix, self.inline_depth = inner_prefix, self.inline_depth + 1
        end_label = f"{inner_prefix}end"
        self._body(function, end_label)
        self.labels[end_label] = len(self.encoded)
        self.prefix, self.inline_depth, self.current = outer_prefix, self.inline_depth - 1, instruction

    # ------------------------------------------------------------ control

    def _lower_bra(self, i, e):
        e.handler, e.label = "bra", self.prefix + i.operands[-1]

    def _lower_ret(self, i, e):
        e.handler = "exit"

    _lower_exit = _lower_ret

    def _lower_trap(self, i, e):
        e.handler = "trap"

    def _lower_brkpt(self, i, e):
        e.handler = "nop"

    def _lower_fence(self, i, e):
        if "proxy" in i.modifiers:
            e.handler = "fence.proxy.async" if i.modifiers[1].startswith("async") else "nop"
        else:
            e.handler, e.kind = "fence", int("cta" not in i.modifiers)

    _lower_membar = _lower_fence

    def _lower_bar(self, i, e):
        if i.modifiers[:1] == ["warp"]:
            e.handler = "nop"  # lanes of a warp run in lockstep here
            return
        if "cluster" in i.modifiers:
            return
        operands = list(i.operands)
        e.handler = "bar"
        if "arrive" in i.modifiers:
            e.immediate = 1
        elif "red" in i.modifiers:
            e.immediate = 2
            e.kind = ["popc", "and", "or"].index(next(m for m in i.modifiers if m in ("popc", "and", "or")))
            if e.kind == 0:
                e.set(0, self._destination(operands.pop(0)))
            else:
                e.operands[0] = self._predicate(operands.pop(0))
            e.operands[1] = self._source_predicate(e, operands.pop())
        e.set(2, self._source(operands[0] if operands else "0", "u32"))
        if len(operands) > 1:
            e.set(3, self._source(operands[1], "u32"))

    _lower_barrier = _lower_bar

    # ------------------------------------------------------------ moves

    def _lower_mov(self, i, e):
        kind, (d, s) = i.modifiers[-1], i.operands
        if kind == "pred":
            e.handler = "mov.pred"
            e.operands[0] = self._predicate(d)
            e.operands[1] = e.operands[2] = self._source_predicate(e, s)
        elif s[1:] in _CLOCK_REGISTERS:
            e.handler = "clock"
            e.set(0, self._destination(d))
        elif d.startswith("{"):
            parts = self._vector(d)
            e.handler, e.count, e.immediate = "mov.unpack", len(parts), TYPE_SIZES[kind] // len(parts)
            for k, part in enumerate(parts):
                e.set(k, self._destination(part))
            e.set(len(parts), self._source(s, kind))
        elif s.startswith("{"):
            parts = self._vector(s)
            element = TYPE_SIZES[kind] // len(parts)
            e.handler, e.count, e.immediate = "mov.pack", len(parts), element
            e.set(0, self._destination(d))
            for k, part in enumerate(parts):
                e.set(1 + k, self._source(part, f"b{8 * element}"))
        else:
            e.handler = f"mov.b{8 * TYPE_SIZES[kind]}"
            e.set(0, self._destination(d))
            source = self._source(s, kind)
            if e.widths[0] == 8 and source[1] == 4:  # 32-bit special register into a 64-bit one
                e.handler = "cvt.u64.u32"
            e.set(1, source)

    def _lower_cvta(self, i, e):
        kind = i.modifiers[-1]
        space = next(m.split("::")[0] for m in i.modifiers if m.split("::")[0] in SPACES)
        base = {"shared": SHARED_BASE, "local": LOCAL_BASE, "param": PARAM_BASE}.get(space)
        e.handler = "mov.b64" if base is None else ("sub.u64" if "to" in i.modifiers else "add.u64")
        e.set(0, self._destination(i.operands[0]))
        e.set(1, self._source(i.operands[1], kind))
        if base is not None:
            e.set(2, self._constant(base, 8))

    def _lower_isspacep(self, i, e):
        e.handler, e.kind = "isspacep", SPACES[i.modifiers[0].split("::")[0]]
        e.operands[0] = self._predicate(i.operands[0])
        e.set(1, self._source(i.operands[1], "u64"))

    def _lower_selp(self, i, e):
        kind = i.modifiers[-1]
        e.handler = f"selp.b{8 * TYPE_SIZES[kind]}"
        e.set(0, self._destination(i.operands[0]))
        e.set(1, self._source(i.operands[1], kind))
        e.set(2, self._source(i.operands[2], kind))
        e.operands[3] = self._source_predicate(e, i.operands[3])

    def _lower_createpolicy(self, i, e):
        e.handler = "mov.b64"
        e.set(0, self._destination(i.operands[0]))
        e.set(1, self._constant(0, 8))

    # ------------------------------------------------------------ memory

    def _memory_fields(self, i, e):
        spaces = [m.split("::")[0] for m in i.modifiers if m.split("::")[0] in SPACES]
        e.space = SPACES[spaces[0]] if spaces else GENERIC
        e.element_size = TYPE_SIZES[i.modifiers[-1]]
        if {"volatile", "relaxed", "acquire", "release", "mmio"} & set(i.modifiers):
            e.flags |= STRONG_ACCESS
        if {"acquire", "acq_rel"} & set(i.modifiers):
            e.flags |= ACQUIRES
        if {"release", "acq_rel"} & set(i.modifiers):
            e.flags |= RELEASES
        if "cta" in i.modifiers:
            e.flags |= BLOCK_SCOPE

    def _lower_ld(self, i, e):
        self._memory_fields(i, e)
        parts = self._vector(i.operands[0])
        if e.element_size * len(parts) > 16 or e.element_size == 16:
            return  # 256-bit accesses and .b128 registers
        e.handler, e.count, e.kind = "ld", len(parts), int(i.modifiers[-1][0] == "s")
        for k, part in enumerate(parts):
            e.set(k, self._destination(part))
        e.offset = self._address(e, len(parts), i.operands[1])

    _lower_ldu = _lower_ld

    def _lower_st(self, i, e):
        self._memory_fields(i, e)
        parts = self._vector(i.operands[1])
        if e.element_size * len(parts) > 16 or e.element_size == 16:
            return
        e.handler, e.count = "st", len(parts)
        for k, part in enumerate(parts):
            e.set(k, self._source(part, i.modifiers[-1]))
        e.offset = self._address(e, len(parts), i.operands[0])

    def _lower_atom(self, i, e):
        self._memory_fields(i, e)
        kind = i.modifiers[-1]
        operation = next(m for m in i.modifiers if m in ATOMIC_OPERATIONS)
        operands = list(i.operands)
        if kind == "b128":
            return
        e.handler, e.immediate = "atom", ATOMIC_OPERATIONS.index(operation)
        e.kind = ATOMIC_TYPES.index({"b32": "u32", "b64": "u64"}.get(kind, kind))
        destinations = self._vector(operands.pop(0)) if i.opcode == "atom" else []
        e.offset = self._address(e, 1, operands[0])
        values = self._vector(operands[1])
        e.count = len(values)
        for k, value in enumerate(values):
            e.set(2 + k, self._source(value, kind))
        if operation == "cas":
            e.set(3, self._source(operands[2], kind))
        for k, destination in enumerate(destinations):
            e.set(8 + k if e.count > 1 else 0, self._destination(destination))

    _lower_red = _lower_atom

    def _lower_cp(self, i, e):
        if i.modifiers[:1] != ["async"]:
            return
        if "commit_group" in i.modifiers:
            e.handler = "cp.async.commit_group"
        elif "wait_group" in i.modifiers:
            e.handler, e.immediate = "cp.async.wait_group", parse_immediate(i.operands[0], "u32")
        elif "wait_all" in i.modifiers:
            e.handler = "cp.async.wait_all"
        elif i.modifiers[1] in ("ca", "cg"):
            e.handler, e.space = "cp.async", SPACES["shared"]
            e.offset = self._address(e, 0, i.operands[0])
            e.offset2 = self._address(e, 1, i.operands[1])
            e.immediate = parse_immediate(i.operands[2], "u32")
            policy = any("cache_hint" in m for m in i.modifiers)
            if len(i.operands) > (4 if policy else 3):
                if self._is_predicate(i.operands[3].lstrip("!")):
                    e.handler = None  # ignore-src form
                    return
                e.set(2, self._source(i.operands[3], "u32"))

    def _lower_ldmatrix(self, i, e):
        self._memory_fields(i, e)
        address, registers = (
            (i.operands[0], i.operands[1]) if i.opcode == "stmatrix" else (i.operands[1], i.operands[0])
        )
        if "m8n8" not in i.modifiers or i.modifiers[-1] != "b16":
            return
        parts = self._vector(registers)
        e.handler, e.count, e.kind = i.opcode, len(parts), int("trans" in i.modifiers)
        for k, part in enumerate(parts):
            e.set(k, self._register(part))
        e.offset = self._address(e, len(parts), address)

    _lower_stmatrix = _lower_ldmatrix

    # ------------------------------------------------------------ comparison, conversion

    def _lower_predicate_logic(self, i, e):
        e.handler = f"{i.opcode}.pred"
        e.operands[0] = self._predicate(i.operands[0])
        e.operands[1] = self._source_predicate(e, i.operands[1])
        e.operands[2] = self._source_predicate(e, i.operands[2]) if len(i.operands) > 2 else e.operands[1]

    _COMPARISON_ALIASES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}

    def _comparison(self, name, kind):
        kind = {"b16": "u16", "b32": "u32", "b64": "u64"}.get(kind, kind)
        if kind[0] == "u":
            name = self._COMPARISON_ALIASES.get(name, name)
        return f"{name}.{kind}"

    def _lower_setp(self, i, e):
        kind = i.modifiers[-1]
        e.handler = "setp." + self._comparison(i.modifiers[0], kind)
        results = i.operands[0].split("|")
        e.operands[0] = self._predicate(results[0].strip()) if results[0].strip() != "_" else self._predicate("unused")
        if len(results) > 1 and results[1].strip() != "_":
            e.operands[1] = self._predicate(results[1].strip())
        e.set(2, self._source(i.operands[1], kind))
        e.set(3, self._source(i.operands[2], kind))
        combine = [m for m in i.modifiers if m in ("and", "or", "xor")]
        if combine:
            e.immediate = 1 + ["and", "or", "xor"].index(combine[0])
            e.operands[4] = self._source_predicate(e, i.operands[3])

    def _lower_set(self, i, e):
        result, kind = i.modifiers[-2], i.modifiers[-1]
        if {"and", "or", "xor"} & set(i.modifiers):
            return
        e.handler = "set." + self._comparison(i.modifiers[0], kind)
        e.immediate = {
            "u32": 0xFFFFFFFF,
            "s32": 0xFFFFFFFF,
            "f32": 0x3F800000,
            "u16": 0xFFFF,
            "s16": 0xFFFF,
            "f16": 0x3C00,
            "bf16": 0x3F80,
        }[result]
        e.set(0, self._destination(i.operands[0]))
        e.set(1, self._source(i.operands[1], kind))
        e.set(2, self._source(i.operands[2], kind))

    def _lower_cvt(self, i, e):
        to, source_type = i.modifiers[-2], i.modifiers[-1]
        rounding = next((m for m in i.modifiers[:-2] if m in CONVERT_ROUNDINGS), None)
        if to in ("f16x2", "bf16x2") and source_type == "f32" and rounding == "rn" and "satfinite" not in i.modifiers:
            e.handler = f"cvt{'.relu' if 'relu' in i.modifiers else ''}.{to}.f32"
            for k, operand in enumerate(i.operands):
                e.set(k, self._destination(operand) if k == 0 else self._source(operand, "f32"))
            return
        e.set(0, self._destination(i.operands[0]))
        if to == "tf32":
            e.handler = "cvt.tf32.f32" if rounding in ("rna", "rn") else None
            e.set(1, self._source(i.operands[1], "f32"))
            return
        e.set(1, self._source(i.operands[1], source_type))
        if {"relu", "satfinite"} & set(i.modifiers):
            return
        fast = ".".join(["cvt"] + ([rounding] if rounding else []) + [to, source_type])
        exact_widths = e.widths[0] == TYPE_SIZES[to] and e.widths[1] == TYPE_SIZES[source_type]
        if fast in native.handlers() and exact_widths and "sat" not in i.modifiers:
            e.handler = fast
            return
        e.kind, e.count = CONVERT_TYPES.index(to), CONVERT_TYPES.index(source_type)
        e.handler = "cvt"
        e.immediate = (
            CONVERT_ROUNDINGS.get(rounding, 0)
            | (16 if rounding and rounding.endswith("i") else 0)
            | (32 if "sat" in i.modifiers else 0)
        )

    # ------------------------------------------------------------ arithmetic

    def _lower_arithmetic(self, i, e):
        op, kind = i.opcode, i.modifiers[-1]
        if "cc" in i.modifiers:
            return self._lower_carry(i, e)
        if op == "dp4a":
            kinds, kind = ".".join(i.modifiers[-2:]), "b32"
        name_type = kind
        if op in ("and", "or", "xor", "not", "cnot", "shl", "popc", "clz", "brev", "prmt", "bfi", "shf", "bmsk"):
            name_type = "b" + kind[1:]
        if op in ("mul", "mad") and kind[0] in "us" and not {"lo", "hi", "wide"} & set(i.modifiers):
            return
        middle = [m for m in i.modifiers[:-1] if m not in _IGNORED_MODIFIERS]
        if op == "prmt" and middle:
            return
        if op == "dp4a":
            e.handler = f"dp4a.{kinds}"
        else:
            e.handler = ".".join([op, *middle, name_type])
        e.set(0, self._destination(i.operands[0]))
        for k, operand in enumerate(i.operands[1:], 1):
            operand_type = kind
            if op in ("shl", "shr") and k == 2 or op == "bfe" and k > 1 or op == "bfi" and k > 2 or op == "shf":
                operand_type = "u32"
            if kind in ("f16", "bf16") and "f32" in middle and k == len(i.operands) - 1:
                operand_type = "f32"  # a single that halves are added to
            if op == "mad" and "wide" in i.modifiers and k == 3:
                operand_type = f"{kind[0]}{2 * int(kind[1:])}"
            e.set(k, self._source(operand, operand_type))

    def _lower_carry(self, i, e):
        """add.cc, addc, sub.cc, subc, mad.cc, madc: the carry flag is a predicate of its own."""
        takes_carry = i.opcode.endswith("c")
        base = i.opcode[:-1] if takes_carry else i.opcode
        kind = "u" + i.modifiers[-1][1:]
        if base not in ("add", "sub", "mad"):
            return
        half = next((m for m in i.modifiers if m in ("lo", "hi")), None)
        if half == "hi" and i.modifiers[-1][0] == "s":
            return
        e.handler = ".".join(filter(None, [base + "c", half, kind]))
        e.set(0, self._destination(i.operands[0]))
        for k, operand in enumerate(i.operands[1:], 1):
            e.set(k, self._source(operand, kind))
        if takes_carry:
            e.operands[4] = self._predicate("carry flag")
        if "cc" in i.modifiers:
            e.operands[5] = self._predicate("carry flag")

    _lower_addc = _lower_subc = _lower_madc = _lower_carry

    def _lower_lop3(self, i, e):
        if i.modifiers[-1] != "b32" or len(i.operands) != 5:
            return
        e.handler, e.immediate = "lop3.b32", parse_immediate(i.operands[4], "u32")
        e.set(0, self._destination(i.operands[0]))
        for k in (1, 2, 3):
            e.set(k, self._source(i.operands[k], "b32"))

    # ------------------------------------------------------------ warp operations

    def _lower_shfl(self, i, e):
        mode = next(m for m in i.modifiers if m in ("up", "down", "bfly", "idx"))
        e.handler, e.immediate = "shfl", ["up", "down", "bfly", "idx"].index(mode)
        results = [r.strip() for r in i.operands[0].split("|")]
        e.set(0, self._register(results[0]))
        if len(results) > 1 and results[1] != "_":
            e.operands[5] = self._predicate(results[1])
        for k in (1, 2, 3):
            e.set(k, self._source(i.operands[k], "b32"))
        e.set(4, self._source(i.operands[4], "b32") if len(i.operands) > 4 else self._constant(0xFFFFFFFF, 4))

    def _lower_vote(self, i, e):
        members = self._source(i.operands[2], "b32") if len(i.operands) > 2 else self._constant(0xFFFFFFFF, 4)
        e.set(2, members)
        e.operands[1] = self._source_predicate(e, i.operands[1])
        if "ballot" in i.modifiers:
            e.handler = "vote.ballot"
            e.set(0, self._destination(i.operands[0]))
        else:
            mode = next(m for m in i.modifiers if m in ("any", "all", "uni"))
            e.handler, e.immediate = "vote", ["any", "all", "uni"].index(mode)
            e.operands[0] = self._predicate(i.operands[0])

    def _lower_activemask(self, i, e):
        e.handler = "activemask"
        e.set(0, self._destination(i.operands[0]))

    def _lower_match(self, i, e):
        results = [r.strip() for r in i.operands[0].split("|")]
        e.handler, e.kind = f"match.{i.modifiers[-1]}", int("all" in i.modifiers)
        e.set(0, self._destination(results[0]))
        e.set(1, self._source(i.operands[1], i.modifiers[-1]))
        e.set(2, self._source(i.operands[2], "b32"))
        if len(results) > 1 and results[1] != "_":
            e.operands[3] = self._predicate(results[1])

    def _lower_elect(self, i, e):
        results = [r.strip() for r in i.operands[0].split("|")]
        e.handler = "elect"
        e.set(0, self._destination(results[0]))
        e.operands[1] = self._predicate(results[1])

    def _lower_redux(self, i, e):
        kind = i.modifiers[-1]
        e.handler, e.kind = "redux", int(kind == "s32")
        if kind == "f32":
            e.handler, e.kind = "redux.f32", ("NaN" in i.modifiers) | ("abs" in i.modifiers) << 1
        e.immediate = ["add", "min", "max", "and", "or", "xor"].index(i.modifiers[1])
        e.set(0, self._destination(i.operands[0]))
        e.set(1, self._source(i.operands[1], kind))
        e.set(2, self._source(i.operands[2], "b32"))

    def _lower_movmatrix(self, i, e):
        e.handler = "movmatrix"
        e.set(0, self._destination(i.operands[0]))
        e.set(1, self._source(i.operands[1], "b32"))

    # ------------------------------------------------------------ tensor cores

    def _lower_mma(self, i, e):
        shape = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", next(m for m in i.modifiers if re.fullmatch(r"m\d+n\d+k\d+", m)))
        m, n, k = (int(v) for v in shape.groups())
        d_type, a_type, b_type, c_type = i.modifiers[-4:]
        groups = [self._vector(o) for o in i.operands]
        flat = [(register, group == 0) for group, registers in enumerate(groups) for register in registers]
        if "row" not in i.modifiers or "col" not in i.modifiers or "sp" in i.modifiers:
            return
        if (m, n, k) == (8, 8, 4) and a_type == "f64":
            e.handler, register_type = "mma.f64", "f64"
        elif (m, n) == (16, 8) and a_type in MMA_TYPES and b_type in MMA_TYPES and d_type == c_type:
            integer = a_type in ("s8", "u8")
            if d_type not in (("s32",) if integer else ("f32", "f16")) or (not integer and a_type != b_type):
                return
            e.handler, register_type = "mma", "b32"
            e.kind = MMA_TYPES.index(a_type) | MMA_TYPES.index(b_type) << 4
            e.count = k
            e.immediate = 1 if d_type == "f16" else 2 if "satfinite" in i.modifiers else 0
        else:
            return
        for index, (register, is_destination) in enumerate(flat):
            e.set(index, self._register(register) if is_destination else self._source(register, register_type))

    def _lower_wgmma(self, i, e):
        operation = i.modifiers[0]
        if operation != "mma_async":
            e.handler = f"wgmma.{operation}"
            e.immediate = parse_immediate(i.operands[0], "u32") if i.operands else 0
            return
        *_, shape, d_type, a_type, b_type = i.modifiers
        n, k = (int(v) for v in re.fullmatch(r"m64n(\d+)k(\d+)", shape).groups())
        if i.modifiers[:3] != ["mma_async", "sync", "aligned"] or a_type != b_type or d_type not in ("f32", "f16"):
            return
        if a_type not in ("f16", "bf16", "tf32") or k != (8 if a_type == "tf32" else 16):
            return
        d, a, b, keep, *signs = i.operands
        e.registers = [self._register(register)[0] for register in self._vector(d)]
        a_registers = self._vector(a) if a.startswith("{") else []
        for index, register in enumerate(a_registers, 3):
            e.set(index, self._source(register, "b32"))
        if not a_registers:
            e.set(1, self._source(a, "b64"))
        e.set(2, self._source(b, "b64"))
        e.operands[0] = self._source_predicate(e, keep)
        e.offset, e.offset2, *transposed = (int(v) for v in signs)
        transposed = [0] * (2 - len(transposed)) + transposed  # A in registers has no flag, tf32 none at all
        e.handler, e.count = "wgmma.mma_async", n // 8
        e.kind = MMA_TYPES.index(a_type) | transposed[0] << 4 | transposed[1] << 5 | (d_type == "f16") << 6

    # ------------------------------------------------------------ asynchronous work

    def _lower_mbarrier(self, i, e):
        operation, modifiers = i.modifiers[0], set(i.modifiers[1:])
        e.space = SPACES["shared"] if modifiers & {"shared", "shared::cta", "shared::cluster"} else GENERIC
        operands = list(i.operands)
        if "noComplete" in modifiers:
            return
        if operation in ("init", "expect_tx", "complete_tx", "inval"):
            e.offset = self._address(e, 0, operands[0])
            if operation != "inval":
                e.set(1, self._source(operands[1], "u32"))
        elif operation == "arrive":
            if not operands[0].startswith("["):
                e.set(0, self._destination(operands.pop(0)))
            e.offset, e.kind = self._address(e, 1, operands[0]), int("expect_tx" in modifiers)
            e.set(2, self._source(operands[1] if len(operands) > 1 else "1", "u32"))
        elif operation in ("test_wait", "try_wait"):
            operation = "test_wait"
            e.operands[0] = self._predicate(operands[0])
            e.offset, e.kind = self._address(e, 1, operands[1]), int("parity" in modifiers)
            e.set(2, self._source(operands[2], "u32" if e.kind else "b64"))
        e.handler = f"mbarrier.{operation}"

    def _lower_tcgen05(self, i, e):
        operation, modifiers = i.modifiers[0].split("::")[0], i.modifiers[1:]
        if {"cta_group::2", "ws", "sp", "pack::16b", "unpack::16b", "multicast::cluster"} & set(modifiers):
            return
        e.handler = f"tcgen05.{operation}"
        if operation in ("relinquish_alloc_permit", "wait", "fence"):
            e.handler = "nop"  # what they wait for is done at once here, or ordered by an mbarrier
        elif operation == "alloc":
            e.space = SPACES["shared"] if "shared::cta" in modifiers else GENERIC
            e.offset = self._address(e, 0, i.operands[0])
            e.set(1, self._source(i.operands[1], "u32"))
        elif operation == "dealloc":
            e.set(0, self._source(i.operands[0], "u32"))
            e.set(1, self._source(i.operands[1], "u32"))
        elif operation in ("ld", "st"):
            e.kind = ["32x32b", "16x32bx2"].index(modifiers[2])
            operands = list(i.operands)
            e.offset = self._address(e, 0, operands.pop(1 if operation == "ld" else 0))
            registers = self._vector(operands.pop(0 if operation == "ld" else -1))
            e.immediate = parse_immediate(operands[0], "u32") if operands else 0
            e.count = len(registers)
            e.registers = [self._source(register, "b32")[0] for register in registers]
        elif operation == "mma":
            e.element_size = {"kind::f16": 2, "kind::tf32": 4}[modifiers[1]]
            d, a, b, form, keep = i.operands
            e.offset, e.kind = self._address(e, 0, d), int(a.startswith("["))
            if e.kind:
                e.offset2 = self._address(e, 1, a)
            else:
                e.set(1, self._source(a, "b64"))
            e.set(2, self._source(b, "b64"))
            e.set(3, self._source(form, "b32"))
            e.operands[4] = self._source_predicate(e, keep)
        elif operation == "commit":
            e.space = SPACES["shared"] if "shared::cluster" in modifiers else GENERIC
            e.offset = self._address(e, 0, i.operands[0])


def lower(module: ParsedModule, kernel: Function, buffers: dict[str, GlobalBuffer]) -> Program:
    """Encodes one kernel for the executor."""
    return KernelLowering(module, kernel, buffers).lower()
