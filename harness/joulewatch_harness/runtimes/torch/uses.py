"""How a module uses its integer inputs, from one small batch in which the selections from tables are observed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from joulewatch_harness.errors import JoulewatchError
from joulewatch_harness.runtimes.shared.inputs import Batches
from joulewatch_harness.runtimes.shared.uses import Use

logger = logging.getLogger(__name__)

_BY_WEIGHT: Final = frozenset(
    {"aten::embedding", "aten::embedding_bag", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"}
)
_BY_AXIS: Final = frozenset({"aten::index_select", "aten::gather"})
_MOVING: Final = frozenset(
    {
        f"aten::{name}"
        for name in (
            "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "slice", "select", "transpose",
            "permute", "t", "clone", "_to_copy", "to", "alias", "detach", "flatten", "contiguous", "clamp", "repeat",
        )
    }
)  # fmt: skip


class _Watch(TorchDispatchMode):  # type: ignore[misc]
    """Notes from how many rows each input selects."""

    def __init__(self, inputs: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.uses = {name: Use() for name in inputs}
        self._names = {id(tensor): name for name, tensor in inputs.items()}
        self._kept: list[Any] = list(inputs.values())
        """Keeps the tensors, so that no id is used twice."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        op = function._schema.name
        if op in _BY_WEIGHT:
            self._note(args[1], args[0].shape[0])
        elif op in _BY_AXIS:
            self._note(args[2], args[0].shape[args[1]])
        elif op == "aten::index":
            for axis, index in enumerate(args[1]):
                self._note(index, args[0].shape[axis])
        elif op in _MOVING and id(args[0]) in self._names and not result.is_floating_point():
            self._names[id(result)] = self._names[id(args[0])]
            self._kept.append(result)
        return result

    def _note(self, index: Any, rows: int) -> None:
        name = self._names.get(id(index))
        if name is not None and index.dtype != torch.bool:
            self.uses[name].allow(np.array(0, np.int64), np.array(rows, np.int64))


def uses_of(call: Callable[..., Any], batches: Batches, dtypes: Sequence[torch.dtype | None]) -> Mapping[str, Use]:
    """Return how a module on the CPU uses its inputs; empty if it cannot run there.

    Args:
        call: The module.
        batches: Makes its inputs, with guessed values.
        dtypes: Type of each input; None: that of the array.
    """
    if all(rule.kind != "guess" for rule in batches.rules.values()):
        return {}
    try:
        arrays = batches.arrays(batches.fixed_size or 1)
        tensors = {}
        for item, dtype in zip(batches.inputs, dtypes, strict=True):
            tensor = torch.from_numpy(np.array(arrays[item.name]))
            tensors[item.name] = tensor.to(dtype) if tensor.is_floating_point() and dtype is not None else tensor
        with torch.inference_mode(), _Watch(tensors) as watch:
            call(*tensors.values())
    except JoulewatchError:
        return {}  # a size is missing, which is an error later
    except Exception as error:
        logger.debug("%s: the use of its inputs is not known: %s", batches.model, error)
        return {}
    uses: Mapping[str, Use] = watch.uses
    return uses
