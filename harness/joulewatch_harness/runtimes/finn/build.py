"""The output of a FINN build: the folder of the driver, the bit file, and the driver's code."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joulewatch_harness import files
from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.finn.options import Options

GENERATED: Final = "FINNExampleOverlay"
"""The only overlay class of FINN's own drivers."""
DMA: Final = "FINNDMAOverlay"
INSTRUMENTATION: Final = "FINNInstrumentationOverlay"
BOTH: Final = "FINNDMAInstrumentationOverlay"
_MODES: Final[Mapping[str, tuple[str, ...]]] = {
    GENERATED: ("dma",),
    DMA: ("dma",),
    INSTRUMENTATION: ("instrumentation",),
    BOTH: ("dma", "instrumentation"),
}
_PLACES: Final = (".", "driver", "deploy/driver")
_BITFILE_PLACES: Final = (".", "../bitfile", "bitfile", "deploy/bitfile", "../deploy/bitfile")
_SUFFIXES: Final[Mapping[str, str]] = {".bit": "zynq-iodma", ".xclbin": "alveo"}
RUNTIME_WEIGHTS: Final = "runtime_weights"
_MLO_WEIGHTS: Final = "mlo_weights"
_OWN_MODULES: Final = frozenset({"driver", "driver_base", "finn", "qonnx", "validate"})
"""Modules in a driver's folder; each build has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One build, before it is imported or loaded."""

    folder: Path
    """Folder of the driver."""
    bitfile: Path
    platform: str
    driver_type: str
    """Name of the overlay class."""
    settings: Mapping[str, Any]
    """FINN+'s ``driver_information``; empty for FINN's own driver."""

    def mode(self, requested: str) -> str:
        """Return the mode to run in.

        Raises:
            ConfigError: the build does not have the requested mode.
        """
        modes = _MODES[self.driver_type]
        if requested and requested not in modes:
            fix = (
                "build with the driver type FINNDMAInstrumentationOverlay or FINNInstrumentationOverlay of FINN+"
                if requested == "instrumentation"
                else "remove the option mode, or name a build with a DMA driver"
            )
            raise ConfigError(f"{self.folder}: a {self.driver_type} has no mode {requested}: {fix}")
        return requested or modes[0]

    def weights(self) -> list[Path]:
        """Return the files with weights that the driver loads into the design."""
        folders = (self.folder / name for name in (RUNTIME_WEIGHTS, _MLO_WEIGHTS))
        return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())

    def overlay_class(self) -> tuple[Any, dict[str, Any]]:
        """Import the driver; return its overlay class and the arguments of the build.

        Raises:
            ConfigError: a package is missing, or the driver's files are not valid.
        """
        with _imports_from(self.folder), _as_config_errors(self.folder):
            if self.driver_type == GENERATED:
                module: Any = importlib.import_module("driver")
                io_shape_dict = getattr(module, "io_shape_dict", None)
                overlay = getattr(importlib.import_module("driver_base"), GENERATED, None)
                if not isinstance(io_shape_dict, dict) or overlay is None:
                    raise ConfigError(
                        f"{self.folder}: driver.py has no io_shape_dict, or driver_base.py no {GENERATED}: "
                        "FINN has not generated this driver"
                    )
                return overlay, {"io_shape_dict": dict(io_shape_dict)}
            if (self.folder / "driver.py").is_file():
                overlay = getattr(importlib.import_module("driver"), self.driver_type, None)
                if overlay is None:
                    raise ConfigError(f"{self.folder}/driver.py has no {self.driver_type}, which settings.json names")
            else:
                overlay = importlib.import_module("finn_plus_driver").get_driver_class(self.driver_type)
        arguments = {key: value for key, value in self.settings.items() if key != "driver_type"}
        if isinstance(arguments.get("io_shape_dict"), dict):
            # The overlay replaces the texts of types by objects in this mapping.
            arguments["io_shape_dict"] = dict(arguments["io_shape_dict"])
        arguments.setdefault("mlo_weight_dir", str(self.folder / _MLO_WEIGHTS))
        return overlay, arguments


def find_build(network: str, options: Options) -> Build:
    """Find the driver and the bit file of a build.

    Raises:
        ConfigError: the folder, driver or bit file is missing or not unique; the text names the searched folders.
    """
    top = Path(network)
    if top.suffix == ".json" and top.is_file() and top.name != "settings.json":
        raise ConfigError(
            f"{top} is a configuration of the C++ driver, which runs as a child process "
            "(harness/children/finn_cpp, runtime process)"
        )
    if top.is_file() and top.name in ("driver.py", "settings.json"):
        top = top.parent
    if not top.is_dir():
        raise ConfigError(f"no folder {top}: the network of the runtime finn is the folder of a FINN build")
    folder = next(
        (top / place for place in _PLACES if any((top / place / name).is_file() for name in _DRIVER_FILES)), None
    )
    if folder is None:
        raise ConfigError(
            f"{top} has no FINN driver (driver.py with driver_base.py, or settings.json, in it, in driver or in "
            "deploy/driver): build with the outputs PYNQ_DRIVER and BITFILE, or DEPLOYMENT_PACKAGE"
        )
    folder = folder.resolve()
    settings: Mapping[str, Any] = {}
    driver_type = GENERATED
    if (folder / "settings.json").is_file():
        settings = _settings(folder / "settings.json")
        driver_type = str(settings.get("driver_type", DMA))
        if driver_type not in _MODES:
            raise ConfigError(
                f"{folder}/settings.json: driver type {driver_type!r} is not supported (known: {', '.join(_MODES)})"
            )
    bitfile = _bitfile(folder, options)
    platform = options.platform or str(settings.get("platform") or _SUFFIXES.get(bitfile.suffix, ""))
    if platform not in _SUFFIXES.values():
        raise ConfigError(f"{bitfile}: unknown platform: set it with --option platform=alveo or zynq-iodma")
    return Build(folder=folder, bitfile=bitfile, platform=platform, driver_type=driver_type, settings=settings)


_DRIVER_FILES: Final = ("driver_base.py", "settings.json")


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(files.read_text(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    settings = content.get("driver_information") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} has no driver_information, which FINN+ writes")
    return settings


def _bitfile(folder: Path, options: Options) -> Path:
    if options.bitfile is not None:
        if not options.bitfile.is_file():
            raise ConfigError(f"no bit file {options.bitfile}")
        return options.bitfile.resolve()
    for place in _BITFILE_PLACES:
        files = [path for suffix in _SUFFIXES for path in sorted((folder / place).glob(f"*{suffix}"))]
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise ConfigError(f"{(folder / place).resolve()} has {names}: name one with --option bitfile=FILE")
        if files:
            return files[0].resolve()
    raise ConfigError(
        f"no .bit or .xclbin in {folder} or the folder bitfile next to it: name one with --option bitfile=FILE"
    )


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Import from the folder of a driver; unload its modules at the end, so that another build does not use them."""
    brought = {name for name in _OWN_MODULES if (folder / name).is_dir() or (folder / f"{name}.py").is_file()}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in brought}
    sys.path.insert(0, str(folder))
    # The finder caches the contents of folders, and the build may be newer than its cache.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in list(sys.modules):
            if name.partition(".")[0] in brought:
                del sys.modules[name]
        sys.modules.update(hidden)


@contextmanager
def _as_config_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the import of a driver as ConfigErrors with the fix."""
    try:
        yield
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        raise ConfigError(f"{folder}: the driver needs the module {name!r}, which is missing{_fix(name)}") from error
    except Exception as error:
        raise ConfigError(f"{folder}: the driver cannot be imported: {type(error).__name__}: {error}") from error


def _fix(name: str) -> str:
    fixes = {
        "pynq": "; it is part of the image of a PYNQ board (run on the board, with its Python, as root); "
        "on a host with an Alveo card: source XRT's setup.sh, then pip install pynq",
        "finn_plus_driver": ": pip install finn-plus-driver",
        "bitstring": ": pip install 'joulewatch[finn]'",
        "qonnx": ": pip install qonnx",
        "finn": ": copy the complete driver folder of the build, including its folder finn",
    }
    return fixes.get(name, ": install it in the environment that runs joulewatch")
