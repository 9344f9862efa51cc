"""Emulated NVIDIA GPUs, shared by the tests of a process, because it can load only one NVML library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.nvml import GpuMachine, shared_library


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the only NVML library of this process."""
    return shared_library(tmp_path_factory.mktemp)


@pytest.fixture
def gpu_machine(tmp_path: Path, nvml_library: Path) -> Iterator[GpuMachine]:
    """A machine without GPUs, until a test adds them."""
    gpus = GpuMachine(tmp_path / "machine", nvml_library)
    yield gpus
    gpus.close()
