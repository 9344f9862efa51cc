"""Time of each operator from ONNX Runtime's profile of Chrome trace events.

The profile contains the operators of the optimised graph, in whole microseconds. Their names are those of the graph
that the same session wrote. Multiply-accumulates are counted from that graph, because the events lack the shapes of
weights that a kernel has packed.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joulewatch_harness.errors import NetworkError
from joulewatch_harness.networks import graphs
from joulewatch_harness.networks.cost import IN_PLACE
from joulewatch_harness.networks.macs import MAC_OPS, node_macs, uncounted
from joulewatch_harness.runtimes.shared.inputs import Batches
from joulewatch_harness.runtimes.shared.tracing import Tally, Work
from joulewatch_harness.traces import Operator

_SUFFIX: Final = "_kernel_time"
_CONTROL_FLOW: Final = frozenset({"If", "Loop", "Scan"})
"""Their events contain those of the operators inside."""
_AFFIXES: Final = re.compile(r"^(fused |InsertedPrecisionFreeCast_)+|(_nchwc|_token_\d+)+$")
"""Prefixes and suffixes that ONNX Runtime adds to the name of an operator or output when it fuses or reorders it."""
_FAMILIES: Final = (
    frozenset({"Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger"}),
    frozenset(
        {
            "Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "FusedMatMulActivation", "QLinearMatMul",
            "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits",
        }
    ),
)  # fmt: skip
"""Operators that the optimiser turns into each other."""


@dataclass(slots=True, kw_only=True)
class _Event:
    name: str
    op: str
    index: str
    start_us: int
    duration_us: int
    shapes: tuple[graphs.Shape, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """The traced batches."""

    batches: int
    time_ns: int
    operators: tuple[Operator, ...]


def read_profile(
    profile: Path, optimized: Path, source: Path, batch: int, *, warmup: int, batches: Batches | None = None
) -> tuple[Profile, int | None]:
    """Read a profile.

    Args:
        profile: The file of ``end_profiling``.
        optimized: The graph that the session wrote.
        source: The model file that the session read.
        batch: Batch size.
        warmup: Number of batches at the beginning that are ignored.
        batches: The maker of the batches; None: the first axis is the batch, and the only open one.

    Returns:
        The profile, and the multiply-accumulates of one batch, counted from ``source``; None: unknown.

    Raises:
        NetworkError: the file is not a valid profile, or contains no run.
    """
    try:
        events = json.loads(profile.read_text(encoding="utf-8", errors="replace"))
        runs, nodes = _events(events)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise NetworkError(f"ONNX Runtime's profile {profile.name} cannot be read: {error}") from error
    counted = runs[warmup:]
    starts = [start for start, _ in counted]
    kept: list[_Event] = []
    for event in _outermost(nodes):
        place = bisect.bisect_right(starts, event.start_us) - 1
        if place >= 0 and event.start_us < counted[place][0] + counted[place][1]:
            kept.append(event)
    if not counted or not kept:
        raise NetworkError(f"ONNX Runtime's profile {profile.name} contains no run with operators")
    plain_names, macs, total = _macs(kept, optimized, source, batch, batches)
    tally = Tally()
    for event in kept:
        tally.add(event.name, event.op, event.duration_us * 1000)
    operators = tuple(
        dataclasses.replace(item, name=plain_names.get(item.name) or _plain(item.name))
        for item in tally.operators(macs)
    )
    return Profile(len(counted), sum(duration for _, duration in counted) * 1000, operators), total


def _events(events: Sequence[Any]) -> tuple[list[tuple[int, int]], list[_Event]]:
    """Return start and duration of each run, and the events of operators, both sorted by time."""
    runs: list[tuple[int, int]] = []
    nodes: list[_Event] = []
    for item in events:
        if item.get("cat") == "Session" and item.get("name") == "model_run":
            runs.append((int(item["ts"]), int(item["dur"])))
        elif item.get("cat") == "Node" and str(item.get("name", "")).endswith(_SUFFIX):
            arguments = item["args"]
            op, index = str(arguments.get("op_name", "")), str(arguments.get("node_index", ""))
            shapes = tuple(
                tuple(int(size) for size in next(iter(one.values()), ()))
                for one in arguments.get("output_type_shape", ())
                if isinstance(one, dict)
            )
            name = str(item["name"]).removesuffix(_SUFFIX) or f"{op}_{index}"
            nodes.append(
                _Event(
                    name=name, op=op, index=index, start_us=int(item["ts"]), duration_us=int(item["dur"]), shapes=shapes
                )
            )
    runs.sort()
    nodes.sort(key=lambda event: (event.start_us, -event.duration_us))
    return runs, nodes


def _outermost(nodes: Sequence[_Event]) -> list[_Event]:
    """Return the events without those inside loops and branches, whose time the event of the loop contains."""
    kept: list[_Event] = []
    inside_until_us = -1
    for event in nodes:
        if event.start_us < inside_until_us:
            continue
        if event.op in _CONTROL_FLOW:
            inside_until_us = event.start_us + event.duration_us
        kept.append(event)
    return kept


def _plain(name: str) -> str:
    return _AFFIXES.sub("", name) or name


def _macs(
    events: Sequence[_Event], optimized: Path, source: Path, batch: int, batches: Batches | None
) -> tuple[dict[str, str], dict[str, int | None], int | None]:
    """Return the model's names of operators, their multiply-accumulates of one batch, and those of the graph."""
    model = graphs.read_model(source)
    work = Work.of(model, batch, batches.sizes() if batches is not None else None)
    if not optimized.is_file():
        return {}, {}, work.total
    graph = graphs.read_model(optimized).graph
    shapes: dict[str, graphs.Shape] = {item.name: tuple(item.dims) for item in graph.initializer}
    shapes |= batches.shapes(batch) if batches is not None else {}
    for item in graph.input:
        sizes = [size.dim_value for size in item.type.tensor_type.shape.dim]
        # A size of 0 is a symbol: the batch, if it is the first axis.
        if item.name not in shapes and all(sizes[1:]):
            shapes[item.name] = tuple((size or batch) for size in sizes)
    nodes = {node.name: node for node in graph.node if node.name}
    for event in events:
        node = nodes.get(event.name)
        if node is not None and len(event.shapes) == sum(bool(name) for name in node.output):
            shapes |= zip((name for name in node.output if name), event.shapes, strict=True)
    origins = _Origins(model.graph)
    names: dict[str, str] = {}
    macs: dict[str, int | None] = {}
    for name in dict.fromkeys(event.name for event in events):
        node = nodes.get(name)
        if node is None:
            continue
        if node.op_type not in MAC_OPS:
            macs[name] = None if uncounted(node) else 0
            continue
        origin = origins.of(node)
        if origin:
            names[name] = origin
        # Blocked layouts pad channels: prefer the work of the model's operator.
        own = work.macs.get(origin)
        macs[name] = node_macs(node, shapes) if own is None else own
    return names, macs, work.total


class _Origins:
    """Finds the operator of the model that became an operator of the optimised graph."""

    def __init__(self, graph: Any) -> None:
        self._nodes = {node.name: node for node in graph.node if node.name}
        self._maker = {name: node for node in graph.node for name in node.output}
        self._constants = {item.name for item in graph.initializer}
        self._taken: set[str] = set()

    def of(self, node: Any) -> str:
        """Return the name of the operator; empty if no operator, or more than one, fits."""
        family = next((kinds for kinds in _FAMILIES if node.op_type in kinds), frozenset())
        own = self._nodes.get(_plain(node.name))
        if own is None or own.op_type not in family:
            # Nodes of blocked layouts have the name of their output.
            own = self._behind(_plain(node.output[0]), family) or self._behind(_plain(node.name), family)
        if own is None or own.name in self._taken:
            return ""
        self._taken.add(str(own.name))
        return str(own.name)

    def _behind(self, tensor: str, family: frozenset[str]) -> Any:
        """Return the operator whose result becomes ``tensor`` by elementwise operators only."""
        for _ in range(len(self._nodes)):
            maker = self._maker.get(tensor)
            if maker is None or maker.op_type in family:
                return maker
            inputs = [name for name in maker.input if name and name not in self._constants]
            if maker.op_type not in IN_PLACE or not inputs:
                return None
            # The sum of a residual is fused into the branch that is computed last.
            makers = [(name, self._maker.get(name)) for name in inputs]
            close = [name for name, other in makers if other is not None and other.op_type in family]
            tensor = close[0] if close else inputs[0]
        return None


def count_nodes(model: Path) -> int:
    """Return the number of nodes of a model file."""
    return len(graphs.read_model(model).graph.node)


def file_of(folder: Path, prefix: str, name: str) -> Path:
    """Return the file of the profile; ``name`` is that from ``end_profiling``, which is empty in some versions."""
    if name and Path(name).is_file():
        return Path(name)
    files = sorted(folder.glob(f"{prefix}*.json"))
    if not files:
        raise NetworkError("ONNX Runtime has not written a profile")
    return files[-1]
