"""Processes with open GPUs, and GPUs with their drivers, as files in the kernel's layout."""

from __future__ import annotations

from pathlib import Path

from joulewatch_exporter.model import Host
from support.cgroups import make_cgroup2


class DrmMachine:
    """A machine with AMD and Intel GPUs in a folder."""

    def __init__(self, root: Path) -> None:
        self.host = Host(sysfs=root / "sys", procfs=root / "proc", dev=root / "dev", nodename="test")
        self._drivers: dict[str, str] = {}
        self.host.procfs.mkdir(parents=True)
        make_cgroup2(self.host)

    def gpu(self, address: str, driver: str) -> None:
        number = len(self._drivers)
        self._drivers[address] = driver
        device = self.host.sysfs / "devices" / address
        device.mkdir(parents=True)
        (self.host.sysfs / "bus" / driver).mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(self.host.sysfs / "bus" / driver)
        for name in (f"card{number}", f"renderD{128 + number}"):
            node = self.host.sysfs / "class/drm" / name
            node.mkdir(parents=True)
            (node / "device").symlink_to(device)

    def process(self, pid: int, key: str) -> None:
        folder = self.host.procfs / str(pid)
        for name in ("fd", "fdinfo"):
            (folder / name).mkdir(parents=True)
        (folder / "cgroup").write_text(f"0::/{key}\n")
        (folder / "fd/0").symlink_to("/dev/null")

    def ends(self, pid: int) -> None:
        folder = self.host.procfs / str(pid)
        for name in ("fd", "fdinfo"):
            for path in (folder / name).iterdir():
                path.unlink()
            (folder / name).rmdir()
        (folder / "cgroup").unlink()
        folder.rmdir()

    def client(self, pid: int, address: str, number: int, descriptor: int = 5, **values: object) -> None:
        """Write the file of an open device; underscores in the names of values stand for hyphens."""
        folder = self.host.procfs / str(pid)
        link = folder / "fd" / str(descriptor)
        if not link.is_symlink():
            link.symlink_to("/dev/dri/renderD128")
        lines = {"driver": self._drivers[address], "pdev": address, "client-id": number}
        lines |= {name.replace("_", "-"): value for name, value in values.items()}
        text = "pos:\t0\nflags:\t02100002\nmnt_id:\t26\n" + "".join(f"drm-{k}:\t{v}\n" for k, v in lines.items())
        (folder / "fdinfo" / str(descriptor)).write_text(text)

    def compute_node(self, number: int, gpu: int, address: str, units: int) -> None:
        """Add a GPU to the topology of amdkfd."""
        bus, device = int(address[5:7], 16), int(address[8:10], 16)
        folder = self.host.sysfs / f"class/kfd/kfd/topology/nodes/{number}"
        folder.mkdir(parents=True)
        (folder / "gpu_id").write_text(f"{gpu}\n")
        (folder / "properties").write_text(
            f"cpu_cores_count 0\nsimd_count {4 * units}\nsimd_per_cu 4\nlocation_id {bus << 8 | device << 3}\n"
            f"domain {int(address[:4], 16)}\n"
        )

    def queue(self, pid: int, gpu: int, occupied: int | None) -> None:
        """Give a process a compute queue; None: the driver does not count the units that it occupies."""
        folder = self.host.sysfs / f"class/kfd/kfd/proc/{pid}"
        (folder / "queues/1").mkdir(parents=True, exist_ok=True)
        (folder / "queues/1/gpuid").write_text(f"{gpu}\n")
        if occupied is not None:
            (folder / f"stats_{gpu}").mkdir(exist_ok=True)
            (folder / f"stats_{gpu}/cu_occupancy").write_text(f"{occupied}\n")
