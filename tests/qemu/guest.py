"""A virtual machine with the kernel of a Debian package, which runs this checkout's exporter from the host's root."""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import platform
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joulewatch_exporter

HERE = Path(__file__).parent
EXPORTER_FOLDER = Path(str(joulewatch_exporter.__file__)).parents[1]

PACKAGES = (
    "apt-get install --no-install-recommends qemu-system-x86 linux-image-amd64 linux-headers-amd64 busybox-static "
    "acpica-tools i2c-tools kmod procps util-linux gcc libc6-dev make openipmi libopenipmi-dev"
)
_PROGRAMS = ("qemu-system-x86_64", "iasl", "i2cset", "modprobe", "sysctl", "setpriv", "gcc", "make", "ipmi_sim")
_ROOTS_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_BUSYBOX = "/bin/busybox"
_FIRST_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")
"""Modules required to mount the host's root; the drivers are loaded from there."""
_DRIVERS = ("msr", "acpi_power_meter", "i2c-dev", "i2c-stub", "ltc4215", "ipmi_si", "ipmi_devintf")

_BOOT_LIMIT_S = 180.0
CALL_LIMIT_S = 120.0

POWERCAP = "/sys/class/powercap"
TRUTH = "/sys/module/fakepower/parameters"


def kernel_release() -> str | None:
    """Return the newest kernel of which image, modules and headers, to build a module, are installed."""

    def is_whole(release: str) -> bool:
        image = Path(f"/boot/vmlinuz-{release}")
        return os.access(image, os.R_OK) and Path(f"/lib/modules/{release}/build/Makefile").exists()

    folder = Path("/lib/modules")
    releases = [entry.name for entry in folder.iterdir() if is_whole(entry.name)] if folder.is_dir() else []
    return max(releases, key=lambda release: [int(number) for number in re.findall(r"\d+", release)], default=None)


def missing() -> Sequence[str]:
    """Return the requirements of these tests that this machine does not meet."""
    if platform.machine() != "x86_64":
        return ["an x86-64 machine, because the guest runs its programs"]
    unmet = [program for program in _PROGRAMS if _program(program) is None]
    release = kernel_release()
    if release is None:
        unmet.append("a kernel with headers (/boot/vmlinuz-*, /lib/modules/*/build)")
    elif _program("modprobe") is not None:
        # A kernel for clouds does not contain most of them.
        modules = [name for name in (*_FIRST_MODULES, *_DRIVERS) if not _has_module(name, release)]
        unmet += [f"module {name} of {release}" for name in modules]
    if not Path(_BUSYBOX).exists() or b"/ld-linux" in Path(_BUSYBOX).read_bytes():
        unmet.append("a static busybox")
    if not Path("/usr/include/OpenIPMI/mcserv.h").exists():
        unmet.append("OpenIPMI/mcserv.h")
    return unmet


class Guest:
    """A running guest."""

    def __init__(self, folder: Path, *, bmc_port: int) -> None:
        """Build the module, the table and the initramfs, and boot the guest.

        Args:
            folder: Folder for the build and for the console of the guest.
            bmc_port: TCP port of loopback on which a BMC simulator serves the guest's BMC interface.

        Raises:
            RuntimeError: A build failed, or the guest did not boot; the text contains the end of its console.
        """
        release = kernel_release()
        assert release is not None
        self.module = _build_module(folder / "module", release)
        self._console = folder / "console.log"
        command = [
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "EPYC-Milan", "-smp", "2,sockets=2", "-m", "1024"),
            *("-display", "none", "-nic", "none", "-no-reboot", "-serial", f"file:{self._console}"),
            *("-kernel", f"/boot/vmlinuz-{release}", "-initrd", str(_build_initramfs(folder / "initramfs", release))),
            *("-append", "console=ttyS0 quiet panic=-1 rdinit=/init"),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-chardev", "stdio,id=agent,signal=off", "-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=agent"),
            *("-chardev", f"socket,id=bmc,host=127.0.0.1,port={bmc_port},reconnect=1"),
            *("-device", "ipmi-bmc-extern,id=bmc0,chardev=bmc", "-device", "isa-ipmi-kcs,bmc=bmc0"),
            *("-acpitable", f"file={_build_table(folder / 'table')}"),
        ]
        with (folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self._pending = b""
        try:
            self._answer(_BOOT_LIMIT_S)
        except RuntimeError as error:
            self.stop()
            qemu = (folder / "qemu.log").read_text(errors="replace")
            raise RuntimeError(f"the guest has not booted: {error}; {qemu}") from error

    def stop(self) -> None:
        """Stop the guest without a shutdown. Safe to call twice."""
        self._process.kill()
        self._process.wait(20)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    # -- calls of agent.py -------------------------------------------------------------------------------------

    def call(self, *calls: Sequence[Any], timeout_s: float = CALL_LIMIT_S) -> list[Any]:
        """Run calls of the agent directly one after the other; return their results.

        Raises:
            RuntimeError: A call failed or did not answer in time.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(calls).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer(timeout_s)
        if isinstance(answer, str):
            raise RuntimeError(f"in the guest: {answer}")
        return list(answer)

    def read(self, path: str) -> str:
        """Return the text of a file."""
        return str(self.call(("read", path))[0])

    def write(self, path: str, text: str) -> None:
        """Write a file, usually a setting of the kernel."""
        self.call(("write", path, text))

    def run(self, *command: str, as_root: bool = True) -> tuple[int, str, str]:
        """Run a command; return exit code, stdout and stderr."""
        code, output, errors = self.call(("run", command, as_root, CALL_LIMIT_S), timeout_s=CALL_LIMIT_S + 10)[0]
        return code, output, errors

    def sh(self, script: str) -> str:
        """Run a shell script as root; return its output.

        Raises:
            RuntimeError: The script failed.
        """
        code, output, errors = self.run("sh", "-ec", script)
        if code != 0:
            raise RuntimeError(f"in the guest: {script}: {errors}")
        return output

    def exporter(self, *flags: str, as_root: bool = True, prefix: Sequence[str] = ()) -> tuple[int, str, str]:
        """Run ``joulewatch-exporter`` to its end; return exit code, stdout and stderr.

        Args:
            flags: Arguments of the command.
            as_root: Whether to run it as root; otherwise as nobody.
            prefix: A command that runs another command.
        """
        return self.run(*prefix, *exporter_command(*flags), as_root=as_root)

    def check(self, *flags: str, as_root: bool = True, prefix: Sequence[str] = ()) -> dict[str, Any]:
        """Return the report of ``joulewatch-exporter check``."""
        _, output, errors = self.exporter("check", "--format", "json", *flags, as_root=as_root, prefix=prefix)
        assert output, errors
        report: dict[str, Any] = json.loads(output)
        return report

    def _answer(self, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        end_s = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._process.stdout], [], [], max(end_s - time.monotonic(), 0.0))
            data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not data:
                why = "the guest has ended" if ready else f"no answer within {timeout_s:g} s"
                console = self._console.read_text(errors="replace")[-4000:] if self._console.exists() else ""
                raise RuntimeError(f"{why}; its console: {console}")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)


def exporter_command(*flags: str) -> list[str]:
    """Return the command line of this checkout's exporter."""
    return ["env", f"PYTHONPATH={EXPORTER_FOLDER}", sys.executable, "-m", "joulewatch_exporter", *flags]


# -- building ------------------------------------------------------------------------------------------------------


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_ROOTS_PATH}")


def _run(*command: str) -> str:
    program = _program(command[0])
    assert program is not None
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _has_module(name: str, release: str) -> bool:
    try:
        _run("modprobe", "-S", release, "--show-depends", name)
    except RuntimeError:
        return False
    return True


def _build_module(folder: Path, release: str) -> Path:
    folder.mkdir()
    shutil.copy(HERE / "fakepower.c", folder)
    (folder / "Kbuild").write_text("obj-m := fakepower.o\n")
    _run("make", "-s", "-C", f"/lib/modules/{release}/build", f"M={folder}", "modules")
    return folder / "fakepower.ko"


def _build_table(folder: Path) -> Path:
    folder.mkdir()
    _run("iasl", "-p", str(folder / "meter"), str(HERE / "meter.asl"))
    return folder / "meter.aml"


def _build_initramfs(folder: Path, release: str) -> Path:
    """Build an initramfs of busybox, ``init`` and the modules for the host's root."""
    for name in ("bin", "dev", "host", "kept", "modules", "proc", "sys"):
        (folder / name).mkdir(parents=True)
    shutil.copy(_BUSYBOX, folder / "bin" / "busybox")
    shutil.copy(HERE / "init", folder / "init")
    (folder / "init").chmod(0o755)
    modules = [_unpacked(path, folder / "modules") for path in _with_dependencies(_FIRST_MODULES, release)]
    closed, needed = _closed_to_others([EXPORTER_FOLDER, Path(sys.prefix), Path(sys.base_prefix)])
    settings: Mapping[str, str] = {
        "modules": " ".join(modules),
        "python": sys.executable,
        "agent": str(HERE / "agent.py"),
        "closed": " ".join(map(str, closed)),
        "needed": " ".join(map(str, needed)),
    }
    (folder / "settings").write_text("".join(f"{name}={shlex.quote(text)}\n" for name, text in settings.items()))
    archive = folder.with_suffix(".cpio")
    names = "\n".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))
    with archive.open("wb") as output:
        command = [_BUSYBOX, "cpio", "-o", "-H", "newc"]
        subprocess.run(command, cwd=folder, input=names.encode(), stdout=output, stderr=subprocess.PIPE, check=True)
    return archive


def _with_dependencies(names: Sequence[str], release: str) -> Sequence[Path]:
    """Return the files of kernel modules and their dependencies in the order in which to load them."""
    paths: dict[Path, None] = {}
    for name in names:
        for line in _run("modprobe", "-S", release, "--show-depends", name).splitlines():
            action, *arguments = line.split()
            if action == "insmod":
                paths[Path(arguments[0])] = None
    return list(paths)


def _unpacked(module: Path, folder: Path) -> str:
    """Copy a module file, which some releases of Debian compress; return its name."""
    is_packed = module.suffix == ".xz"
    name = module.stem if is_packed else module.name
    data = module.read_bytes()
    (folder / name).write_bytes(lzma.decompress(data) if is_packed else data)
    return name


def _closed_to_others(folders: Sequence[Path]) -> tuple[Sequence[Path], Sequence[Path]]:
    """Return the parent folders that only their owner may enter, and the given folders below them.

    An example is a Python below /root, which an ordinary user of the guest must be able to run.
    """
    closed: dict[Path, None] = {}
    needed: dict[Path, None] = {}
    for folder in folders:
        outermost = next((above for above in reversed(folder.parents) if not above.stat().st_mode & 0o001), None)
        if outermost is not None:
            closed[outermost] = None
            needed[folder] = None
    return list(closed), list(needed)
