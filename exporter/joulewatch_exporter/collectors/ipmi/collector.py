"""IPMI: the power of whole servers, from their baseboard management controllers (BMCs).

A BMC may take long to answer, so a scrape never waits for one: each BMC has its own thread and socket
(`workers.Poller`), and its readings keep their own time. One exporter reads many BMCs over the network, listed in the
configuration or in a target file that may change at run time, and the BMC of the local machine through the kernel's
device.

The power of the node is DCMI's Get Power Reading; if a BMC does not support or run it, a sensor in watts of its SDR
repository.

Source: DCMI 1.5; IPMI v2.0 revision 1.1; pyghmi 1.6.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

from joulewatch_exporter.collectors.base.targeted import TargetedCollector
from joulewatch_exporter.collectors.base.targets import TargetList, read_secret
from joulewatch_exporter.collectors.base.workers import Poller
from joulewatch_exporter.collectors.ipmi.channel import Channel, chmod_command, device_denied
from joulewatch_exporter.collectors.ipmi.device import BmcSettings, Connector, Source
from joulewatch_exporter.errors import ConfigError, SensorAbsentError, SensorDeniedError, SensorError
from joulewatch_exporter.model import Finding, Host

Privilege = Literal["user", "operator", "administrator"]

_PRIVILEGES: Final[Mapping[Privilege, int]] = {"user": 2, "operator": 3, "administrator": 4}
_MAX_USER_BYTES: Final = 16
_MAX_PASSWORD_BYTES: Final = 20
_MIN_INTERVAL_S: Final = 1.0
"""BMCs update their value every 1 to 10 s, and some cannot handle more frequent requests."""
_INSTALL_COMMAND: Final = "pip install 'joulewatch[ipmi]'"


def _check_name(key: str, name: str) -> None:
    if not re.fullmatch(r"[^\s/\x00-\x1f]+", name):
        raise ValueError(f"{key}: {name!r} must not be empty or contain white space or slashes")


def _check_interval(key: str, value_s: float) -> None:
    if not _MIN_INTERVAL_S <= value_s <= 3600.0:
        raise ValueError(f"{key}: must be {_MIN_INTERVAL_S:g} to 3600 seconds, not {value_s:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IpmiTarget:
    """A BMC that is read over the network."""

    name: str
    """Label ``device`` of its series; no white space, no slashes."""
    address: str
    """Host name or IP address of the BMC."""
    user: str
    password_file: Path
    """The file contains only the password."""
    port: int = 623
    privilege: Privilege = "user"
    """Privilege level of the session. DCMI needs ``user``; some BMCs require more."""
    kg_file: Path | None = None
    """File with the BMC's key (Kg), if it has one."""
    read: Source = "auto"
    """``dcmi``: the power reading; ``sdr``: a sensor; ``auto``: DCMI if the BMC measures with it, else a sensor."""
    sensor: str = "auto"
    """Name of the sensor of the whole server, used without DCMI; ``auto``: detect it by well-known names."""
    interval_seconds: float | None = None
    """Time between two readings; None: as for the family."""
    this_machine: bool = False
    """Whether this is the BMC of the exporter's machine: then its power is compared with the machine's sensors."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        _check_name("name", self.name)
        if not self.address or "/" in self.address or any(letter.isspace() for letter in self.address):
            raise ValueError(f"address: {self.address!r} is not a host name or IP address")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: must be 1 to 65535, not {self.port}")
        if not 1 <= len(self.user.encode()) <= _MAX_USER_BYTES:
            raise ValueError(f"user: must be 1 to {_MAX_USER_BYTES} bytes long (IPMI's limit)")
        if self.sensor != "auto" and self.read == "dcmi":
            raise ValueError("sensor: cannot be combined with `read: dcmi`")
        if not self.sensor.strip():
            raise ValueError("sensor: must not be empty")
        if self.interval_seconds is not None:
            _check_interval("interval_seconds", self.interval_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class IpmiOptions:
    """Settings under ``collectors.ipmi``."""

    targets: Sequence[IpmiTarget] = ()
    """BMCs that are read over the network."""
    targets_file: Path | None = None
    """File with more targets, which may change while the exporter runs."""
    in_band: bool | Literal["auto"] = "auto"
    """Whether to read the BMC of this machine through ``/dev/ipmi0``; ``auto``: if that device exists."""
    in_band_name: str = "bmc"
    """Label ``device`` of this machine's BMC."""
    interval_seconds: float = 5.0
    """Time between two readings of a BMC."""
    deadline_seconds: float = 5.0
    """A BMC that does not answer within this time counts as timed out. After half of it the session is considered lost
    and opened again, so set it to twice the time that a slow BMC needs."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is invalid; the text begins with its key.
        """
        object.__setattr__(self, "targets", tuple(self.targets))
        _check_interval("interval_seconds", self.interval_seconds)
        if not 0.5 <= self.deadline_seconds <= 60.0:
            raise ValueError(f"deadline_seconds: must be 0.5 to 60 seconds, not {self.deadline_seconds:g}")
        _check_name("in_band_name", self.in_band_name)


class IpmiCollector(TargetedCollector):
    """BMCs over the network, and the BMC of this machine."""

    name: ClassVar[str] = "ipmi"
    experimental: ClassVar[str] = "has not been run with the BMC of a server"
    Options: ClassVar[type] = IpmiOptions

    def __init__(self, options: IpmiOptions, device: str | None, findings: Sequence[Finding]) -> None:
        """Start reading.

        Args:
            options: The settings.
            device: Path of the kernel's device; None: do not read this machine's BMC.
            findings: Findings about the device.

        Raises:
            ConfigError: The target file is invalid, or two targets have the same name.
        """
        self._options = options
        self._device = device
        self._device_findings = tuple(findings)
        self._connectors: dict[str, Connector] = {}
        targets = TargetList(IpmiTarget, options.targets, options.targets_file, where="collectors.ipmi")
        super().__init__(targets, self._poller)

    @classmethod
    def open(cls, host: Host, options: Any) -> Self:
        """Start a poller for each BMC, without waiting for answers.

        Args:
            host: Where devices are.
            options: `IpmiOptions`.

        Raises:
            ConfigError: The target file is invalid, or two targets have the same name.
            SensorAbsentError: There is neither a target nor a device, or pyghmi is not installed.
            SensorDeniedError: There is only the device, and it cannot be opened.
        """
        assert isinstance(options, IpmiOptions)
        path = f"{host.dev}/ipmi0"
        device, findings = _find_device(path, options)
        if device is None and not options.targets and options.targets_file is None:
            (finding,) = findings
            text = f"{finding.text}; and collectors.ipmi has no targets"
            if finding.status == "denied":
                raise SensorDeniedError(text, devices=[finding.device])
            raise SensorAbsentError(text)
        try:
            if device is not None:
                import joulewatch_exporter.collectors.ipmi.local
            import joulewatch_exporter.collectors.ipmi.lan  # noqa: F401
        except ImportError as error:
            raise SensorAbsentError(f"pyghmi cannot be used ({error}); run `{_INSTALL_COMMAND}`") from error
        return cls(options, device, findings)

    @property
    def findings(self) -> Sequence[Finding]:
        """Findings about each BMC, this machine's device, and an invalid target file."""
        findings = [*super().findings, *self._device_findings]
        connectors = self._connectors
        for device, (_, poller) in self._pollers.items():
            if (connector := connectors.get(device)) is not None:
                findings += _findings(device, poller, connector)
        return tuple(findings)

    def follow(self, wanted: Mapping[str, tuple[Hashable, Callable[[], Poller]]]) -> None:
        """See `PolledCollector.follow`; also drop the connectors of removed BMCs."""
        super().follow(wanted)
        self._connectors = {device: self._connectors[device] for device in wanted}

    def _wanted(self) -> Mapping[str, tuple[Hashable, Callable[[], Poller]]]:
        wanted = dict(super()._wanted())
        if self._device is not None:
            if self._options.in_band_name in wanted:
                name = self._options.in_band_name
                raise ConfigError(
                    f"collectors.ipmi: {name} is both a target and the name of this machine's BMC (in_band_name); "
                    "names must be unique, because they label the series"
                )
            wanted[self._options.in_band_name] = (self._device, self._in_band_poller)
        return wanted

    def _poller(self, target: IpmiTarget) -> Poller:
        options = self._options
        address = f"[{target.address}]" if ":" in target.address else target.address
        settings = BmcSettings(
            device=target.name,
            source=f"ipmi://{address}:{target.port}",
            read=target.read,
            sensor=target.sensor,
            interval_s=target.interval_seconds or options.interval_seconds,
            deadline_s=options.deadline_seconds,
            is_remote=not target.this_machine,
            read_mode="remote",
            privilege_fix=f"raise `privilege` of the target (now {target.privilege}) and of {target.user} in the BMC",
        )

        def open_channel() -> Channel:
            from joulewatch_exporter.collectors.ipmi.lan import LanChannel

            return LanChannel(
                f"{target.name} ({address}:{target.port})",
                target.address,
                target.port,
                lambda: _credentials(target),
                _PRIVILEGES[target.privilege],
                user=target.user,
                deadline_s=options.deadline_seconds,
            )

        return self._polled(settings, open_channel)

    def _in_band_poller(self) -> Poller:
        options = self._options
        path = self._device
        assert path is not None
        settings = BmcSettings(
            device=options.in_band_name,
            source=path,
            read="auto",
            sensor="auto",
            interval_s=options.interval_seconds,
            deadline_s=options.deadline_seconds,
            is_remote=False,
            read_mode="polled",
            privilege_fix="",
        )

        def open_channel() -> Channel:
            from joulewatch_exporter.collectors.ipmi.local import LocalChannel

            return LocalChannel(path, deadline_s=options.deadline_seconds)

        return self._polled(settings, open_channel)

    def _polled(self, settings: BmcSettings, open_channel: Callable[[], Channel]) -> Poller:
        connector = self._connectors[settings.device] = Connector(settings, open_channel)
        # The channel enforces the deadline; the poller's covers calls without one, such as resolving a name.
        return Poller(
            settings.device, connector.connect, poll_s=settings.interval_s, deadline_s=2 * settings.deadline_s
        )


def _find_device(path: str, options: IpmiOptions) -> tuple[str | None, Sequence[Finding]]:
    """Return the path of the kernel's device (None: do not read it) and the findings about it."""
    if options.in_band is False:
        return None, (
            Finding(
                status="skipped",
                collector="ipmi",
                subject=path,
                text=f"{path}: disabled by collectors.ipmi.in_band",
            ),
        )
    load = "sudo modprobe -a ipmi_si ipmi_devintf"
    if not Path(path).exists():
        if options.in_band == "auto":
            return None, (
                Finding(
                    status="absent",
                    collector="ipmi",
                    subject=path,
                    text=f"{path}: no such device (no BMC, or no driver)",
                    cure=load,
                ),
            )
        return path, ()  # it may appear later; until then the poller reports that it is missing
    if os.access(path, os.R_OK | os.W_OK):
        return path, ()
    if options.in_band == "auto":
        text = device_denied(path, "Permission denied")
        return None, (
            Finding(
                status="denied",
                collector="ipmi",
                subject=path,
                text=text,
                cure=chmod_command(path),
                device=options.in_band_name,
            ),
        )
    return path, ()


def _credentials(target: IpmiTarget) -> tuple[bytes, bytes, bytes | None]:
    """Return user, password and key as bytes.

    Raises:
        SensorDeniedError: A file cannot be read or is too long; the text never contains the secret.
    """
    secrets = []
    for path in (target.password_file, target.kg_file):
        secret = None if path is None else read_secret(path).encode()
        if secret is not None and len(secret) > _MAX_PASSWORD_BYTES:
            raise SensorDeniedError(f"{path}: longer than {_MAX_PASSWORD_BYTES} bytes, the limit of IPMI")
        secrets.append(secret)
    password, kg = secrets
    assert password is not None
    return target.user.encode(), password, kg


def _findings(device: str, poller: Poller, connector: Connector) -> Sequence[Finding]:
    """Return the findings about one BMC."""
    source = connector.settings.source
    error = poller.error
    if error is not None:
        return (Finding(status=_status(error), collector="ipmi", subject=source, text=str(error)),)
    if poller.sensor is None:
        return ()
    quantities = ", ".join(
        f"{info.quantity.domain} from {info.model} ({info.quantity.scope})" for info in poller.sensor.infos
    )
    remark = f"; {connector.remark}" if connector.remark else ""
    finding = Finding(status="found", collector="ipmi", subject=source, text=f"{device}: {quantities}{remark}")
    if not connector.note:
        return (finding,)
    return (finding, Finding(status="skipped", collector="ipmi", subject=source, text=f"{device}: {connector.note}"))


def _status(error: SensorError) -> Literal["absent", "denied", "broken"]:
    if isinstance(error, SensorAbsentError):
        return "absent"
    return "denied" if isinstance(error, SensorDeniedError) else "broken"
