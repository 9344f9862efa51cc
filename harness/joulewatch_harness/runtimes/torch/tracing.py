"""Time of each operator from PyTorch's profiler, and its work.

The profiler records nested calls of PyTorch's functions. An operator is an outermost one: a node of the .onnx file or
of the exported program, a layer of a module, a kernel of ``torch.compile``. Ranges around these, only while tracing,
give them their names; on a GPU the time of an operator is that of the kernels that were launched in its range.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from joulewatch_harness.errors import NetworkError
from joulewatch_harness.runtimes.shared.tracing import Tally, Work
from joulewatch_harness.traces import Operator

ORIGIN: Final = "joulewatch_onnx"
"""Key of the name of the .onnx node in a node of a ``torch.fx`` graph."""
BATCH: Final = "joulewatch batch"
_RANGE: Final = "joulewatch operator "
_KERNEL: Final = re.compile(r"(graph_\d+_)?(cpp|triton)_\w+")
"""Names of the kernels of ``torch.compile``."""
_TEMPLATE: Final = re.compile(r"triton_tem_|\w*_gemm|\w*micro_gemm")
"""Kernels that are matrix products or convolutions; the others contain the operators fused around them."""
_MULTIPLIES: Final = re.compile(
    r"conv(?!ert)|linear|gemm|(?<![a-z])\w*mm(?![a-z])|matmul|attention|lstm|gru|rnn|einsum"
)
_QUIET: Final = ("KINETO_LOG_LEVEL", "6")
"""Silence the profiler's library, which logs each start and stop to stderr."""


def with_ranges(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Return the module with a range around each call; the weights are shared."""
    graph = copy.deepcopy(module.graph)
    enter = torch.ops.profiler._record_function_enter_new.default
    leave = torch.ops.profiler._record_function_exit._RecordFunction
    for node in list(graph.nodes):
        if node.op not in ("call_function", "call_method", "call_module"):
            continue
        op = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        with graph.inserting_before(node):
            opened = graph.call_function(enter, (_label(node.meta.get(ORIGIN, node.name), op), None))
        with graph.inserting_after(node):
            graph.call_function(leave, (opened,))
    return torch.fx.GraphModule(module, graph)


@contextlib.contextmanager
def ranges_of_layers(module: torch.nn.Module) -> Iterator[None]:
    """Put ranges around the innermost modules while the context lasts."""
    opened: list[Any] = []
    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, torch.jit.ScriptModule) or any(True for _ in layer.children()):
            continue
        label = _label(name or type(layer).__name__, type(layer).__name__)

        def enter(_layer: Any, _arguments: Any, label: str = label) -> None:
            opened.append(record_function(label))
            opened[-1].__enter__()

        def leave(_layer: Any, _arguments: Any, _outputs: Any) -> None:
            opened.pop().__exit__(None, None, None)

        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _label(name: str, op: str) -> str:
    return f"{_RANGE}{name}\t{op.removeprefix('_')}"


@dataclass(slots=True, kw_only=True)
class Profiler:
    """Runs traced batches and adds up their operators."""

    call: Callable[[], object]
    """Launches one batch."""
    wait: Callable[[], object]
    """Waits for the device."""
    on_gpu: bool = False
    tally: Tally = field(default_factory=Tally)
    macs: dict[str, int | None] = field(default_factory=dict)

    def block(self, batches: int) -> int:
        """Trace a number of batches; return their nanoseconds, without starting and reading the profiler."""
        took_ns, events = self._profiled(batches, shapes=False)
        for batch in batches_of(events):
            for name, op, event in batch:
                time_us = event.device_time_total if self.on_gpu else event.time_range.elapsed_us()
                self.tally.add(name, op, round(time_us * 1000))
        return took_ns

    def count_work(self) -> int:
        """Count the multiply-accumulates of the operators in a separate batch, because recording shapes is slow.

        Returns:
            The number of events of a batch.
        """
        _, events = self._profiled(1, shapes=True)
        for batch in batches_of(events):
            for name, _, event in batch:
                self.macs[name] = added(self.macs.get(name, 0), macs_of(event))
        return len(events) // 2  # of this batch and of the ignored one before it

    def operators(self, work: Work) -> tuple[Operator, ...]:
        """Return the operators; work from the model's file takes precedence over work from shapes."""
        return self.tally.operators({**self.macs, **{name: work.macs[name] for name in self.macs if name in work.macs}})

    def _profiled(self, batches: int, *, shapes: bool) -> tuple[int, Sequence[Any]]:
        os.environ.setdefault(*_QUIET)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.on_gpu else [])
        with torch.profiler.profile(activities=activities, record_shapes=shapes) as profiler:
            self.call()  # the first after a start is slow and is ignored
            self.wait()
            start_ns = time.monotonic_ns()
            for _ in range(batches):
                with record_function(BATCH):
                    self.call()
            self.wait()
            took_ns = time.monotonic_ns() - start_ns
        return took_ns, profiler.events() or ()


def batches_of(events: Sequence[Any]) -> list[list[tuple[str, str, Any]]]:
    """Return the outermost operators of each batch: name, kind and event.

    Raises:
        NetworkError: the profiler recorded none.
    """
    roots = [item for item in events if item.name == BATCH and item.device_type == DeviceType.CPU]
    batches = []
    for root in roots:
        outermost = list(_outermost(root))
        times = Counter(name for name, _, ranged in outermost if not _has_range(ranged))
        seen: Counter[str] = Counter()
        batch = []
        for name, op, event in outermost:
            if times[name] > 1:  # the same function several times in a batch: distinguished by order
                seen[name] += 1
                name = f"{name} {seen[name]}"
            batch.append((name, op, event))
        batches.append(batch)
    if not any(batches):
        raise NetworkError("PyTorch's profiler recorded no operators")
    return batches


def _outermost(event: Any) -> Iterator[tuple[str, str, Any]]:
    for child in sorted(event.cpu_children, key=lambda item: item.time_range.start):
        if _has_range(child):
            name, _, op = child.name.removeprefix(_RANGE).partition("\t")
            yield name, op, child
        elif "::" in child.name:
            yield child.name.rpartition("::")[2], child.name, child
        elif _KERNEL.match(child.name):
            yield re.sub(r"^graph_\d+_", "", child.name), "kernel", child
        else:
            yield from _outermost(child)


def _has_range(event: Any) -> bool:
    return bool(event.name.startswith(_RANGE))


def added(one: int | None, other: int | None) -> int | None:
    """Return the sum; None if one of the two is unknown."""
    return None if one is None or other is None else one + other


def macs_of(event: Any) -> int | None:
    """Return the multiply-accumulates of a call and its inner calls, from the shapes of inputs; None: unknown."""
    name = event.name.rpartition("::")[2]
    count = _COUNTED.get(name) if "::" in event.name else None
    if count is not None:
        try:
            return count([tuple(shape) for shape in event.input_shapes], list(event.concrete_inputs))
        except (IndexError, TypeError, ValueError):
            return None  # in another form than that of PyTorch's functions
    total: int | None = 0
    for child in event.cpu_children:
        total = added(total, macs_of(child))
    multiplies = _MULTIPLIES.search(name) if "::" in event.name else _TEMPLATE.match(name)
    return None if multiplies and not total else total


_Shapes = Sequence[tuple[int, ...]]


def _convolution_macs(shapes: _Shapes, values: Sequence[Any]) -> int:
    x, weight = shapes[0], shapes[1]
    if values[6]:  # transposed: every input is multiplied by the whole kernel
        return math.prod(x) * math.prod(weight[1:])
    axes = len(weight) - 2
    stride, padding, dilation = (list(values[place]) * (axes if len(values[place]) == 1 else 1) for place in (3, 4, 5))
    sizes = [
        (size + 2 * padding[axis] - dilation[axis] * (weight[axis + 2] - 1) - 1) // stride[axis] + 1
        for axis, size in enumerate(x[-axes:])
    ]
    outputs: int = math.prod(x[: -axes - 1]) * weight[0] * math.prod(sizes)
    return outputs * math.prod(weight[1:])


def _product_macs(place: int) -> Callable[[_Shapes, Sequence[Any]], int]:
    def macs(shapes: _Shapes, _: Sequence[Any]) -> int:
        columns: int = shapes[place + 1][-1]
        return math.prod(shapes[place]) * columns

    return macs


def _attention_macs(shapes: _Shapes, _: Sequence[Any]) -> int:
    query, key, value = shapes[:3]
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_COUNTED: Final[Mapping[str, Callable[[_Shapes, Sequence[Any]], int]]] = {
    "convolution": _convolution_macs,
    "_convolution": _convolution_macs,
    "linear": lambda shapes, _: math.prod(shapes[0]) * shapes[1][0],
    "mm": _product_macs(0),
    "bmm": _product_macs(0),
    "addmm": _product_macs(1),
    "baddbmm": _product_macs(1),
    "scaled_dot_product_attention": _attention_macs,
}
