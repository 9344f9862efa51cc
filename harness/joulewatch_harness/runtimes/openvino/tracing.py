"""Time per layer from OpenVINO's performance counters, and which operators of the model each layer computes.

The CPU plugin's counter of a layer is not that of the last inference: it is the mean over all inferences of the
compiled model so far, in whole microseconds. The slow first ones are taken out again by reading it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from joulewatch_harness.errors import NetworkError
from joulewatch_harness.networks import cost as graphs
from joulewatch_harness.runtimes.shared.tracing import Work
from joulewatch_harness.traces import Operator

WEIGHTED: Final = frozenset(
    {
        "convolution", "groupconvolution", "deconvolution", "groupdeconvolution", "binaryconvolution", "fullyconnected",
        "matmul", "gemm", "innerproduct", "rnnseq", "rnncell", "scaleddotproductattention", "mha", "llmmlp", "qkvproj",
        "gathermatmul",
    }
)  # fmt: skip
"""Layers of the execution graph that multiply; names differ in case and underscores among devices."""
_NO_KERNEL: Final = ("undef", "unknown")
_STILL: Final = frozenset({"const", "constant", "input", "parameter"})


@dataclass(slots=True)
class Counters:
    """The counters of one compiled model with a single stream, read before and after the batches that count."""

    read: Callable[[], Sequence[Any]]
    """``InferRequest.profiling_info``."""
    inferences: int = 0
    """Of the compiled model, since it was compiled."""
    _readings: list[tuple[int, dict[str, tuple[str, int]]]] = field(default_factory=list)
    """Inferences so far, and each layer's kind and mean time in nanoseconds: before what counts, and after it."""

    def note(self) -> None:
        """Read them now."""
        layers = {
            item.node_name: (f"{item.node_type} {item.exec_type}", round(item.real_time.total_seconds() * 1e9))
            for item in self.read()
            # A layer whose mean is below a microsecond is said not to have run; it has a kernel all the same, which
            # views and what was fused into another layer have not.
            if str(item.status).endswith("EXECUTED") or not item.exec_type.startswith(_NO_KERNEL)
        }
        self._readings.append((self.inferences, layers))

    def layers(self) -> dict[str, tuple[str, int]]:
        """Layer -> what it is, and its time between the two readings, in the order in which they run.

        Raises:
            NetworkError: OpenVINO told no layer.
        """
        (before, then), (after, now) = self._readings
        if not now:
            raise NetworkError("OpenVINO told no times of layers")
        return {
            # Of a layer below a microsecond the two means can contradict each other.
            name: (kind, max(mean_ns * after - then.get(name, ("", 0))[1] * before, 0))
            for name, (kind, mean_ns) in now.items()
        }


def operators(
    layers: Mapping[str, tuple[str, int]], calls: int, execution_graph: Any, model: Any, work: Work
) -> tuple[Operator, ...]:
    """Layers with the model's own names, and their work.

    Args:
        layers: What ``Counters.layers`` gives.
        calls: How many batches those times are of.
        execution_graph: ``CompiledModel.get_runtime_model()``.
        model: An ``onnx.ModelProto`` whose nodes have names of their own; None: the model is no .onnx file.
        work: Counted from it.
    """
    computing = {} if model is None else _computing(execution_graph, model, work, set(layers))
    placed = {name for names in computing.values() for name in names}
    # A kernel of several fused operators may hold any that was not found elsewhere.
    all_placed = model is not None and placed >= set(work.macs)
    found = []
    for layer, (kind, time_ns) in layers.items():
        names = computing.get(layer, [])
        word = _plain(kind.partition(" ")[0])
        macs: int | None = sum(work.macs[name] for name in names)
        if not names and (_multiplies(word) or (word == "subgraph" and not all_placed)):
            macs = None
        found.append(Operator(name="+".join(names) or layer, op=kind, time_ns=time_ns, calls=calls, macs=macs))
    return tuple(found)


def _computing(execution_graph: Any, model: Any, work: Work, layers: set[str]) -> dict[str, list[str]]:
    """Layer -> the operators with multiply-accumulates that it computes."""
    nodes = {node.name: node for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    graph = {node.get_friendly_name(): node for node in execution_graph.get_ordered_ops()}
    kinds = {name: _plain(_info(node, "layerType")) for name, node in graph.items()}
    layer_of: dict[str, str] = {}
    for layer, node in graph.items():
        if layer not in layers:
            continue  # constants, views, and what was fused away
        for original in (*_info(node, "originalLayersNames").split(","), layer):
            own = _of_model(original, nodes, makers)
            if own and (own not in layer_of or _multiplies(kinds[layer])):
                layer_of[own] = layer
    found: dict[str, list[str]] = {}

    lost = []
    for name in work.macs:
        layer = layer_of.get(name, "")
        if _may_multiply(kinds.get(layer, "")):
            found.setdefault(layer, []).append(name)
        elif name in nodes:
            lost.append(name)
    for name in lost:
        # Folded into what comes behind it: a convolution whose weights took a BatchNorm in has a name of no model.
        layer = _behind(nodes[name], layer_of, readers, graph, kinds, found)
        if layer:
            found.setdefault(layer, []).append(name)
    return found


def _behind(
    node: Any,
    layer_of: Mapping[str, str],
    readers: Mapping[str, Sequence[Any]],
    graph: Mapping[str, Any],
    kinds: Mapping[str, str],
    taken: Mapping[str, Sequence[str]],
) -> str:
    """The layer that computes an operator whose own name is lost: that of its reader, or the one before it; or none."""
    for _ in range(len(layer_of)):
        behind = [reader for name in node.output for reader in readers.get(name, ())]
        if len(behind) != 1 or behind[0].op_type in graphs.MAC_OPS:
            return ""
        node = behind[0]
        if node.name in layer_of:
            break
    layer = layer_of.get(node.name, "")
    while layer and not _may_multiply(kinds[layer]):
        before = [value.get_node().get_friendly_name() for value in graph[layer].input_values()]
        moving = [name for name in before if kinds.get(name, "const") not in _STILL]
        layer = moving[0] if len(moving) == 1 else ""
    return "" if layer in taken and _multiplies(kinds[layer]) else layer


def _of_model(original: str, nodes: Mapping[str, Any], makers: Mapping[str, Any]) -> str:
    """The model's operator behind OpenVINO's name: its own or its output's, with what passes put after a slash."""
    for _ in range(3):
        if original in nodes:
            return original
        if original in makers:
            return str(makers[original].name)
        original = original.rpartition("/")[0]
    return ""


def _multiplies(kind: str) -> bool:
    return any(kind.startswith(word) for word in WEIGHTED)


def _may_multiply(kind: str) -> bool:
    """A subgraph is one kernel made of several operators, some of which may be matrix products."""
    return kind == "subgraph" or _multiplies(kind)


def _plain(kind: str) -> str:
    return kind.replace("_", "").lower()


def _info(node: Any, key: str) -> str:
    try:
        return str(node.get_rt_info()[key].astype(str))
    except (KeyError, RuntimeError):
        return ""
