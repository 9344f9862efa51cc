"""Folders as a FINN build writes them, and the fake pynq that their drivers use."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PACKAGES_VARIABLE = "JOULEWATCH_FINN_PACKAGES"
PACKAGES = "tests/support/finn/packages.txt"
_FOREIGN = frozenset({"pynq", "finn", "qonnx", "bitstring", "bitarray", "finn_plus_driver", "driver", "driver_base"})


@contextmanager
def fake_pynq() -> Iterator[Any]:
    """Make ``pynq`` the fake and yield its ``board``; at the end, remove all modules imported with it."""
    before = _remove_modules()
    sys.path.insert(0, str(HERE / "site"))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module("pynq").board
    finally:
        sys.path.remove(str(HERE / "site"))
        _remove_modules()
        sys.modules.update(before)


@contextmanager
def real_packages() -> Iterator[None]:
    """Make the packing code of FINN+ and its overlays importable; skip the test if they are not installed."""
    folder = os.environ.get(PACKAGES_VARIABLE, "")
    if folder:
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        for name in ("finn.util.data_packing", "finn_plus_driver", "qonnx.core.datatype", "bitstring"):
            try:
                spec = importlib.util.find_spec(name)
            except ModuleNotFoundError:
                spec = None
            if spec is None:
                _missing(name)
        yield
    finally:
        if folder:
            sys.path.remove(folder)


def generated_build(
    folder: Path, *, bitfile: str = "finn-accel.xclbin", own_packing: bool = True, **io: tuple[str, ...] | list[Any]
) -> Path:
    """Write a deploy folder of FINN itself: ``driver`` and ``bitfile``.

    Args:
        folder: Folder to write.
        bitfile: Name of the bitfile; its suffix determines the platform.
        own_packing: Include small fakes of ``finn`` and ``qonnx``; otherwise the installed packages are imported.
        **io: Entries of io_shape_dict that differ; data types as names.
    """
    driver = folder / "driver"
    driver.mkdir(parents=True)
    for name in ("driver.py", "driver_base.py"):
        shutil.copy(HERE / "generated" / name, driver)
    if own_packing:
        for name in ("finn", "qonnx"):
            shutil.copytree(HERE / "generated" / name, driver / name, ignore=shutil.ignore_patterns("__pycache__"))
    for key, value in io.items():
        text = f"[DataType[{value[0]!r}]]" if key in ("idt", "odt") else repr(value)
        with (driver / "driver.py").open("a") as file:
            file.write(f"io_shape_dict[{key!r}] = {text}\n")
    (folder / "bitfile").mkdir()
    (folder / "bitfile" / bitfile).write_bytes(b"a design")
    return folder


def plus_build(folder: Path, driver_type: str, *, own_driver: bool, **settings: Any) -> Path:
    """Write a deploy folder of FINN+: ``driver/settings.json`` and ``bitfile``.

    Args:
        folder: Folder to write.
        driver_type: Name of the overlay class.
        own_driver: Include an imitation of an early FINN+ ``driver.py``; otherwise ``finn_plus_driver`` is imported.
        **settings: Added to ``driver_information``.
    """
    driver = folder / "driver"
    driver.mkdir(parents=True)
    if own_driver:
        shutil.copy(HERE / "plus_driver.py", driver / "driver.py")
        shutil.copy(HERE / "generated" / "driver_base.py", driver)
        for name in ("finn", "qonnx"):
            shutil.copytree(HERE / "generated" / name, driver / name, ignore=shutil.ignore_patterns("__pycache__"))
    information: dict[str, Any] = {"driver_type": driver_type, "fclk_mhz": 250.0}
    if "DMA" in driver_type:
        information |= {
            "platform": "zynq-iodma",
            "io_shape_dict": {
                "idt": ["DataType['INT8']"],
                "odt": ["DataType['UINT8']"],
                "ishape_normal": [[1, 1024, 1, 2]],
                "oshape_normal": [[1, 1]],
                "ishape_folded": [[1, 1024, 1, 1, 2]],
                "oshape_folded": [[1, 1, 1]],
                "ishape_packed": [[1, 1024, 1, 1, 2]],
                "oshape_packed": [[1, 1, 1]],
                "idma_names": ["idma0"],
                "odma_names": ["odma0"],
                "num_inputs": 1,
                "num_outputs": 1,
            },
        }
    text = json.dumps({"driver_information": information | settings, "experiment_information": {}})
    (driver / "settings.json").write_text(text)
    (folder / "bitfile").mkdir()
    (folder / "bitfile" / "finn-accel.bit").write_bytes(b"a design")
    return folder


def _remove_modules() -> dict[str, Any]:
    names = [name for name in sys.modules if name.partition(".")[0] in _FOREIGN]
    return {name: sys.modules.pop(name) for name in names}


def _missing(name: str) -> None:
    text = (
        f"{name} is not installed: pip install --no-deps --target DIR -r {PACKAGES}, then set {PACKAGES_VARIABLE}=DIR "
        "(16 MB; the extras onnxruntime and finn must be installed)"
    )
    if os.environ.get("JOULEWATCH_REQUIRE_ALL") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)
