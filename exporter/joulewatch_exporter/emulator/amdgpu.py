"""AMD GPUs as the driver amdgpu shows them: DRM devices, the binary ``gpu_metrics``, and a hwmon chip.

The layouts are C structures, so the place of each field follows from the order of the fields, as in the driver, and not
from the numbers in the collector. Fields that are not emulated have all bits set, as in the driver.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Mapping, Sequence
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from joulewatch_exporter.emulator.checks import check_range
from joulewatch_exporter.emulator.faults import FILE_FAULTS, Fault, check_faults
from joulewatch_exporter.emulator.files import MovingFile, Vanishing, Writer, link
from joulewatch_exporter.emulator.signals import Signal

_FIRST_CHIP: Final = 200
"""First number of the hwmon chips of AMD GPUs, above those of the scenario and of the FPGA cards."""
_FIRST_RENDER_NODE: Final = 128
_STEPS_PER_JOULE: Final = 2**16

_ADDRESS: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NUMBER: Final = re.compile(r"0x[0-9a-f]{4}")
_FAULTS: Final = ("reset", "frozen", "backward", "asleep", "vanish", *FILE_FAULTS)
_BACKWARD_JOULES: Final = 1000.0

_HEADER: Final = [("structure_size", c_uint16), ("format_revision", c_uint8), ("content_revision", c_uint8)]
_HEAD_1: Final = [("temperature", c_uint16 * 3), ("curr_socket_power", c_uint16), ("activity", c_uint16 * 2)]
_ENERGY: Final = [("energy_accumulator", c_uint64), ("system_clock_counter", c_uint64)]
_LINKS: Final = [("throttle_and_lock", c_uint32 * 2), ("link", c_uint16 * 4), ("activity_acc", c_uint32 * 2)]
_RESIDENCY: Final = [("residency", c_uint32 * 6), ("lock", c_uint32), ("link", c_uint16 * 4), ("acc", c_uint32 * 2)]
_TRAFFIC: Final = [("pcie", c_uint64 * 5), ("nak", c_uint32 * 2), ("xgmi", c_uint64 * 16)]
_CLOCKS: Final = [("firmware_timestamp", c_uint64), ("clocks", c_uint16 * 20), ("uclk", c_uint16), ("last", c_uint16)]


def _structure(*parts: Sequence[tuple[str, Any]]) -> type[ctypes.Structure]:
    fields = [field for part in (_HEADER, *parts) for field in part]
    return type("GpuMetrics", (ctypes.Structure,), {"_fields_": fields})


_LAYOUTS: Final[Mapping[str, type[ctypes.Structure]]] = {
    "1.3": _structure(
        [("temperature", c_uint16 * 6), ("activity", c_uint16 * 3), ("average_socket_power", c_uint16)],
        _ENERGY,
        [("clocks", c_uint16 * 14), ("throttle", c_uint32), ("fan", c_uint16), ("link", c_uint16 * 2)],
        [("padding", c_uint16), ("activity_acc", c_uint32 * 2), ("temperature_hbm", c_uint16 * 4)],
        [("firmware_timestamp", c_uint64), ("voltage", c_uint16 * 4), ("indep_throttle", c_uint64)],
    ),
    "1.4": _structure(
        _HEAD_1, [("vcn", c_uint16 * 4)], _ENERGY, _LINKS, [("pcie", c_uint64 * 5), ("xgmi", c_uint64 * 16)], _CLOCKS
    ),
    "1.5": _structure(
        _HEAD_1, [("vcn", c_uint16 * 4), ("jpeg", c_uint16 * 32)], _ENERGY, _LINKS, _TRAFFIC, _CLOCKS
    ),
    "1.6": _structure(
        _HEAD_1, _ENERGY, _RESIDENCY, _TRAFFIC, _CLOCKS, [("partitions", c_uint64 * 21 * 8), ("recovery", c_uint32)]
    ),
    "1.7": _structure(
        _HEAD_1, [("mem_max_bandwidth", c_uint64)], _ENERGY, _RESIDENCY, _TRAFFIC, [("xgmi_status", c_uint16 * 9)],
        _CLOCKS, [("partitions", c_uint64 * 29 * 8), ("recovery", c_uint32)],
    ),
    "1.8": _structure(
        _HEAD_1, [("mem_max_bandwidth", c_uint64)], _ENERGY, _RESIDENCY, _TRAFFIC, [("xgmi_status", c_uint16 * 9)],
        _CLOCKS, [("partitions", c_uint64 * 47 * 8), ("recovery", c_uint32)],
    ),
    "3.0": _structure(
        [("temperature", c_uint16 * 19), ("activity", c_uint16 * 10), ("c0", c_uint16 * 16), ("traffic", c_uint16 * 4)],
        [("system_clock_counter", c_uint64), ("average_socket_power", c_uint32), ("average_ipu_power", c_uint16)],
        [("power", c_uint32 * 4), ("core_power", c_uint16 * 16), ("limits", c_uint16 * 3), ("clocks", c_uint16 * 26)],
        [("throttle", c_uint32 * 7), ("filter", c_uint32)],
    ),
}  # fmt: skip
"""By revision of format and content; the value of a field that is not listed here does not matter."""

LIST: Final = "1.9"
"""This revision is a packed list of fields."""
_LIST_FIELDS: Final = (
    # Number of the field, type (2: 16 bits, 6: 64 bits), number of values, name.
    (0, 2, 1, "temperature"),
    (3, 2, 1, "curr_socket_power"),
    (7, 6, 1, "energy_accumulator"),
    (8, 6, 1, "system_clock_counter"),
    (33, 2, 8, "current_gfxclk"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdGpuSpec:
    """An Instinct card, or the graphics and the NPU of a Ryzen AI processor."""

    address: str
    """PCI address, ``0000:83:00.0``: the label of its series."""
    signal: Signal
    """Power of the card, or of the processor."""
    revision: str = "1.4"
    """Revision of ``gpu_metrics``: 1.3 (MI200), 1.4 to 1.9 (MI300) or 3.0 (Ryzen AI, which has no energy)."""
    device_id: str = "0x74a1"
    """Number of the PCI device: 0x74a1 is an MI300X, 0x74a0 an MI300A, 0x7408 an MI250X."""
    npu: Signal | None = None
    """Power of the NPU, with revision 3.0."""
    second_die: str = ""
    """PCI address of the other die of an MI250, which measures nothing; empty: there is none."""
    partitions: int = 1
    """Number of partitions of an MI300, each of which has a DRM device."""
    start_joules: float = 1_000_000.0
    """Start of the counter."""
    update_s: float = 0.001
    """How often the firmware makes new values, at most at every refresh of the scenario."""
    faults: tuple[Fault, ...] = ()
    """reset: the counter starts at 0; frozen: only the counter stands still; backward: the counter is 1000 J lower;
    asleep: the GPU is suspended, and reading it fails; vanish: the GPU is gone; the other kinds affect
    ``gpu_metrics``."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        for key in ("address", "second_die"):
            if _ADDRESS.fullmatch(getattr(self, key)) is None and (key == "address" or self.second_die):
                raise ValueError(f"{key}: {getattr(self, key)!r} must be like 0000:83:00.0")
        if _NUMBER.fullmatch(self.device_id) is None:
            raise ValueError(f"device_id: {self.device_id!r} must be like 0x74a1")
        revisions = (*_LAYOUTS, LIST)
        if self.revision not in revisions:
            raise ValueError(f"revision: {self.revision!r} is not one of {', '.join(sorted(revisions))}")
        if (self.npu is None) == self.is_processor:
            raise ValueError("npu: needed with revision 3.0, and only there")
        check_range("partitions", self.partitions, 1, 8)
        check_range("start_joules", self.start_joules, 0.0)
        check_range("update_s", self.update_s, 0.001, 60.0)
        check_faults(self.faults, _FAULTS)

    @property
    def is_processor(self) -> bool:
        return self.revision == "3.0"

    @property
    def truth(self) -> Mapping[str, Signal]:
        """The signals behind the series of the exporter, by ``device/domain``."""
        if self.npu is not None:
            return {f"{self.address}/npu": self.npu}
        power = "average" if self.revision == "1.3" else "instant"
        return {f"{self.address}/total": self.signal, f"{self.address}/{power}": self.signal}


class AmdGpuTree:
    """The AMD GPUs of a machine."""

    def __init__(self, specs: Sequence[AmdGpuSpec], sysfs: Path, writer: Writer, scratch: Path) -> None:
        """Write the files that never change; `advance` writes the others.

        Args:
            specs: The GPUs.
            sysfs: Root of an existing tree.
            writer: The writer of the thread that calls `advance`.
            scratch: An existing directory outside the tree, on the same file system.

        Raises:
            OSError: A file cannot be written.
        """
        self._cards = 0
        self._sysfs = sysfs
        self._writer = writer
        self._gpus = [_Gpu(spec, self._write_device(spec, spec.address), writer) for spec in specs]
        for spec in specs:
            if spec.second_die:
                idle = self._write_device(spec, spec.second_die)
                writer.put(str(idle / "gpu_metrics"), contents(spec.revision, energy_accumulator=0, power=0))
            for _ in range(1, spec.partitions):
                self._write_drm(sysfs / f"devices/platform/amdgpu_xcp.{self._cards}")
        self._vanishing = []
        for index, spec in enumerate(specs):
            directory = self._directory(spec.address)
            links = [link for link in self._links() if directory in link.resolve().parents]
            self._vanishing.append(Vanishing(writer, directory, links, scratch / f"gone-amdgpu-{index}", spec.faults))

    def advance(self, t_s: float) -> None:
        """Move every GPU to ``t_s`` seconds after the start."""
        for vanishing in self._vanishing:
            vanishing.advance(t_s)
        for gpu in self._gpus:
            gpu.advance(t_s)

    def close(self) -> None:
        """Release the readers of files that hang; safe to call twice."""
        for gpu in self._gpus:
            gpu.close()

    def _directory(self, address: str) -> Path:
        return self._sysfs / "devices" / "pci0000:00" / address

    def _links(self) -> list[Path]:
        return [link for kind in ("drm", "hwmon") for link in (self._sysfs / "class" / kind).iterdir()]

    def _write_device(self, spec: AmdGpuSpec, address: str) -> Path:
        directory = self._directory(address)
        for name, text in (("vendor", "0x1002"), ("device", spec.device_id), ("power/runtime_status", "active")):
            self._writer.put_line(directory / name, text)
        chip = directory / "hwmon" / f"hwmon{_FIRST_CHIP + self._cards}"
        files = {"name": "amdgpu", "power1_label": "PPT", f"power1_{_power_suffix(spec)}": 0}
        if spec.is_processor:
            files["in1_label"] = "vddnb"
        for name, value in files.items():
            self._writer.put_line(chip / name, value)
        link(chip / "device", directory)
        link(self._sysfs / "class/hwmon" / chip.name, chip)
        self._write_drm(directory)
        return directory

    def _write_drm(self, device: Path) -> None:
        for name in (f"card{self._cards}", f"renderD{_FIRST_RENDER_NODE + self._cards}"):
            node = device / "drm" / name
            link(node / "device", device)
            link(self._sysfs / "class/drm" / name, node)
        self._cards += 1


class _Gpu:
    """The changing files of a GPU."""

    def __init__(self, spec: AmdGpuSpec, directory: Path, writer: Writer) -> None:
        self._spec = spec
        # A suspended GPU that is read all the same fails, so a test notices it.
        asleep = [Fault(kind="eio", at_s=f.at_s, for_s=f.for_s) for f in spec.faults if f.kind == "asleep"]
        faults = [*asleep, *spec.faults]
        (chip,) = (directory / "hwmon").iterdir()
        self._metrics = MovingFile(writer, str(directory / "gpu_metrics"), faults)
        self._power = MovingFile(writer, str(chip / f"power1_{_power_suffix(spec)}"), asleep)
        self._status = MovingFile(writer, str(directory / "power/runtime_status"), ())
        self._resets_at_s = sorted((fault.at_s for fault in spec.faults if fault.kind == "reset"), reverse=True)
        self._offset_joules = spec.start_joules
        self._joules = spec.start_joules
        self._next = 0

    def advance(self, t_s: float) -> None:
        spec = self._spec
        while self._resets_at_s and t_s >= self._resets_at_s[-1]:
            self._resets_at_s.pop()
            self._offset_joules = -spec.signal.energy_joules(0.0, t_s)
        kinds = {fault.kind for fault in spec.faults if fault.is_on(t_s)}
        self._status.show(b"suspended\n" if "asleep" in kinds else b"active\n", t_s)
        if t_s < self._next * spec.update_s:
            return
        self._next = int(t_s / spec.update_s) + 1
        watts = spec.signal.power_watts(t_s)
        if "frozen" not in kinds:
            self._joules = self._offset_joules + spec.signal.energy_joules(0.0, t_s)
        joules = max(self._joules - (_BACKWARD_JOULES if "backward" in kinds else 0.0), 0.0)
        npu_mw = round(spec.npu.power_watts(t_s) * 1000) if spec.npu is not None else 0
        data = contents(
            spec.revision, energy_accumulator=int(joules * _STEPS_PER_JOULE), power=round(watts), npu_mw=npu_mw
        )
        self._metrics.show(data, t_s)
        self._power.show(round(watts * 1e6), t_s)

    def close(self) -> None:
        for file in (self._metrics, self._power, self._status):
            file.close()


def contents(revision: str, *, energy_accumulator: int, power: int, npu_mw: int = 0) -> bytes:
    """Return the contents of ``gpu_metrics``.

    Args:
        revision: Revision of format and content, such as ``1.4``.
        energy_accumulator: In steps of 2^-16 J.
        power: In watts.
        npu_mw: Power of the NPU in milliwatts.
    """
    format_revision, content_revision = map(int, revision.split("."))
    values = {
        "energy_accumulator": energy_accumulator,
        "curr_socket_power": power,
        "average_socket_power": power * (1000 if revision == "3.0" else 1),
        "average_ipu_power": npu_mw,
        "system_clock_counter": time.monotonic_ns(),
    }
    if revision == LIST:
        return _list_of_fields(values, format_revision, content_revision)
    layout = _LAYOUTS[revision]
    metrics = layout.from_buffer(bytearray(b"\xff" * ctypes.sizeof(layout)))
    present = {name for name, *_ in layout._fields_}
    values |= {
        "structure_size": ctypes.sizeof(layout),
        "format_revision": format_revision,
        "content_revision": content_revision,
    }
    for name, value in values.items():
        if name in present:
            setattr(metrics, name, value)
    return bytes(metrics)


def _list_of_fields(values: Mapping[str, int], format_revision: int, content_revision: int) -> bytes:
    body = len(_LIST_FIELDS).to_bytes(4, "little")
    for number, kind, count, name in _LIST_FIELDS:
        width = 2 if kind == 2 else 8
        body += (kind << 20 | number << 10 | count).to_bytes(8, "little")
        body += values.get(name, 256**width - 1).to_bytes(width, "little") * count
    return (4 + len(body)).to_bytes(2, "little") + bytes((format_revision, content_revision)) + body


def _power_suffix(spec: AmdGpuSpec) -> str:
    return "average" if spec.revision == "1.3" else "input"
