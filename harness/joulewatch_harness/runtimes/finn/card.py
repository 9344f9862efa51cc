"""The FPGA with a design: opened, claimed by one network at a time, closed.

An FPGA has one design at a time. All networks of a plan are loaded before the first is measured, so a second FINN
configuration would silently replace the design of the first: a network that prepares a batch claims the card, and
loads its design again if another one has replaced it.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any, Final

from joulewatch_harness.errors import ConfigError, JoulewatchError, NetworkError
from joulewatch_harness.runtimes.finn.build import GENERATED, INSTRUMENTATION, RUNTIME_WEIGHTS, Build
from joulewatch_harness.runtimes.finn.options import Options
from joulewatch_harness.runtimes.shared.model_files import sha256_of

logger = logging.getLogger(__name__)

CLOCK_TOLERANCE: Final = 0.01
"""Largest relative difference from the requested clock: dividers and PLLs do not reach frequencies exactly."""

_ON_DEVICE: dict[str, Card] = {}
"""Device -> whose design it holds. This is the state of the hardware, which all networks of a process share."""


class Card:
    """One build on one device."""

    def __init__(self, build: Build, options: Options) -> None:
        self.build = build
        self.options = options
        self.clock_mhz: float | None = None
        """Read back; None: the platform does not report it."""
        self._overlay: Any = None
        self._sha256 = ""

    @property
    def overlay(self) -> Any:
        """The driver's overlay object.

        Raises:
            NetworkError: the card is not open.
        """
        if self._overlay is None:
            raise NetworkError(f"{self.name}: not loaded")
        return self._overlay

    @property
    def name(self) -> str:
        """The name in errors."""
        return f"finn: {self.build.bitfile.name}"

    @property
    def is_open(self) -> bool:
        return self._overlay is not None

    def open(self) -> None:
        """Load the design.

        Raises:
            ConfigError: the driver cannot be imported, or the device does not exist.
            NetworkError: the device refuses the design, or its clock is not the requested one.
        """
        build, options = self.build, self.options
        self.close()
        overlay_class, arguments = build.overlay_class()
        device = self._device()
        holder = _ON_DEVICE.get(self._key)
        if holder is not None:
            holder.close()
        arguments["device"] = device
        # An instrumentation overlay without a platform in its settings has a default that sets its clock.
        if build.driver_type != INSTRUMENTATION or options.platform:
            arguments["platform"] = build.platform
        arguments["runtime_weight_dir"] = str(build.folder / RUNTIME_WEIGHTS)
        if options.fclk_mhz is not None:
            arguments["fclk_mhz"] = options.fclk_mhz
        elif build.driver_type == GENERATED and build.platform == "zynq-iodma":
            logger.warning("%s: fclk_mhz is not set: the driver sets 100 MHz, not the clock of the build", self.name)
        try:
            self._sha256 = sha256_of(build.bitfile, *build.weights())
            self._overlay = overlay_class(str(build.bitfile), **arguments)
        except JoulewatchError:
            raise
        except Exception as error:
            raise self.refused(error, "the design cannot be loaded") from error
        _ON_DEVICE[self._key] = self
        self.clock_mhz = self._read_clock()
        requested = options.fclk_mhz
        if requested is not None and self.clock_mhz is not None and not options.any_precision:
            actual = self.clock_mhz
            if abs(actual - requested) > CLOCK_TOLERANCE * requested:
                self.close()
                raise NetworkError(
                    f"{self.name}: {requested:g} MHz was requested, but the accelerator runs at {actual:g} MHz "
                    "(Alveo cards and FINN+ designs keep the clock of the build; a Zynq has the clocks of its "
                    "dividers); request that clock, or set any_precision=true"
                )

    def claim(self) -> bool:
        """Load this design if it is not on the device, before a window.

        Returns:
            True if it was loaded again.

        Raises:
            NetworkError: the device refuses the design.
        """
        is_loaded = getattr(self._overlay, "is_loaded", None)
        if (
            self._overlay is not None
            and _ON_DEVICE.get(self._key) is self
            and (not callable(is_loaded) or is_loaded() is not False)
        ):
            return False
        self.open()
        return True

    def close(self) -> None:
        """Free the buffers and the device; safe to call twice."""
        overlay, self._overlay = self._overlay, None
        if _ON_DEVICE.get(self._key) is self:
            del _ON_DEVICE[self._key]
        if overlay is None:
            return
        for name in ("ibuf_packed_device", "obuf_packed_device", "obuf_packed"):
            if hasattr(overlay, name):
                setattr(overlay, name, [])
        free = getattr(overlay, "free", None)
        if callable(free):
            try:
                free()
            except Exception as error:
                logger.warning("%s: the device could not be freed: %s", self.name, error)

    def describe(self) -> dict[str, Any]:
        """Return the facts that were read back from the card."""
        build = self.build
        description: dict[str, Any] = {
            "runtime": "finn",
            "provider": build.platform,
            "driver": build.driver_type,
            "bitfile": build.bitfile.name,
        }
        pynq = sys.modules.get("pynq")
        if self._overlay is None:
            return description
        device = getattr(self._overlay, "device", None)
        description |= {
            "runtime_version": f"pynq {getattr(pynq, '__version__', 'unknown')}",
            "device": str(getattr(device, "name", None) or getattr(device, "tag", None) or "fpga"),
            "model_sha256": self._sha256,
            "clock_mhz": "unknown" if self.clock_mhz is None else f"{self.clock_mhz:g}",
        }
        return description

    def refused(self, error: Exception, problem: str) -> JoulewatchError:
        """Return an exception of the driver as an error with cause and fix."""
        text = " ".join(str(error).split())[:300] or type(error).__name__
        if "no devices found" in text.lower():
            return ConfigError(f"{self.name}: pynq finds no device: source XRT's setup.sh, or run on the board as root")
        return NetworkError(f"{self.name}: {problem}: {type(error).__name__}: {text}")

    @property
    def _key(self) -> str:
        return "default" if self.options.device is None else str(self.options.device)

    def _device(self) -> Any:
        """Return pynq's device object; None: the driver uses the default device."""
        if self.options.device is None:
            return None
        devices = list(importlib.import_module("pynq.pl_server.device").Device.devices)
        if self.options.device >= len(devices):
            names = ", ".join(f"{number}: {getattr(one, 'name', one)}" for number, one in enumerate(devices))
            raise ConfigError(
                f"{self.name}: no device {self.options.device} (found: {names or 'none; is XRT set up?'})"
            )
        return devices[self.options.device]

    def _read_clock(self) -> float | None:
        """Return the clock of the accelerator in MHz, from FINN+, the card or the Zynq; None: unknown."""
        overlay = self._overlay
        megahertz = getattr(overlay, "fclk_mhz_actual", None)
        if megahertz is None:
            try:
                if self.build.platform == "alveo":
                    megahertz = overlay.clock_dict["clock0"]["frequency"]
                else:
                    megahertz = importlib.import_module("pynq.ps").Clocks.fclk0_mhz
            except (ImportError, AttributeError, KeyError, TypeError, RuntimeError):
                return None
        return float(megahertz)
