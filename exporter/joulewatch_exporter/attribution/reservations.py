"""The share of the processors that each workload has by weight, if all of them want processors. Pure.

The kernel shares the processors among the children of a cgroup by their weights (``cpu.weight``; version 1:
``cpu.shares``), level by level. Kubernetes sets them from the requests of pods, systemd from ``CPUWeight=``. A cgroup
without the controller has no file; it counts with the kernel's default.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol, runtime_checkable

from joulewatch_exporter.attribution.model import ROOT

WEIGHT_FILES: Final = {"v1": "cpu.shares", "v2": "cpu.weight"}
DEFAULT_WEIGHTS: Final = {"v1": 1024.0, "v2": 100.0}


@runtime_checkable
class Reserving(Protocol):
    """A usage source that knows weights."""

    def reserved(self) -> Mapping[str, float]:
        """Return node -> its share of the processors, that of the nodes below it included."""
        ...


def reserved_shares(nodes: Collection[str], weight: Callable[[str], float]) -> dict[str, float]:
    """Return the share of the processors of each node of a tree.

    Args:
        nodes: Their paths.
        weight: Returns the weight of a node among the children of its parent.
    """
    children: dict[str, list[str]] = {}
    for node in nodes:
        children.setdefault(node.rpartition("/")[0], []).append(node)
    shares = {ROOT: 1.0}
    for parent in sorted(children, key=lambda key: (key != ROOT, key.count("/"))):
        if parent not in shares:
            continue  # it is gone
        weights = {node: weight(node) for node in children[parent]}
        total = sum(weights.values())
        shares |= {node: shares[parent] * one / total if total else 0.0 for node, one in weights.items()}
    return shares


def own_shares(shares: Mapping[str, float], shown: Collection[str]) -> dict[str, float]:
    """Return the shares of some nodes, without those of the other ones of them that are below."""
    own = {key: shares[key] for key in shown if key in shares}
    for key in own:
        parent = key
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in own:
                own[parent] -= shares[key]
                break
    return {key: max(share, 0.0) for key, share in own.items()}
