"""Limits of YAML files: their depth, and their size after the aliases are expanded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import yaml

DEEPEST: Final = 50
LARGEST: Final = 1_000_000
"""Values of a file. A few lines of aliases of aliases give billions, which fill the memory when they are copied."""


def check_limits(root: yaml.Node | None) -> None:
    """Check the nodes of a document.

    Raises:
        yaml.MarkedYAMLError: They are nested too deeply, are too many, or contain themselves.
    """
    if root is not None:
        _size(root, {}, 1)


def _size(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """Return the number of values in a node; 0 in ``sizes`` marks the nodes around it."""
    import yaml

    problem = ""
    size = sizes.get(id(node))
    if size == 0:
        problem = "an alias contains itself"
    elif depth > DEEPEST:
        problem = f"nested deeper than {DEEPEST} levels"
    elif size is None:
        sizes[id(node)] = 0
        size = 1
        if isinstance(node, yaml.MappingNode):
            size += sum(_size(child, sizes, depth + 1) for pair in node.value for child in pair)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(_size(child, sizes, depth + 1) for child in node.value)
        sizes[id(node)] = size
        if size > LARGEST:
            problem = f"more than {LARGEST} values after its aliases are expanded"
    if problem:
        raise yaml.MarkedYAMLError(None, None, problem, node.start_mark)
    assert size is not None
    return size
