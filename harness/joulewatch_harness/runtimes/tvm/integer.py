"""Quantised graphs in integers: integer arithmetic for a QDQ file.

TVM imports ``DequantizeLinear -> Conv -> QuantizeLinear`` without a change and computes it in float32: the correct
numbers, at the cost of a float network. This module turns a product of dequantised tensors into a product of integers
with an accumulator of 32 bits, followed by one multiplication by ``scale_x * scale_w / scale_y``, rounding half to even
and clipping, as in ONNX Runtime's integer kernels. Operators that only move or select values (maximum pools, reshapes,
transposes) use the integers. All other operators stay in float, and ``importing.products`` counts them as float.

Convolutions and products with constant weights have the channels last, in groups of four, and weights packed for the
instruction that multiplies these (VNNI on x86); others, such as depthwise convolutions or the products of attention,
are plain integer kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.ir import Constant
from tvm.relax.expr_functor import PyExprMutator, mutator

INNER: Final = 4
"""Input channels that one instruction multiplies and adds up."""
LANES: Final = 16
"""Output channels in one register."""

_CONVOLUTIONS: Final = ("relax.nn.conv1d", "relax.nn.conv2d")
_POOLS: Final = ("relax.nn.max_pool1d", "relax.nn.max_pool2d")
_MOVING: Final = ("relax.reshape", "relax.permute_dims", "relax.squeeze", "relax.expand_dims", "relax.strided_slice")
"""Operators whose outputs are some of their inputs, so that the scale stays."""
_CHANNELS_LAST: Final = {3: "NWC", 4: "NHWC"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """A float tensor that is ``(integers - zero) * scale``."""

    integers: Any
    """A Relax variable, or a constant."""
    scale: NDArray[np.float32]
    zero: NDArray[np.int64]
    axis: int
    """Axis of scales and zero points, if there is more than one."""
    last: bool = False
    """The channels of the integers are last; those of the float tensor follow the batch."""

    @property
    def constant(self) -> NDArray[Any] | None:
        return _array(self.integers) if isinstance(self.integers, Constant) else None

    @property
    def dtype(self) -> str:
        return str(self.integers.ty.dtype)

    @property
    def is_activation(self) -> bool:
        """True for a variable of 8 bits with one scale for all elements."""
        whole = self.scale.size == 1 and self.zero.size == 1
        return self.constant is None and whole and self.dtype in ("int8", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """A float tensor that is ``(accumulator + bias) * scale``, by channel."""

    accumulator: Any
    """int32. If packed, the channels are last, in two axes, the second of 16; otherwise as in the float tensor."""
    bias: NDArray[np.int64]
    """[channels]"""
    scale: NDArray[np.float32]
    """[channels]"""
    axis: int
    """Axis of the channels in the float tensor."""
    packed: bool
    last: bool = False
    """If packed: the channels of the float tensor follow the batch."""
    rectified: bool = False


def lower(module: Any) -> Any:
    """Return the module with products of integers in place of quantised products.

    Args:
        module: From TVM's importer of ONNX, shapes fixed.
    """
    name = module.get_global_var("main")
    quantised = (
        _op(binding.value) == "relax.dequantize" for block in module[name].body.blocks for binding in block.bindings
    )
    if not any(quantised):
        return module
    lowering = _Lowering(module)
    lowering.builder_.update_func(name, lowering.visit_expr(module[name]))
    return relax.transform.DeadCodeElimination()(lowering.builder_.get())


@mutator
class _Lowering(PyExprMutator):  # type: ignore[misc]
    """Visits ``main`` once. A quantised value becomes a tensor only if an operator needs it."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.known: dict[Any, Quantised | Sum] = {}
        """Float variable of the old graph -> its integers or sum."""
        self.stored: dict[Any, Quantised] = {}
        """Integer variable of the old graph -> its integers."""
        self.given: dict[Any, Any] = {}
        """Variable of the old graph -> the new tensor, if an operator needed it."""

    def visit_var_binding_(self, binding: Any) -> None:
        understood = self.understood(binding) if isinstance(binding.value, relax.Call) else None
        if understood is None:
            super().visit_var_binding_(binding)
            return
        if isinstance(understood, Quantised) and str(binding.var.ty.dtype) != "float32":
            self.stored[binding.var] = understood
        else:
            self.known[binding.var] = understood
        if not isinstance(binding.var, relax.DataflowVar):
            super().visit_var_binding_(relax.VarBinding(binding.var, self.given_for(binding.var)))

    def visit_dataflow_var_(self, var: Any) -> Any:
        return self.given_for(var) if var in self.known or var in self.stored else super().visit_dataflow_var_(var)

    def given_for(self, var: Any) -> Any:
        """Return the tensor of a variable, which is created at the first use."""
        if var not in self.given:
            known = self.known.get(var)
            if known is None:
                self.given[var] = self.channels_behind_batch(self.stored[var])
            else:
                self.given[var] = self.rescaled(known) if isinstance(known, Sum) else self.as_float(known)
        return self.given[var]

    # The integer form of the result of an operator; None: it has none and is not changed

    def understood(self, binding: Any) -> Quantised | Sum | None:
        call, name = binding.value, _op(binding.value)
        first = self.known.get(call.args[0]) if call.args else None
        second = self.known.get(call.args[1]) if len(call.args) > 1 else None
        if name == "relax.dequantize":
            return self.dequantised(call)
        if name == "relax.quantize" and first is not None:
            return self.quantised(call, first)
        if name == "relax.add":
            return _biased(first, second) or _biased(second, first)
        if name == "relax.nn.relu" and isinstance(first, Sum):
            return replace(first, rectified=True)
        if not isinstance(first, Quantised):
            return None
        if name in _CONVOLUTIONS or name == "relax.matmul":
            if not isinstance(second, Quantised) or not first.is_activation:
                return None
            return (
                self.convolved(call, first, second) if name in _CONVOLUTIONS else self.multiplied(call, first, second)
            )
        if name == "relax.nn.relu" and first.is_activation:
            return first if int(first.zero[0]) == np.iinfo(first.dtype).min else None
        return self.moved(binding, first) if name in _MOVING or name in _POOLS else None

    def dequantised(self, call: Any) -> Quantised | None:
        integers = call.args[0]
        scales = _settings(call)
        if (
            scales is None
            or str(call.ty.dtype) != "float32"
            or str(integers.ty.dtype) not in ("int8", "uint8", "int32")
        ):
            return None
        if integers in self.stored:
            return replace(self.stored[integers], scale=scales[0], zero=scales[1])
        constant = isinstance(integers, Constant)
        if not constant and scales[0].size * scales[1].size > 1:
            return None
        return Quantised(
            integers=integers if constant else self.visit_expr(integers),
            scale=scales[0],
            zero=scales[1],
            axis=int(call.attrs.axis),
        )

    def quantised(self, call: Any, value: Quantised | Sum) -> Quantised | None:
        scales, dtype = _settings(call), str(call.ty.dtype)
        if scales is None or scales[0].size * scales[1].size > 1 or dtype not in ("int8", "uint8"):
            return None
        if isinstance(value, Quantised):
            same = value.dtype == dtype and np.array_equal(value.scale, scales[0])
            return value if same and np.array_equal(value.zero, scales[1]) else None
        integers = self.requantised(value, scales[0][0], int(scales[1][0]), dtype)
        return Quantised(integers=integers, scale=scales[0], zero=scales[1], axis=0, last=value.last)

    def moved(self, binding: Any, value: Quantised) -> Quantised | None:
        call, name = binding.value, _op(binding.value)
        array = value.constant
        if array is not None:
            return _moved_constant(call, name, value, array, _shape(binding.var))
        if not value.is_activation:
            return None
        if name in _POOLS and value.last:
            attributes = call.attrs
            pool = relax.op.nn.max_pool1d if name == _POOLS[0] else relax.op.nn.max_pool2d
            layout = _CHANNELS_LAST[len(_shape(binding.var))]
            pooled = pool(
                value.integers,
                list(attributes.pool_size),
                list(attributes.strides),
                list(attributes.padding),
                list(attributes.dilation),
                attributes.ceil_mode,
                layout=layout,
            )
            return replace(value, integers=self.builder_.emit(pooled))
        arguments = [self.channels_behind_batch(value), *(self.visit_expr(item) for item in call.args[1:])]
        return replace(value, integers=self.builder_.emit(relax.Call(call.op, arguments, call.attrs)), last=False)

    # Products

    def convolved(self, call: Any, x: Quantised, weights: Quantised) -> Sum | None:
        array, attributes = weights.constant, call.attrs
        scales = _by_channel(weights, 0, call.args[1])
        if array is None or scales is None:
            return None
        strides, dilation, padding = (
            [int(size) for size in item] for item in (attributes.strides, attributes.dilation, attributes.padding)
        )
        if int(attributes.groups) == 1 and array.dtype == np.int8 and not scales[1].any():
            # [out, in, taps...] -> [taps..., in, out]
            taps = array.transpose(*range(2, array.ndim), 1, 0)
            arranged, zero = self.arranged(x, padding, taps.shape[-2])
            accumulator = self.packed_product(arranged, taps, strides, dilation, f"conv{array.ndim - 2}d_int8")
            bias = -zero * array.astype(np.int64).reshape(len(array), -1).sum(axis=1)
            return Sum(accumulator=accumulator, bias=bias, scale=scales[0] * x.scale[0], axis=1, packed=True, last=True)
        product = (relax.op.nn.conv1d if array.ndim == 3 else relax.op.nn.conv2d)(
            self.centred(self.channels_behind_batch(x), int(x.zero[0])),
            relax.const(array.astype(np.int16) - scales[1].astype(np.int16).reshape(-1, *[1] * (array.ndim - 1))),
            strides,
            padding,
            dilation,
            int(attributes.groups),
            out_dtype="int32",
        )
        return Sum(
            accumulator=self.builder_.emit(product),
            bias=np.zeros(len(array), np.int64),
            scale=scales[0] * x.scale[0],
            axis=1,
            packed=False,
        )

    def multiplied(self, call: Any, x: Quantised, y: Quantised) -> Sum | None:
        shape = _shape(call)
        if len(shape) < 2 or len(_shape(call.args[1])) < 2:
            return None
        array, axis = y.constant, len(shape) - 1
        scales = _by_channel(y, len(_shape(call.args[1])) - 1, call.args[1])
        if scales is None or (array is None and not y.is_activation):
            return None
        left = self.channels_behind_batch(x)
        if array is not None and array.ndim == 2 and array.dtype == np.int8 and not scales[1].any():
            if len(shape) > 2:
                left = self.builder_.emit(relax.op.reshape(left, (math.prod(shape[:-1]), array.shape[0])))
            arranged, zero = self.arranged(replace(x, integers=left, last=True), [], array.shape[0])
            accumulator = self.packed_product(arranged, array, [], [], "matmul_int8")
            if len(shape) > 2:
                accumulator = self.builder_.emit(relax.op.reshape(accumulator, (*shape[:-1], *_shape(accumulator)[1:])))
            return Sum(
                accumulator=accumulator,
                bias=-zero * array.astype(np.int64).sum(axis=0),
                scale=scales[0] * x.scale[0],
                axis=axis,
                packed=True,
            )
        if array is not None:
            right: Any = relax.const(array.astype(np.int16) - scales[1].astype(np.int16))
        else:
            right = self.centred(self.channels_behind_batch(y), int(y.zero[0]))
        product = self.builder_.emit(relax.op.matmul(self.centred(left, int(x.zero[0])), right, out_dtype="int32"))
        zeros = np.zeros(shape[-1], np.int64)
        return Sum(
            accumulator=product,
            bias=zeros,
            scale=np.broadcast_to(scales[0] * x.scale[0], zeros.shape),
            axis=axis,
            packed=False,
        )

    def arranged(self, x: Quantised, padding: list[int], channels: int) -> tuple[Any, int]:
        """Return activations as uint8 with the channels last, filled to a multiple of four, padded with the zero point.

        Returns:
            The tensor, and its zero point.
        """
        zero, shift = int(x.zero[0]), 128 if x.dtype == "int8" else 0
        spatial = len(_shape(x.integers)) - 2
        before, after = padding[:spatial], padding[spatial:]
        filled = -(-channels // INNER) * INNER
        if x.last and not any(padding) and filled == channels and not shift:
            return x.integers, zero

        def arrange(data: Any) -> Any:
            sizes = [int(size) for size in data.shape]
            places = sizes[1:-1] if x.last else sizes[2:]
            shape = [sizes[0], *(a + size + b for a, size, b in zip(before, places, after, strict=True)), filled]

            def at(*index: Any) -> Any:
                place = [i - a for i, a in zip(index[1:-1], before, strict=True)]
                element = data(index[0], *place, index[-1]) if x.last else data(index[0], index[-1], *place)
                value = (element.astype("int16") + tirx.const(shift, "int16")).astype("uint8") if shift else element
                inside = [index[-1] < channels] if filled != channels else []
                for i, size, a, b in zip(place, places, before, after, strict=True):
                    inside += [i >= 0] * bool(a) + [i < size] * bool(b)
                if not inside:
                    return value
                return tirx.if_then_else(tirx.all(*inside), value, tirx.const(zero + shift, "uint8"))

            return te.compute(shape, at, name="arranged")

        return self.builder_.emit_te(arrange, x.integers, primfunc_name_hint="arrange_int8"), zero + shift

    def packed_product(self, x: Any, taps: NDArray[np.int8], strides: list[int], dilation: list[int], name: str) -> Any:
        """Return int32[n, places..., out / 16, 16] from uint8[n, places..., in] and the weights [taps..., in, out]."""
        *sizes, inner, outer = taps.shape
        filled = np.pad(taps, [*[(0, 0)] * len(sizes), (0, -inner % INNER), (0, -outer % LANES)])
        cells = filled.reshape(*sizes, filled.shape[-2] // INNER, INNER, filled.shape[-1] // LANES, LANES)
        order = (*range(len(sizes)), *(len(sizes) + axis for axis in (0, 2, 3, 1)))
        weights = relax.const(np.ascontiguousarray(cells.transpose(order)))

        def product(data: Any, packed: Any) -> Any:
            windows = [te.reduce_axis((0, size), name=f"tap{axis}") for axis, size in enumerate(sizes)]
            outer_sum = te.reduce_axis((0, packed.shape[len(sizes)]), name="chunk")
            inner_sum = te.reduce_axis((0, INNER), name="inner")
            places = [
                (int(size) - (taps_ - 1) * far - 1) // step + 1
                for size, taps_, far, step in zip(data.shape[1:-1], sizes, dilation, strides, strict=True)
            ]

            def at(*index: Any) -> Any:
                place = [
                    i * step + window * far
                    for i, step, window, far in zip(index[1:-2], strides, windows, dilation, strict=True)
                ]
                element = data(index[0], *place, outer_sum * INNER + inner_sum).astype("int32")
                weight = packed(*windows, outer_sum, index[-2], index[-1], inner_sum).astype("int32")
                return te.sum(element * weight, axis=[*windows, outer_sum, inner_sum])

            shape = (data.shape[0], *places, packed.shape[len(sizes) + 1], LANES)
            return te.compute(shape, at, name=name)

        return self.builder_.emit_te(product, x, weights, primfunc_name_hint=name)

    def centred(self, integers: Any, zero: int) -> Any:
        """Return the integers as int16, without the zero point."""
        wide = relax.op.astype(integers, "int16")
        return self.builder_.emit(relax.op.subtract(wide, relax.const(zero, "int16")) if zero else wide)

    # From sums and integers to tensors

    def requantised(self, value: Sum, scale: np.float32, zero: int, dtype: str) -> Any:
        """Return 8-bit integers: one multiplication by float32, rounding half to even and clipping."""
        limits = np.iinfo(dtype)
        least = max(limits.min, zero) if value.rectified else limits.min

        def finish(total: Any) -> Any:
            level = tirx.round(total) + tirx.const(float(zero), "float32")
            limited = tirx.max(
                tirx.min(level, tirx.const(float(limits.max), "float32")), tirx.const(float(least), "float32")
            )
            return limited.astype(dtype)

        return self.from_sum(value, value.scale / scale, finish, "requantize")

    def rescaled(self, value: Sum) -> Any:
        """Return the float tensor of a sum."""

        def finish(total: Any) -> Any:
            return tirx.max(total, tirx.const(0.0, "float32")) if value.rectified else total

        result = self.from_sum(value, value.scale, finish, "dequantize_sum")
        if value.last:
            result = self.builder_.emit(relax.op.permute_dims(result, _behind_batch(len(_shape(result)))))
        return result

    def from_sum(self, value: Sum, scale: NDArray[np.float32], finish: Any, name: str) -> Any:
        """Return ``finish((accumulator + bias) * scale)`` with the channels in one axis."""
        shape, channels = _shape(value.accumulator), len(value.bias)
        by_channel = [value.bias.astype(np.int32), np.ascontiguousarray(scale, dtype=np.float32)]
        if value.packed:
            by_channel = [np.pad(item, (0, -channels % LANES)).reshape(-1, LANES) for item in by_channel]

        def compute(sums: Any, bias: Any, factors: Any) -> Any:
            def at(*index: Any) -> Any:
                channel = index[-2:] if value.packed else (index[value.axis],)
                return finish((sums(*index) + bias(*channel)).astype("float32") * factors(*channel))

            return te.compute(sums.shape, at, name=name)

        result = self.builder_.emit_te(
            compute, value.accumulator, *(relax.const(item) for item in by_channel), primfunc_name_hint=name
        )
        if not value.packed:
            return result
        result = self.builder_.emit(relax.op.reshape(result, (*shape[:-2], shape[-2] * LANES)))
        if channels % LANES:
            result = self.builder_.emit(relax.op.strided_slice(result, [len(shape) - 2], [0], [channels]))
        return result

    def as_float(self, value: Quantised) -> Any:
        zero = relax.const(
            value.zero.astype(value.dtype).reshape(-1)[0] if value.zero.size == 1 else value.zero.astype(value.dtype)
        )
        scale = relax.const(value.scale[0] if value.scale.size == 1 else value.scale)
        integers = self.channels_behind_batch(value)
        return self.builder_.emit(relax.op.dequantize(integers, scale, zero, axis=value.axis))

    def channels_behind_batch(self, value: Quantised) -> Any:
        if not value.last:
            return value.integers
        return self.builder_.emit(relax.op.permute_dims(value.integers, _behind_batch(len(_shape(value.integers)))))


def _op(expression: Any) -> str:
    """Return the name of the operator; empty if it is not a call."""
    return str(expression.op.name) if isinstance(expression, relax.Call) and hasattr(expression.op, "name") else ""


def _array(constant: Any) -> NDArray[Any]:
    return np.asarray(constant.value.numpy())


def _shape(expression: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in expression.ty.shape)


def _behind_batch(ndim: int) -> list[int]:
    """Return the axes of a transpose that moves the channels from the end to the axis after the batch."""
    return [0, ndim - 1, *range(1, ndim - 1)]


def _settings(call: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
    """Return scales and zero points of a QuantizeLinear or DequantizeLinear; None if they are not constant."""
    _, scale, zero = call.args
    if not isinstance(scale, Constant) or not isinstance(zero, Constant):
        return None
    return (
        _array(scale).astype(np.float32).reshape(-1),
        _array(zero).astype(np.int64).reshape(-1),
    )


def _by_channel(weights: Quantised, axis: int, tensor: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
    """Return scales and zero points of each output channel; None if they belong to another axis."""
    channels = _shape(tensor)[axis]
    axis_of = weights.axis % len(_shape(tensor))
    if max(weights.scale.size, weights.zero.size) > 1 and axis_of != axis:
        return None
    return np.broadcast_to(weights.scale, channels), np.broadcast_to(weights.zero, channels)


def _biased(value: Any, bias: Any) -> Sum | None:
    """Return a sum with the bias of its layer, which is quantised in the steps of the accumulator."""
    if not isinstance(value, Sum) or not isinstance(bias, Quantised) or value.rectified:
        return None
    array = bias.constant
    if array is None or array.size != len(value.bias) or bias.zero.any():
        return None
    if not np.allclose(np.broadcast_to(bias.scale, value.scale.shape), value.scale, rtol=1e-4, atol=0.0):
        return None
    return replace(value, bias=value.bias + array.astype(np.int64).reshape(-1))


def _moved_constant(
    call: Any, name: str, value: Quantised, array: NDArray[Any], shape: tuple[int, ...]
) -> Quantised | None:
    """Return transposed weights, or a bias in another shape."""
    if name == "relax.permute_dims":
        axes = list(range(array.ndim))[::-1] if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]
        moved = relax.const(np.ascontiguousarray(array.transpose(axes)))
        return replace(value, integers=moved, axis=axes.index(value.axis % array.ndim))
    if name != "relax.reshape" or (value.scale.size > 1 and array.ndim != 1):
        return None
    axis = next((axis for axis, size in enumerate(shape) if size == array.size), 0)
    return replace(value, integers=relax.const(array.reshape(shape)), axis=axis)
