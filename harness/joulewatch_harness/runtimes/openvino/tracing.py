"""Time of each layer from OpenVINO's performance counters, and the operators of the model that each layer computes.

The CPU plugin's counter of a layer is the mean over all inferences of the compiled model so far, in whole microseconds.
Reading it twice removes the slow first inferences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from joulewatch_harness.errors import NetworkError
from joulewatch_harness.networks.macs import MAC_OPS
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
    """The counters of one compiled model with a single stream, read before and after the measured batches."""

    read: Callable[[], Sequence[Any]]
    """``InferRequest.profiling_info``."""
    inferences: int = 0
    """Number of inferences since the model was compiled."""
    _readings: list[tuple[int, dict[str, tuple[str, int]]]] = field(default_factory=list)
    """Inferences, and each layer's kind and mean time in nanoseconds, before and after the measured batches."""

    def note(self) -> None:
        """Read the counters."""
        layers = {
            item.node_name: (f"{item.node_type} {item.exec_type}", round(item.real_time.total_seconds() * 1e9))
            for item in self.read()
            # A layer with a mean below 1 µs is reported as not run. It has a kernel, which
            # views and fused layers do not have.
            if str(item.status).endswith("EXECUTED") or not item.exec_type.startswith(_NO_KERNEL)
        }
        self._readings.append((self.inferences, layers))

    def layers(self) -> dict[str, tuple[str, int]]:
        """Return kind and time between the two readings of each layer, in the order in which they run.

        Raises:
            NetworkError: OpenVINO reports no layer.
        """
        (before, then), (after, now) = self._readings
        if not now:
            raise NetworkError("OpenVINO reported no times of layers")
        return {
            # The two means of a layer below 1 µs can contradict each other.
            name: (kind, max(mean_ns * after - then.get(name, ("", 0))[1] * before, 0))
            for name, (kind, mean_ns) in now.items()
        }


def operators(
    layers: Mapping[str, tuple[str, int]], calls: int, execution_graph: Any, model: Any, work: Work
) -> tuple[Operator, ...]:
    """Return the layers with the model's names of operators, and their work.

    Args:
        layers: From ``Counters.layers``.
        calls: Number of batches of these times.
        execution_graph: ``CompiledModel.get_runtime_model()``.
        model: An ``onnx.ModelProto`` whose nodes have unique names; None: the model is not an .onnx file.
        work: The work of the model.
    """
    computing = {} if model is None else _computing(execution_graph, model, work, set(layers))
    placed = {name for names in computing.values() for name in names}
    # A kernel of several fused operators may contain any operator that was not found elsewhere.
    all_placed = model is not None and placed >= set(work.macs)
    result = []
    for layer, (kind, time_ns) in layers.items():
        names = computing.get(layer, [])
        word = _plain(kind.partition(" ")[0])
        macs: int | None = sum(work.macs[name] for name in names)
        if not names and (_multiplies(word) or (word == "subgraph" and not all_placed)):
            macs = None
        result.append(Operator(name="+".join(names) or layer, op=kind, time_ns=time_ns, calls=calls, macs=macs))
    return tuple(result)


def _computing(execution_graph: Any, model: Any, work: Work, layers: set[str]) -> dict[str, list[str]]:
    """Return the operators with multiply-accumulates that each layer computes."""
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
    computing: dict[str, list[str]] = {}

    lost = []
    for name in work.macs:
        layer = layer_of.get(name, "")
        if _may_multiply(kinds.get(layer, "")):
            computing.setdefault(layer, []).append(name)
        elif name in nodes:
            lost.append(name)
    for name in lost:
        # Folded into the next operator: a convolution with a folded BatchNorm has a name that is not in the model.
        layer = _behind(nodes[name], layer_of, readers, graph, kinds, computing)
        if layer:
            computing.setdefault(layer, []).append(name)
    return computing


def _behind(
    node: Any,
    layer_of: Mapping[str, str],
    readers: Mapping[str, Sequence[Any]],
    graph: Mapping[str, Any],
    kinds: Mapping[str, str],
    taken: Mapping[str, Sequence[str]],
) -> str:
    """Return the layer of an operator whose name is lost: that of its reader, or the one before it, if any."""
    for _ in range(len(layer_of)):
        behind = [reader for name in node.output for reader in readers.get(name, ())]
        if len(behind) != 1 or behind[0].op_type in MAC_OPS:
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
    """Return the model's operator for OpenVINO's name: that of the operator or output, with a suffix after a slash."""
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
    """Return whether a layer is a subgraph: one kernel of several operators, perhaps with matrix products."""
    return kind == "subgraph" or _multiplies(kind)


def _plain(kind: str) -> str:
    return kind.replace("_", "").lower()


def _info(node: Any, key: str) -> str:
    try:
        return str(node.get_rt_info()[key].astype(str))
    except (KeyError, RuntimeError):
        return ""
