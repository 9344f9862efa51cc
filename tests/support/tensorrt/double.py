"""``tensorrt`` and ``cuda.bindings.runtime`` are the doubles while a test runs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.tensorrt.machine import Machine

VERSIONS = ("10.13.3.9", "11.4.0.106")


@contextmanager
def fake_tensorrt(version: str = VERSIONS[-1]) -> Iterator[Machine]:
    """Yield a machine with one GPU and this version of TensorRT."""
    machine = Machine(version)
    spec = importlib.util.spec_from_file_location("tensorrt", Path(__file__).with_name("bindings.py"))
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings.runtime", machine)
        patch.setitem(sys.modules, "tensorrt", module)
        spec.loader.exec_module(module)
        yield machine
