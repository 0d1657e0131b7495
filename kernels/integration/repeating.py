"""Calls of the GPU backends' launchers, recorded once and then repeated: for a call like an earlier one nothing is worked out anew.

What a launcher allocates, which kernels it starts and with which numbers follows from shapes, strides, dtypes and alignment,
never from values: docs/gpu-path.md#a-call-like-an-earlier-one.
"""

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MOST = 1024  # calls of a launcher that are kept
NUMBERS = ("lr",)  # arguments that launchers only pass on to kernels: others may come each time
ALIGNMENT = 32  # bytes: no launcher and no compiler looks at more of an address
aten = torch.ops.aten
ALLOCATIONS = (aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default)

Function = Callable[..., Any]


class Repeated:
    """A launcher that repeats its calls.

    `schema` tells which arguments are tensors. `backend` has `state()`, what else the launcher goes by, and `address(tensor)`,
    where a kernel finds it. The second call with a key is recorded, so that one which never comes again costs little.
    """

    def __init__(self, launcher: Function, schema: Any, backend: Any) -> None:
        self._launcher, self._backend = launcher, backend
        names = [argument.name for argument in schema.arguments[:-1]]  # the last names the backend
        kinds = [str(argument.type) for argument in schema.arguments[:-1]]
        self._tensors = picker([i for i, kind in enumerate(kinds) if kind in ("Tensor", "Optional[Tensor]")])
        self._lists = picker([i for i, kind in enumerate(kinds) if kind == "List[Tensor]"])
        self._free = [i for i, name in enumerate(names) if name in NUMBERS]
        self._numbers = picker(self._free)
        self._values = picker([i for i, kind in enumerate(kinds) if "Tensor" not in kind and i not in self._free])
        self._calls: dict[Hashable, Function | None] = {}  # None after the first

    def __call__(self, *arguments: Any) -> Any:
        tensors, values = self._tensors(arguments), self._values(arguments)
        if lists := self._lists(arguments):
            tensors, values = sum(lists, tensors), (*values, *map(len, lists))
        address = self._backend.address
        addresses = [0 if tensor is None else address(tensor) for tensor in tensors]
        # calls with one key do the same in other memory
        key = self._backend.state(), values, *map(description, tensors, addresses)
        if call := self._calls.get(key):
            return call(arguments, [*addresses, *self._numbers(arguments)])
        if key in self._calls:
            return self._record(key, arguments)
        if len(self._calls) >= MOST:
            self._calls.clear()
        self._calls[key] = None
        return self._launcher(*arguments)

    def _record(self, key: Hashable, arguments: tuple[Any, ...]) -> Any:
        known = [1.0 * each if i in self._free else alias(each) for i, each in enumerate(arguments)]
        with Recording(sum(self._lists(known), self._tensors(known)), self._numbers(known)) as recording:
            results = self._launcher(*known)
        self._calls[key] = recording.repetition(results, self._backend) or self._call_launcher
        return results

    def _call_launcher(self, arguments: tuple[Any, ...], _: list[Any]) -> Any:
        return self._launcher(*arguments)


def description(tensor: Tensor | None, address: int) -> Hashable:
    """What a launcher may go by of a tensor at this address."""
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.get_device(), address % ALIGNMENT


def picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What takes these out of a sequence, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    if not places:
        return lambda values: ()
    (place,) = places
    return lambda values: (values[place],)


def alias(argument: Any) -> Any:
    """The argument with an object of its own for each tensor, so that one which is given twice is known by its place."""
    if isinstance(argument, Tensor):
        return argument.detach()
    return tuple(map(alias, argument)) if isinstance(argument, tuple) else argument


class Made(NamedTuple):
    """An argument of a launch that is made of the addresses of tensors, or of numbers."""

    make: Function
    values: tuple[Any, ...]


class Address(NamedTuple):
    """That of a tensor: so many bytes behind an input's, or behind that of what was allocated, counted after the inputs.

    Numbers that may change are inputs, too.
    """

    base: int
    offset: int


class Recording(TorchDispatchMode):
    """What is allocated and launched in its `with` block; `complete` where torch did nothing besides."""

    def __init__(self, tensors: Sequence[Tensor | None], numbers: Sequence[float] = ()) -> None:
        super().__init__()
        self.complete = True
        inputs = [*tensors, *numbers]
        self._inputs, self._numbers = len(inputs), range(len(tensors), len(inputs))
        self._seen = inputs  # kept, so that no other tensor or number gets the id of one
        self._addresses = {id(each): Address(place, 0) for place, each in enumerate(inputs)}
        self._allocated: list[Tensor] = []
        self._launches: list[tuple[Function, Sequence[Any]]] = []

    def __enter__(self) -> "Recording":
        super().__enter__()
        _current.recording = self
        return self

    def __exit__(self, *error: Any) -> None:
        _current.recording = None
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if func in ALLOCATIONS:
            self._know(result, Address(self._inputs + len(self._allocated), 0))
            self._allocated.append(result)
        elif func.is_view and isinstance(result, Tensor) and id(args[0]) in self._addresses:
            base, offset = self._addresses[id(args[0])]
            self._know(result, Address(base, offset + begin(result) - begin(args[0])))
        elif func is not aten.promote_types.default:
            self.complete = False
        return result

    def _know(self, tensor: Tensor, address: Address) -> None:
        self._seen.append(tensor)
        self._addresses[id(tensor)] = address

    def launched(self, start: Function, arguments: Sequence[Any]) -> None:
        """Adds a launch: `start` takes the arguments again, with addresses for tensors, which may be in tuples, and what is `Made`."""
        self._launches.append((start, arguments))

    def repetition(self, results: Any, backend: Any) -> Function | None:
        """What does the same again and gives the like of `results`; None where that is not known to be all."""
        given = results if isinstance(results, tuple) else () if results is None else (results,)
        numbers = [self._addresses.get(id(result), Address(0, 0)).base - self._inputs for result in given]
        allocated = list(self._allocated)
        if len(set(numbers)) < len(set(map(id, given))):
            return None  # two of them share memory
        for number, result in zip(numbers, given, strict=True):
            if number < 0 or result.numel() != allocated[number].numel():
                return None  # it is an input's memory, or part of what was allocated
            allocated[number] = result  # in its own shape and memory order
        pool = Pool(self._inputs + len(allocated), self._addresses)
        try:
            launches = [(start, pool.picker(arguments)) for start, arguments in self._launches]
        except KeyError:  # a tensor that was there before and is no input
            return None
        if not pool.picked.issuperset(self._numbers):
            return None  # something was computed from one of them
        allocate = [
            functools.partial(torch.empty_strided, tuple(t.shape), t.stride(), dtype=t.dtype, device=t.device)
            for t in allocated
        ]
        give = picker(numbers) if isinstance(results, tuple) else itemgetter(*numbers) if numbers else lambda _: None

        def repeat(_: tuple[Any, ...], inputs: list[Any]) -> Any:
            made = [new() for new in allocate]
            values = [*inputs, *map(backend.address, made), *pool.constants]
            for place, value in pool.computed:
                values[place] = value(values)
            for start, arguments in launches:
                start(*arguments(values))
            return give(made)

        return repeat if self.complete else None


def begin(tensor: Tensor) -> int:
    """Where the tensor begins in its storage, in bytes."""
    return int(tensor.storage_offset()) * tensor.element_size()


class Pool:
    """The values that the arguments of launches are picked from: addresses and numbers, then `constants`, of which some
    are `computed` from the values before.
    """

    def __init__(self, bases: int, addresses: dict[int, Address]) -> None:
        self.constants: list[Any] = []
        self.computed: list[tuple[int, Function]] = []
        self.picked: set[int] = set()  # of the bases
        self._bases, self._addresses = bases, addresses

    def picker(self, arguments: Sequence[Any]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """What picks these out of the values."""
        return picker([self._place(argument) for argument in arguments])

    def _place(self, argument: Any) -> int:
        if isinstance(argument, Tensor) or (isinstance(argument, float) and id(argument) in self._addresses):
            base, offset = self._addresses[id(argument)]
            self.picked.add(base)
            return self._computed(lambda values: values[base] + offset) if offset else base
        if isinstance(argument, Made):
            make, pick = argument.make, self.picker(argument.values)  # without the argument, which has tensors
            return self._computed(lambda values: make(*pick(values)))
        if isinstance(argument, tuple) and any(isinstance(item, Tensor) for item in argument):
            return self._computed(self.picker(argument))
        self.constants.append(argument)
        return self._bases + len(self.constants) - 1

    def _computed(self, value: Function) -> int:
        self.constants.append(None)
        place = self._bases + len(self.constants) - 1
        self.computed.append((place, value))
        return place


class _Current(threading.local):
    recording: Recording | None = None


_current = _Current()


def recording() -> Recording | None:
    """The one that this thread's launches belong to."""
    return _current.recording
