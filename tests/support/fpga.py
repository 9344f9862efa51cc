"""FPGA cards and boards in a fake sysfs tree, in the layout of their drivers."""

from __future__ import annotations

from support.sysfs import FakeSysfs

CARD = "0000:d8:00"
VBNV = "xilinx_u280_xdma_201920_3"

U55C = {
    "xmc_12v_aux_vol": 12256, "xmc_12v_aux_curr": 481, "xmc_12v_pex_vol": 12240, "xmc_12v_pex_curr": 985,
    "xmc_3v3_pex_vol": 3360, "xmc_3v3_pex_curr": 1040, "xmc_3v3_aux_vol": 0, "xmc_3v3_aux_cur": 0,
}  # fmt: skip
"""Rails of a U55C from a published output of XRT's own tool: 21.445936 W."""


def function(sysfs: FakeSysfs, address: str, **files: object) -> str:
    """Write a PCI function of a Xilinx card; return its directory below the sysfs root."""
    path = f"devices/pci0000:d7/0000:d7:00.0/{address}"
    sysfs.write(path, vendor="0x10ee", **files)
    link = f"bus/pci/devices/{address}"
    if not (sysfs.sys / link).is_symlink():
        sysfs.link(link, path)
    return path


def xmc(sysfs: FakeSysfs, address: str, number: int = 1024, **nodes: object) -> str:
    """Write XRT's nodes of a function (``.1`` user, ``.0`` management); return their directory below the sysfs root."""
    kind = "u" if address.endswith(".1") else "m"
    path = f"{function(sysfs, address)}/xmc.{kind}.{number}"
    sysfs.write(path, **nodes)
    return path


def chip(sysfs: FakeSysfs, address: str, index: int, name: str | None, **files: object) -> str:
    """Write a hwmon chip of a function; return its directory below the sysfs root."""
    device = function(sysfs, address)
    path = f"{device}/hwmon/hwmon{index}"
    sysfs.write(path, **files)
    if name is not None:
        sysfs.write(path, name=name)
    sysfs.link(f"{path}/device", device)
    sysfs.link(f"class/hwmon/hwmon{index}", path)
    return path


def monitor(sysfs: FakeSysfs, index: int, name: str, address: int, power_uw: object, **files: object) -> str:
    """Write a power monitor of a board's rail; return its directory below the sysfs root."""
    device = f"platform/axi/i2c-3/3-00{address:02x}"
    path = f"devices/{device}/hwmon/hwmon{index}"
    sysfs.hwmon(index, name, device=device, power1_input=power_uw).write(path, **files)
    return path


def device_tree(sysfs: FakeSysfs, compatible: str, model: str) -> None:
    """Write the board's entries in the device tree: texts that end with NUL."""
    folder = sysfs.proc / "device-tree"
    folder.mkdir()
    (folder / "compatible").write_bytes(b"".join(part.encode() + b"\0" for part in compatible.split()))
    (folder / "model").write_bytes(model.encode() + b"\0")
