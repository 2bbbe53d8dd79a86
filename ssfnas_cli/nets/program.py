"""A network as a list of operations, recorded once and repeated for every batch of the same shape on a CPU.

What a network's modules decide while they run is decided when it is recorded, so four things become possible, which an
evaluation without gradients gains by (benchmarks/tracking.py):

- the weights of convolutions are brought into the layout of oneDNN once, and not at every call;
- an activation behind a convolution, and the addition of another map, are computed while its result is in the cache;
- what is computed several times of the same map (the ReLU that all ops from a node begin with) is computed once;
- a map is forgotten after the last operation that reads it.

An operation in place is recorded as one that makes a new map. Whether the list computes what the network does is
tried; a network that it does not fit (one whose operations depend on values) is computed by its modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
ACTIVATIONS = {aten.relu.default: "relu", aten.hardtanh.default: "hardtanh", aten.hardswish.default: "hardswish"}
IN_PLACE = {
    aten.relu_.default: aten.relu.default,
    aten.hardtanh_.default: aten.hardtanh.default,
    aten.hardswish_.default: aten.hardswish.default,
    aten.add_.Tensor: aten.add.Tensor,
    aten.as_strided_.default: aten.as_strided.default,
}
CONVOLUTION = torch.ops.mkldnn._convolution_pointwise.default
ADDITION = torch.ops.mkldnn._convolution_pointwise_.binary  # a convolution that is added to a map, in its memory
FRESH = {CONVOLUTION, ADDITION, aten.relu.default, aten.add.Tensor, aten.cat.default, aten.constant_pad_nd.default}
VIEWS = {aten.slice.Tensor, aten.alias.default, aten.detach.default, aten.view.default, aten.expand.default}
VALUES = {aten._local_scalar_dense.default, aten.nonzero.default}  # on which what follows may depend
TOLERANCE = 1e-3  # of the largest value


@dataclass(frozen=True)
class Slot:
    """The place of a map among those that are computed."""

    number: int


@dataclass
class Operation:
    """A function, its arguments (with slots for maps), the slot of its result and that one's shape."""

    function: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    result: Slot
    shape: torch.Size | None = None

    def reads(self) -> Iterator[Slot]:
        """The slots among its arguments, which may be in lists."""
        for given in (*self.arguments, *self.named.values()):
            for one in given if isinstance(given, list | tuple) else (given,):
                if isinstance(one, Slot):
                    yield one


class Unrecordable(Exception):
    """What the network does cannot be written down as a list."""


class Program:
    """The operations of a network on images of one shape; it maps such images to the network's result."""

    def __init__(self, operations: list[Operation], images: Tensor, result: Slot):
        self.shape, self.result = images.shape, result
        self.operations = operations
        last = {slot: number for number, one in enumerate(operations) for slot in one.reads()}
        self.forgotten = [[slot for slot in set(one.reads()) if last[slot] == n] for n, one in enumerate(operations)]

    def __call__(self, images: Tensor) -> Tensor:
        maps: dict[Slot, Tensor] = {Slot(0): images}
        for one, forgotten in zip(self.operations, self.forgotten, strict=True):
            arguments = [_filled(given, maps) for given in one.arguments]
            maps[one.result] = one.function(*arguments, **one.named)
            for slot in forgotten:
                if slot != self.result and slot != one.result:
                    del maps[slot]
        return maps[self.result]


def _filled(given: Any, maps: dict[Slot, Tensor]) -> Any:
    if isinstance(given, Slot):
        return maps[given]
    return [_filled(one, maps) for one in given] if isinstance(given, list) else given


@torch.no_grad()
def record(network: nn.Module, images: Tensor, exact: Tensor | None = None) -> Program | None:
    """The program of a network in evaluation mode for images of this shape, or None if it has none.

    Args:
        network: gives one tensor.
        images: [N, C, H, W], on the CPU.
        exact: what it would give without rounding, if that is not what it gives: in bf16, the order of operations
            changes some digits, and the program may be as far from this as twice the network is.
    """
    recorder = _Recorder(images)
    try:
        with recorder:
            wanted = network(images)
        operations = _fused(recorder.operations, recorder.known[id(wanted)])
        program = Program(operations, images, recorder.known[id(wanted)])
        found = program(images)
    except (Unrecordable, KeyError, RuntimeError, AttributeError):  # a plugin, or a torch without these functions
        return None
    exact = wanted if exact is None else exact
    allowed = 2 * (wanted - exact).abs().max() + TOLERANCE * exact.abs().max()
    return program if bool((found - exact).abs().max() <= allowed) else None


class _Recorder(TorchDispatchMode):
    """Writes down operations. A tensor is known by its id, so that all of them are kept until the end."""

    def __init__(self, images: Tensor):
        super().__init__()
        self.operations: list[Operation] = []
        self.known = {id(images): Slot(0)}
        self.kept: list[Any] = [images]
        self.done: dict[Any, Slot] = {}  # what has been computed of what, so that it is computed once

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in VALUES or torch.Tag.nondeterministic_seeded in func.tags:
            raise Unrecordable(str(func))
        arguments = tuple(self._written(given) for given in args)
        result = func(*args, **named)
        self.kept.append((args, named, result))
        values = result if isinstance(result, tuple | list) else (result,)
        if not any(isinstance(value, Tensor) for value in values):
            return result
        if func in VIEWS and _is_the_same(args[0], result) and id(args[0]) in self.known:
            self.known[id(result)] = self.known[id(args[0])]
            return result
        function = IN_PLACE.get(func, func)
        if function is func and func._schema.is_mutable:
            raise Unrecordable(str(func))
        self._note(function, arguments, named, result)
        return result

    def _note(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        if not isinstance(result, Tensor):
            whole = self._add(function, arguments, named)
            for number, part in enumerate(result):
                self.known[id(part)] = self._add(_part, (whole, number), {})
            return
        self.known[id(result)] = self._add(function, arguments, named, result.shape)

    def _add(
        self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any], shape: torch.Size | None = None
    ) -> Slot:
        key = (function, repr([_key(given) for given in arguments]), repr(named))
        if key not in self.done:
            self.done[key] = Slot(len(self.operations) + 1)
            self.operations.append(Operation(function, arguments, named, self.done[key], shape))
        return self.done[key]

    def _written(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            return self.known.get(id(given), given)
        return [self._written(one) for one in given] if isinstance(given, list | tuple) else given


def _is_the_same(x: Tensor, view: Tensor) -> bool:
    """Whether a view is all of a map."""
    return (x.shape, x.stride(), x.storage_offset()) == (view.shape, view.stride(), view.storage_offset())


def _part(whole: Any, number: int) -> Any:
    """One of several results of an operation."""
    return whole[number]


def _key(given: Any) -> Any:
    """What tells an argument from others: a weight is itself, whatever its values are."""
    if isinstance(given, list):
        return [_key(one) for one in given]
    return id(given) if isinstance(given, Tensor) else given


# Convolutions with what follows them


class _Reads:
    """How often each map is read, and by which operation last."""

    def __init__(self, operations: list[Operation], result: Slot):
        self.num = Counter(slot for one in operations for slot in one.reads())
        self.num[result] += 1
        self.last = {slot: one for one in operations for slot in one.reads()}
        self.maker = {one.result: one for one in operations}

    def only_reader(self, slot: Slot) -> Operation | None:
        """The one operation that reads a map, if it is one."""
        return self.last.get(slot) if self.num[slot] == 1 else None


def _fused(operations: list[Operation], result: Slot) -> list[Operation]:
    """The operations, with convolutions that do what follows them."""
    for number, one in enumerate(operations):
        if one.function is aten.convolution.default and _can_be_packed(one):
            operations[number] = _packed(one)
    with_activations = _absorb(operations, result, _with_activation)
    return _absorb(_absorb(with_activations, result, _with_addition), result, _with_activation)


def _absorb(operations: list[Operation], result: Slot, join: Any) -> list[Operation]:
    """The operations, of which `join(later, reads)` replaces one and an earlier one, which it names, by a new one."""
    reads, gone, new = _Reads(operations, result), set(), {}
    for one in operations:
        if (joined := join(one, reads)) is not None:
            earlier, both = joined
            gone.add(id(earlier))
            new[id(one)] = reads.maker[both.result] = both
    return [new.get(id(one), one) for one in operations if id(one) not in gone]


def _packed(one: Operation) -> Operation:
    """A convolution by oneDNN, with its weight in the layout that this wants."""
    x, weight, bias, stride, padding, dilation, _, _, groups = one.arguments
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, None)
    return Operation(CONVOLUTION, (x, packed, bias, padding, stride, dilation, groups, "none", [], ""), {}, *_of(one))


def _with_activation(later: Operation, reads: _Reads) -> tuple[Operation, Operation] | None:
    """A convolution, or one with an addition, and the activation that alone reads it."""
    if later.function not in ACTIVATIONS or not isinstance(later.arguments[0], Slot):
        return None
    earlier, name = reads.maker.get(later.arguments[0]), ACTIVATIONS[later.function]
    if earlier is None or reads.only_reader(earlier.result) is not later or later.named:
        return None
    if earlier.function is CONVOLUTION and earlier.arguments[7] == "none":
        numbers = list(later.arguments[1:])
        numbers = [-1.0, 1.0] if name == "hardtanh" and len(numbers) < 2 else numbers
        return earlier, Operation(CONVOLUTION, (*earlier.arguments[:7], name, numbers, ""), {}, *_of(later))
    if earlier.function is ADDITION and name == "relu" and earlier.arguments[10] is None:
        return earlier, Operation(ADDITION, (*earlier.arguments[:10], "relu", [], ""), {}, *_of(later))
    return None


def _with_addition(later: Operation, reads: _Reads) -> tuple[Operation, Operation] | None:
    """A convolution and the addition that alone reads it, in the memory of the other map, which nothing else reads."""
    if later.function is not aten.add.Tensor or len(later.arguments) != 2 or later.named:
        return None
    for slot, other in (later.arguments, later.arguments[::-1]):
        if not (isinstance(slot, Slot) and isinstance(other, Slot)) or slot == other:
            continue
        earlier, made = reads.maker.get(slot), reads.maker.get(other)
        if earlier is None or made is None or earlier.function is not CONVOLUTION or earlier.arguments[7] != "none":
            continue
        alone = reads.only_reader(slot) is later and reads.last[other] is later
        if alone and made.function in FRESH and made.shape == earlier.shape:
            arguments = (other, *earlier.arguments[:7], "add", 1.0, None, [], "")
            return earlier, Operation(ADDITION, arguments, {}, *_of(later))
    return None


def _of(one: Operation) -> tuple[Slot, torch.Size | None]:
    return one.result, one.shape


def _can_be_packed(one: Operation) -> bool:
    """Whether oneDNN computes a convolution with a constant weight, and rightly."""
    x, weight, bias, stride, _, _, transposed, _, _ = one.arguments
    constant = isinstance(x, Slot) and isinstance(weight, Tensor) and not isinstance(bias, Slot)
    if not constant or transposed or weight.ndim != 4:
        return False
    return not (weight.shape[2:] == (1, 1) and max(stride) > 1 and weight.shape[1] < 16)  # uxlfoundation/oneDNN#6035
