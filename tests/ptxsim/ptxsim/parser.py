"""PTX text -> modules, functions and instructions. No knowledge of what instructions mean."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import SourceLine, UnsupportedPTX

TYPE_SIZES = {
    "b8": 1,
    "s8": 1,
    "u8": 1,
    "b16": 2,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "b32": 4,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "f16x2": 4,
    "bf16x2": 4,
    "tf32": 4,
    "s16x2": 4,
    "u16x2": 4,
    "f32x2": 8,
    "b64": 8,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "b128": 16,
}


@dataclass
class Variable:
    """A .global, .const, .shared, .local or .param variable. size 0: extern array of unknown length."""

    name: str
    space: str
    element_type: str
    size: int
    align: int
    initial: str | None = None


@dataclass
class Parameter:
    name: str
    type: str
    offset: int
    size: int


@dataclass
class Instruction:
    opcode: str  # "ld"
    modifiers: list[str]  # ["global", "v4", "f32"]
    operands: list[str]  # ["{%f1, %f2, %f3, %f4}", "[%rd4+16]"]
    guard: str | None  # "%p1"
    guard_negated: bool
    source: SourceLine | None
    inlined_at: SourceLine | None
    ptx_line: int
    text: str


@dataclass
class Function:
    """An .entry or .func with its body."""

    name: str
    is_kernel: bool
    parameters: list[Parameter] = field(default_factory=list)
    returns: list[Parameter] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: dict[str, Variable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    required_threads: tuple[int, ...] | None = None  # .reqntid
    maximum_threads: tuple[int, ...] | None = None  # .maxntid
    most_registers: int = 0  # .maxnreg

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.size for p in self.parameters), default=0)


@dataclass
class ParsedModule:
    target: str = ""
    version: str = ""
    variables: dict[str, Variable] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)


def split_operands(text: str) -> list[str]:
    """Splits at commas that are not inside brackets."""
    if not any(c in text for c in "[{("):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    parts, depth, current = [], 0, ""
    for c in text:
        depth += (c in "[{(") - (c in "]})")
        if c == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += c
    if current.strip():
        parts.append(current.strip())
    return parts


def _strip_comments(text: str) -> str:
    """Removes comments, keeping every newline so that line numbers stay right."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>shared|global|const|local|param)\s+"
    r"(?:\.attribute\s*\([^)]*\)\s*)?(?:\.align\s+(?P<align>\d+)\s+)?(?:\.(?P<vector>v[24])\s+)?\.(?P<type>\w+)\s+"
    r"(?P<name>[\w$%.]+)\s*(?P<extents>(?:\[\s*\d*\s*\]\s*)*)(?:=\s*(?P<initial>.*))?$",
    re.S,
)


def _parse_variable(text: str) -> Variable | None:
    m = _VARIABLE.match(text.strip())
    if not m:
        return None
    elements = int(m["vector"][1]) if m["vector"] else 1
    for extent in re.findall(r"\[\s*(\d*)\s*\]", m["extents"]):
        elements *= int(extent or 0)
    size = TYPE_SIZES[m["type"]]
    return Variable(m["name"], m["space"], m["type"], elements * size, int(m["align"] or size), m["initial"])


def _parse_parameters(text: str) -> list[Parameter]:
    parameters, offset = [], 0
    for declaration in split_operands(text):
        m = re.match(
            r"\.(?:param|reg)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s*(?:\.(?!align)\w+\s*)?(?:\.align\s+\d+\s*)?)?"
            r"([\w$%]+)\s*(?:\[\s*(\d+)\s*\])?",
            declaration,
        )
        if not m:
            raise UnsupportedPTX(f"parameter declaration '{declaration}'")
        size = TYPE_SIZES[m[2]] * int(m[4] or 1)
        align = int(m[1] or TYPE_SIZES[m[2]])
        offset = -(-offset // align) * align
        parameters.append(Parameter(m[3], m[2] if not m[4] else "aggregate", offset, size))
        offset += size
    return parameters


# One item of a body: .loc line, label, brace, or a statement up to its semicolon.
_BODY_ITEM = re.compile(
    r"\s*(?:(?P<loc>\.loc[ \t][^\n]*)|(?P<brace>[{}])|(?P<label>[\w$]+)\s*:(?!:)|(?P<statement>[^;{}][^;]*);)"
)
_STATEMENT = re.compile(r"(?:@(?P<negated>!?)\s*(?P<guard>[%\w$]+)\s+)?(?P<opcode>[\w.:]+)\s*(?P<operands>.*)$", re.S)
_TOKEN = re.compile(r"[%\w$.]+")


class _BodyParser:
    """Parses the statements between the braces of one function."""

    def __init__(self, function: Function, files: dict[int, str], first_line: int):
        self.function, self.files = function, files
        self.line = first_line
        self.source: SourceLine | None = None
        self.inlined_at: SourceLine | None = None
        # Names declared in a nested { } scope are made unique, innermost scope last.
        self.scopes: list[dict] = []
        self.scope_count = 0

    def parse(self, body: str) -> None:
        position = 0
        while True:
            m = _BODY_ITEM.match(body, position)
            if not m:
                rest = body[position:].strip()
                if rest:
                    raise UnsupportedPTX(f"'{rest[:60]}'", self.line)
                return
            start = m.start(m.lastgroup)
            self.line += body.count("\n", position, start)
            if m["loc"]:
                self._location(m["loc"])
            elif m["brace"]:
                self._open_scope() if m["brace"] == "{" else self._close_scope()
            elif m["label"]:
                self._label(m["label"])
            else:
                self._statement(m["statement"])
            self.line += body.count("\n", start, m.end())
            position = m.end()

    def _location(self, text: str) -> None:
        def line(file: str, number: str) -> SourceLine | None:
            return SourceLine(self.files.get(int(file), "?"), int(number)) if int(number) else None

        m = re.match(r"\.loc\s+(\d+)\s+(\d+)", text)
        self.source = line(m[1], m[2])
        m = re.search(r"inlined_at\s+(\d+)\s+(\d+)", text)
        self.inlined_at = line(m[1], m[2]) if m else None

    def _open_scope(self) -> None:
        self.scope_count += 1
        self.scopes.append(
            {"id": self.scope_count, "names": {}, "labels": {}, "start": len(self.function.instructions)}
        )

    def _close_scope(self) -> None:
        scope = self.scopes.pop()
        if scope["labels"]:  # branches inside this scope mean its own labels
            for instruction in self.function.instructions[scope["start"] :]:
                if instruction.opcode == "bra" and instruction.operands[-1] in scope["labels"]:
                    instruction.operands[-1] = scope["labels"][instruction.operands[-1]]

    def _declare(self, name: str) -> str:
        if not self.scopes:
            return name
        unique = f"{name}@{self.scopes[-1]['id']}"
        self.scopes[-1]["names"][name] = unique
        return unique

    def _resolve(self, text: str) -> str:
        """Replaces names declared in enclosing nested scopes by their unique names."""

        def replace(m):
            for scope in reversed(self.scopes):
                if m[0] in scope["names"]:
                    return scope["names"][m[0]]
            return m[0]

        return _TOKEN.sub(replace, text) if any(s["names"] for s in self.scopes) else text

    def _label(self, name: str) -> None:
        if self.scopes:
            unique = f"{name}@{self.scopes[-1]['id']}"
            self.scopes[-1]["labels"][name] = unique
            name = unique
        self.function.labels[name] = len(self.function.instructions)

    def _statement(self, text: str) -> None:
        text = " ".join(text.split())
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith("."):
            variable = _parse_variable(text)
            if variable:
                variable.name = self._declare(variable.name)
                self.function.variables[variable.name] = variable
        else:
            m = _STATEMENT.match(text)
            opcode, *modifiers = m["opcode"].split(".")
            guard = self._resolve(m["guard"]) if m["guard"] else None
            self.function.instructions.append(
                Instruction(
                    opcode,
                    modifiers,
                    split_operands(self._resolve(m["operands"])),
                    guard,
                    bool(m["negated"]),
                    self.source,
                    self.inlined_at,
                    self.line,
                    text + ";",
                )
            )

    def _registers(self, text: str) -> None:
        m = re.match(r"\.reg\s*\.(\w+)\s+(.*)", text)
        for name in split_operands(m[2]):
            numbered = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name)
            names = [f"{numbered[1]}{k}" for k in range(int(numbered[2]))] if numbered else [name]
            for n in names:
                self.function.registers[self._declare(n)] = m[1]


_FUNCTION = re.compile(r"\.(?P<kind>entry|func)\b(?P<head>[^;{]*)(?P<end>[;{])")
_HEAD = re.compile(
    r"\s*(?:\.attribute\s*\([^)]*\)\s*)?(?:\(\s*(?P<returns>[^)]*)\))?\s*(?P<name>[\w$.]+)\s*"
    r"(?:\((?P<parameters>(?:[^()]|\([^()]*\))*)\))?(?P<directives>.*)",
    re.S,
)


def _matching_brace(text: str, opening: int) -> int:
    depth = 0
    for m in re.compile(r"[{}]").finditer(text, opening):
        depth += 1 if m[0] == "{" else -1
        if depth == 0:
            return m.start()
    raise UnsupportedPTX("unbalanced braces")


def parse(text: str) -> ParsedModule:
    """Parses a whole PTX module."""
    module = ParsedModule()
    files = {
        int(number): second or first
        for number, first, second in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?', text, re.M)
    }
    text = _strip_comments(text)
    # Debug sections hold no code.
    text = re.sub(r"\.section\s+[.\w]+\s*\{[^}]*\}", lambda m: "\n" * m[0].count("\n"), text)
    if m := re.search(r"^\s*\.version\s+([\d.]+)", text, re.M):
        module.version = m[1]
    if m := re.search(r"^\s*\.target\s+(\w+)", text, re.M):
        module.target = m[1]

    position = 0
    while m := _FUNCTION.search(text, position):
        _module_variables(module, text[position : m.start()])
        head = _HEAD.match(m["head"])
        function = Function(head["name"], m["kind"] == "entry")
        function.parameters = _parse_parameters(head["parameters"] or "")
        function.returns = _parse_parameters(head["returns"] or "")
        for directive, attribute in (("reqntid", "required_threads"), ("maxntid", "maximum_threads")):
            if d := re.search(rf"\.{directive}\s+(\d+(?:\s*,\s*\d+)*)", head["directives"]):
                setattr(function, attribute, tuple(int(v) for v in d[1].split(",")))
        if d := re.search(r"\.maxnreg\s+(\d+)", head["directives"]):
            function.most_registers = int(d[1])
        position = m.end()
        if m["end"] == ";":  # a declaration
            continue
        closing = _matching_brace(text, m.end() - 1)
        _BodyParser(function, files, text.count("\n", 0, m.end()) + 1).parse(text[m.end() : closing])
        module.functions[function.name] = function
        position = closing + 1
    _module_variables(module, text[position:])
    return module


def _module_variables(module: ParsedModule, text: str) -> None:
    for statement in text.split(";"):
        if m := re.search(r"\.(?:shared|global|const)\b", statement):
            variable = _parse_variable(statement[m.start() :])
            if variable:
                module.variables[variable.name] = variable
