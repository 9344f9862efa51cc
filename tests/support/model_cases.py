"""Small models of shapes that exporters write: indices, masks, lengths, states, time first, fixed sizes, text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from support.onnx_models import save

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def embedding(path: Path, rows: int = 5000) -> Path:
    """Save a look-up of 80 rows of a table for each inference."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["y"], axes=[1], keepdims=0),
    ]
    return save(
        path, nodes, {"ids": (INT64, ["batch", 80])}, {"y": (FLOAT, ["batch", 8])}, {"table": _weights(rows, 8)}
    )


def lengths(path: Path) -> Path:
    """Save a product over as many steps of ``x`` as ``x_lens`` says."""
    nodes = [
        helper.make_node("ReduceMax", ["x_lens"], ["longest"], axes=[0], keepdims=1),
        helper.make_node("Slice", ["x", "zero", "longest", "one"], ["used"]),
        helper.make_node("MatMul", ["used", "w"], ["product"]),
        helper.make_node("ReduceSum", ["product", "one"], ["y"], keepdims=0),
    ]
    weights = {"w": _weights(16, 4), "zero": np.array([0]), "one": np.array([1])}
    return save(
        path, nodes, {"x": (FLOAT, ["N", "T", 16]), "x_lens": (INT64, ["N"])}, {"y": (FLOAT, ["N", 4])}, weights
    )


def bert(path: Path) -> Path:
    """Save an embedding of tokens that are masked."""
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["type"]),
        helper.make_node("Gather", ["places", "position_ids"], ["place"]),
        helper.make_node("Add", ["word", "type"], ["both"]),
        helper.make_node("Add", ["both", "place"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["embedded", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["y"], keepdims=0),
    ]
    shape = (INT64, ["batch", "sequence"])
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    weights = {"words": _weights(1000, 8), "types": _weights(2, 8), "places": _weights(512, 8)}
    weights |= {"last": np.array([-1]), "one": np.array([1])}
    return save(path, nodes, dict.fromkeys(names, shape), {"y": (FLOAT, ["batch", 8])}, weights)


def state(path: Path, *, named: bool = True) -> Path:
    """Save a step of a recurrent model: the batch is axis 1 of its state, and its sample rate is a number."""
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["product"]),
        helper.make_node("ReduceMean", ["state"], ["mean"], axes=[0], keepdims=0),
        helper.make_node("Add", ["product", "mean"], ["both"]),
        helper.make_node("Cast", ["sr"], ["rate"], to=FLOAT),
        helper.make_node("Mul", ["both", "rate"], ["out"]),
    ]
    batch, samples = ("batch", "samples") if named else (None, None)
    inputs = {"input": (FLOAT, [batch, samples]), "state": (FLOAT, [2, batch, 4]), "sr": (INT64, [])}
    return save(path, nodes, inputs, {"out": (FLOAT, [batch, 4])}, {"w": _weights(32, 4)})


def fields(path: Path) -> Path:
    """Save a recommender: the batch is axis 1 of the indices."""
    nodes = [
        helper.make_node("Gather", ["table", "indices"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[0], keepdims=0),
        helper.make_node("MatMul", ["dense_x", "w"], ["dense"]),
        helper.make_node("Add", ["dense", "mean"], ["y"]),
    ]
    inputs = {"dense_x": (FLOAT, ["batch_size", 13]), "indices": (INT64, [26, "batch_size"])}
    weights = {"table": _weights(100, 8), "w": _weights(13, 8)}
    return save(path, nodes, inputs, {"y": (FLOAT, ["batch_size", 8])}, weights)


def recurrent(path: Path) -> Path:
    """Save a layer with the time first: [seq, batch, feature]."""
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)]
    shapes = {"x": (FLOAT, ["seq", "batch", 16])}
    return save(
        path, nodes, shapes, {"y": (FLOAT, ["seq", 1, "batch", 8])}, {"w": _weights(1, 32, 16), "r": _weights(1, 32, 8)}
    )


def one_only(path: Path) -> Path:
    """Save a model whose open batch axis works for one inference only."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weights = {"shape": np.array([1, 16]), "w": _weights(16, 4)}
    return save(path, nodes, {"x": (FLOAT, ["N", 4, 4])}, {"y": (FLOAT, ["N", 4])}, weights)


def labels(path: Path) -> Path:
    """Save a classifier with text labels."""
    nodes = [
        helper.make_node("ArgMax", ["x"], ["number"], axis=1, keepdims=0),
        helper.make_node(
            "LabelEncoder",
            ["number"],
            ["y"],
            domain="ai.onnx.ml",
            keys_int64s=[0, 1, 2],
            values_strings=["a", "b", "c"],
        ),
    ]
    return save(path, nodes, {"x": (FLOAT, ["N", 3])}, {"y": (TensorProto.STRING, ["N"])}, {}, {"ai.onnx.ml": 3})


def logarithm(path: Path) -> Path:
    """Save a logarithm, which is not finite for random numbers."""
    return save(path, [helper.make_node("Log", ["x"], ["y"])], {"x": (FLOAT, ["N", 64])}, {"y": (FLOAT, ["N", 64])}, {})


def attention(path: Path) -> Path:
    """Save a softmax over the places that a mask keeps, minus infinity elsewhere."""
    nodes = [helper.make_node("Where", ["keep", "x", "least"], ["kept"]), helper.make_node("Identity", ["kept"], ["y"])]
    inputs = {"x": (FLOAT, ["N", 8]), "keep": (BOOL, ["N", 8])}
    return save(path, nodes, inputs, {"y": (FLOAT, ["N", 8])}, {"least": np.array(-np.inf, np.float32)})


def constant(path: Path) -> Path:
    """Save a model without inputs."""
    nodes = [helper.make_node("MatMul", ["a", "b"], ["y"])]
    return save(path, nodes, {}, {"y": (FLOAT, [64, 4])}, {"a": _weights(64, 16), "b": _weights(16, 4)})
