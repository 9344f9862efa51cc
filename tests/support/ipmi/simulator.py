"""OpenIPMI's ``ipmi_sim`` with an added DCMI module, and ``ipmitool``: an independent BMC and client."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

from support.require import require_program

HERE = Path(__file__).parent
ADMIN = ("admin", "s3same-open")
MONITOR = ("mon", "s3same-look")
"""A user with privilege ``user``; the simulator requires ``administrator`` for DCMI."""

_START_LIMIT_S = 10.0

# A full record: sensor 1 of type Current, unit watts, steps of 4 W, "Pwr Consumption".
_SENSOR_RECORD = (
    "0x01 0x00 0x51 0x01 0x3a 0x20 0x00 0x01 0x0a 0x01 0x45 0x00 0x03 0x01 0x00 0x00 0x00 0x00 0x00 0x00 0x00 0x06 "
    "0x00 0x00 0x04 0x00 0x00 0x01 0x01 0x00 0x00 0x00 0x00 0x00 0xff 0x00 0x00 0x00 0x00 0x00 0x00 0x00 0x00 0x00 "
    "0x00 0x00 0x00 0xcf 0x50 0x77 0x72 0x20 0x43 0x6f 0x6e 0x73 0x75 0x6d 0x70 0x74 0x69 0x6f 0x6e"
)
STEP_WATTS = 4


def free_udp_port() -> int:
    """Return a free UDP port of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compile_shared(source: str, target: Path, *, header: str = "") -> Path:
    """Build one of the C files in this folder.

    Args:
        source: Name of the file.
        target: The library.
        header: A required header; the test is skipped without it.
    """
    compiler = require_program("gcc", "gcc")
    if header and not Path("/usr/include", header).exists():
        require_program(f"/usr/include/{header}", "libopenipmi-dev")
    command = [
        compiler,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O1",
        "-shared",
        "-fPIC",
        "-o",
        str(target),
        str(HERE / source),
    ]
    subprocess.run([*command, "-ldl"], check=True, capture_output=True, text=True)
    return target


class IpmiSim:
    """An instance of the simulator."""

    def __init__(self, folder: Path, *, has_dcmi: bool = True, key: str = "") -> None:
        """Write the simulator's files; ``start`` runs it.

        Args:
            folder: Folder for its files.
            has_dcmi: False: DCMI is an unknown command (C1h).
            key: The BMC's key (Kg); empty: none.
        """
        self._program = require_program("ipmi_sim", "openipmi")
        folder.mkdir(parents=True)
        (folder / "state").mkdir()
        self.folder = folder
        self.port = free_udp_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._values = folder / "dcmi_values"
        module = ""
        if has_dcmi:
            compile_shared("dcmi.c", folder / "dcmi.so", header="OpenIPMI/mcserv.h")
            module = f'loadlib "{folder / "dcmi.so"}" "{self._values}"'
        users = "\n".join(
            f'  user {number} true "{name}" "{password}" {privilege} 10 none md2 md5 straight'
            for number, (name, password), privilege in ((2, ADMIN, "admin"), (3, MONITOR, "user"))
        )
        (folder / "lan.conf").write_text(
            f"""name "sim"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {self.port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    {f'bmc_key "{key}"' if key else ""}
    guid a123456789abcdefa123456789abcdef
  endlan
{users}
{module}
"""
        )
        (folder / "sim.emu").write_text(
            f"""mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
main_sdr_add 0x20 {_SENSOR_RECORD}
sensor_add 0x20 0 1 0x03 0x01 poll 100 file "{folder / "sensor_raw"}"
sensor_set_event_support 0x20 0 1 enable scanning per-state \
000000000000000 000000000000000 000000000000000 000000000000000
mc_enable 0x20
"""
        )
        self.set_power(300)

    def set_power(self, watts: int, *, is_measuring: bool = True) -> None:
        """Set the power of DCMI, and the nearest possible value of the sensor."""
        temporary = self._values.with_suffix(".new")
        temporary.write_text(f"{watts} 0 65535 {watts} {int(is_measuring)}\n")
        temporary.replace(self._values)
        (self.folder / "sensor_raw").write_text(f"{round(watts / STEP_WATTS)}\n")

    def lose_power_reading(self) -> None:
        """Make DCMI answer that it has no value (CBh)."""
        self._values.unlink(missing_ok=True)

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [self._program, "-c", "lan.conf", "-f", "sim.emu", "-s", "state", "-n"]
        with (self.folder / "sim.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end_s = time.monotonic() + _START_LIMIT_S
        # Get Channel Authentication Capabilities, which needs no login.
        question = bytes.fromhex("0600ff07000000000000000000092018c88100388e04b5")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", self.port))
            client.settimeout(0.1)
            while time.monotonic() < end_s:
                try:
                    client.send(question)
                    client.recv(1024)
                    return
                except (TimeoutError, ConnectionRefusedError):
                    time.sleep(0.02)
        raise RuntimeError(f"ipmi_sim does not answer: {(self.folder / 'sim.log').read_text()[-2000:]}")

    def hang(self) -> None:
        """Stop answering until ``wake``."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Answer again."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop the process; safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def ipmitool(port: int, user: tuple[str, str], *command: str, suite: int = 3, privilege: str = "") -> str:
    """Run ``ipmitool`` over LAN; return its output and error messages."""
    program = require_program("ipmitool", "ipmitool")
    # Without -C, ipmitool asks the BMC for its suites, which takes 5 s if the BMC does not answer.
    flags = ["-C", str(suite), "-I", "lanplus", "-H", "127.0.0.1", "-p", str(port), "-U", user[0], "-P", user[1]]
    if privilege:
        flags += ["-L", privilege]
    answer = subprocess.run([program, *flags, *command], capture_output=True, text=True, timeout=60, check=False)
    return answer.stdout + answer.stderr
