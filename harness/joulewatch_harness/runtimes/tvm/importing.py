"""Import an ``.onnx`` file into TVM's Relax: fix shapes, fold batch norms, fuse operators, read the precision.

TVM compiles for one batch size at a time. Its importer keeps a BatchNormalization after a convolution or a Gemm as a
separate operator, so this module folds it into their weights before the import.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import tvm
import tvm_ffi
from numpy.typing import NDArray
from onnx import numpy_helper
from tvm import relax, tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.shared.signature import broken
from joulewatch_harness.runtimes.tvm.integer import lower

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Product:
    """A kernel that multiplies and accumulates, in the IR before it is scheduled."""

    kernel: str
    precision: str
    """Precision of the products: ``fp32``, ``fp16``, ``int8``."""
    macs: int
    """Multiply-accumulates of one call."""


def read_onnx(path: Path) -> Any:
    """Return the model with its weights and folded batch norms.

    Raises:
        ConfigError: the file is missing or not a valid ONNX model.
    """
    try:
        model = onnx.load(os.fspath(path))
    except Exception as error:
        raise broken(path, error) from error
    fold_norms(model.graph)
    return model


def fold_norms(graph: Any) -> int:
    """Fold each BatchNormalization after a convolution or a Gemm with constant weights into those weights.

    Returns:
        The number of folded ones.
    """
    constants = {item.name: item for item in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(item.name for item in graph.output)
    made_by = {name: node for node in graph.node for name in node.output}
    folded = []
    for norm in graph.node:
        if norm.op_type != "BatchNormalization" or any(name not in constants for name in norm.input[1:5]):
            continue
        before = made_by.get(norm.input[0])
        if before is None or before.op_type not in ("Conv", "Gemm") or readers[norm.input[0]] != 1:
            continue
        if any(name and name not in constants for name in before.input[1:]) or len(norm.output) > 1:
            continue
        _fold(graph, constants, before, norm)
        folded.append(norm)
    for norm in folded:
        graph.node.remove(norm)
    return len(folded)


def _fold(graph: Any, constants: dict[str, Any], before: Any, norm: Any) -> None:
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in before.attribute}
    epsilon = next((item.f for item in norm.attribute if item.name == "epsilon"), 1e-5)
    gamma, beta, mean, variance = (_array(constants[name]).astype(np.float64) for name in norm.input[1:5])
    weight = _array(constants[before.input[1]])
    scale = gamma / np.sqrt(variance + epsilon)
    axis = 1 if before.op_type == "Gemm" and not attributes.get("transB", 0) else 0
    shape = [1] * weight.ndim
    shape[axis] = -1
    has_bias = len(before.input) > 2 and before.input[2]
    # A Gemm's bias may be one number, or one row for all elements of the batch.
    bias = _array(constants[before.input[2]]).astype(np.float64) if has_bias else np.zeros(1)
    if "beta" in attributes:
        bias = bias * attributes["beta"]
        before.attribute.remove(next(item for item in before.attribute if item.name == "beta"))
    names = [f"{norm.output[0]}.folded.{part}" for part in ("weight", "bias")]
    arrays = (weight.astype(np.float64) * scale.reshape(shape), (bias - mean) * scale + beta)
    for name, array in zip(names, arrays, strict=True):
        constants[name] = numpy_helper.from_array(array.astype(weight.dtype), name)
        graph.initializer.append(constants[name])
    del before.input[1:]
    before.input.extend(names)
    before.output[0] = norm.output[0]


def _array(tensor: Any) -> NDArray[Any]:
    return np.asarray(numpy_helper.to_array(tensor))


def imported(path: Path, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return the graph in Relax for fixed shapes, with products of integers in place of quantised products.

    Args:
        path: The file of the model, for errors.
        model: From ``read_onnx``.
        shapes: Shapes of all inputs.

    Returns:
        An ``IRModule``; the arguments of its ``main`` are the inputs in the order of the graph.

    Raises:
        ConfigError: TVM does not import an operator, or the graph does not allow the shapes.
    """
    from tvm.relax.frontend.onnx import from_onnx

    try:
        with warnings.catch_warnings():
            # TVM warns of the checker's findings; operators that it cannot import are errors anyway.
            warnings.simplefilter("ignore")
            module = from_onnx(model, shape_dict={name: list(shape) for name, shape in shapes.items()})
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = " ".join((lines or [""])[-1].split())[:300]
        raise ConfigError(f"{path.name}: TVM {tvm.__version__} cannot import it for these shapes: {reason}") from error
    module = relax.transform.CanonicalizeBindings()(relax.transform.DecomposeOpsForInference()(module))
    return lower(module)


def fused(module: Any, target: Any) -> Any:
    """Return the module as kernels in TIR, fused but not scheduled, for tuning.

    Args:
        module: From ``imported``.
        target: A ``tvm.target.Target``.
    """
    passes = [
        *relax.pipeline.library_dispatch_passes(target),
        # Not the target's default list: on a GPU it schedules all kernels, before the database is read.
        relax.transform.LegalizeOps(),
        relax.transform.FoldConstant(),
        # A reshape costs nothing unless it becomes a kernel.
        relax.transform.RewriteDataflowReshape(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    with target, tvm.transform.PassContext(opt_level=3):
        return tvm.transform.Sequential(passes)(module)


def products(module: Any) -> tuple[Product, ...]:
    """Return the kernels that multiply and accumulate, in the order in which ``main`` calls them.

    A schedule changes the order of the work but not its types, so the compiled kernels have the same precision.

    Args:
        module: From ``fused``.
    """
    by_name = {name: _product(name, function) for name, function in kernels(module).items()}
    return tuple(item for name in calls(module) if (item := by_name.get(name)) is not None)


def kernels(module: Any) -> dict[str, Any]:
    """Return the TIR functions by name."""
    return {
        name.name_hint: function for name, function in module.functions.items() if isinstance(function, tirx.PrimFunc)
    }


def calls(module: Any) -> list[str]:
    """Return the names of the kernels that ``main`` calls, one for each call, in order."""
    names: list[str] = []

    def visit(expression: Any) -> None:
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.call_tir"):
            names.append(expression.args[0].name_hint)

    relax.analysis.post_order_visit(module["main"], visit)
    return names


def _product(name: str, function: Any) -> Product | None:
    macs: Counter[str] = Counter()
    for block in _blocks(function.body):
        if any(axis.iter_type == tirx.IterVar.CommReduce for axis in block.iter_vars):
            precision = _multiplied(block.body)
            if precision:
                macs[precision] += math.prod(int(axis.dom.extent) for axis in block.iter_vars)
    return Product(name, macs.most_common(1)[0][0], sum(macs.values())) if macs else None


def _blocks(statement: Any) -> Iterator[Any]:
    """Return the blocks of a function that is not scheduled: nested loops, one after the other."""
    if isinstance(statement, tirx.SeqStmt):
        for part in statement.seq:
            yield from _blocks(part)
    elif isinstance(statement, SBlockRealize):
        yield from _blocks(statement.block)
    elif isinstance(statement, SBlock):
        yield statement
        yield from _blocks(statement.body)
    elif isinstance(statement, tirx.For):
        yield from _blocks(statement.body)


def _multiplied(body: Any) -> str:
    """Return the precision of the product in a block ``x += a * b``; empty for other blocks."""
    if not isinstance(body, tirx.BufferStore) or not isinstance(body.value, tirx.Add):
        return ""
    for product in (body.value.a, body.value.b):
        if isinstance(product, tirx.Mul) and not tvm_ffi.structural_equal(product.a, product.b):
            return _NAMES.get(str(product.ty), "")
    return ""


_NAMES: Final[Mapping[str, str]] = {
    "float64": "fp64",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int32": "int8",
}
"""Type of a product -> precision. Products of 8-bit integers have the type int32."""
