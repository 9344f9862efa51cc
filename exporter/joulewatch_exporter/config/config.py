"""Settings of the exporter, from its configuration file; `web` has those of its web configuration file.

A flag takes precedence over the file, the file over the default. ``example.yaml`` next to this package shows all
settings.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from joulewatch_exporter.catalog import DEFAULT_PORT
from joulewatch_exporter.config.strict import build, check_keys, convert, mapping, nearest, read_yaml
from joulewatch_exporter.errors import ConfigError
from joulewatch_exporter.logs import LogFormat, LogLevel
from joulewatch_exporter.model import Collector, Host


@dataclass(frozen=True, slots=True)
class PathSettings:
    """Roots of the machine's files; others than the defaults in a container or for an emulated machine."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")
    dev: Path = Path("/dev")

    def host(self) -> Host:
        """Return the host with these roots.

        Raises:
            ConfigError: A root is not a folder.
        """
        for name in ("sysfs", "procfs", "dev"):
            root: Path = getattr(self, name)
            if not root.is_dir():
                raise ConfigError(f"--path.{name} (exporter.path.{name}): {root} is not a folder")
        return Host(sysfs=self.sysfs, procfs=self.procfs, dev=self.dev)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterSettings:
    """The section ``exporter``."""

    listen: tuple[str, ...] = (f":{DEFAULT_PORT}",)
    """``host:port``; an empty host listens on all addresses, port 0 chooses a free port."""
    telemetry_path: str = "/metrics"
    max_requests: int = 40
    """Number of concurrent scrapes; more are answered with 503. 0: no limit."""
    read_timeout_seconds: float = 2.0
    """A family that has not answered a scrape by then is shown as down."""
    rediscover_seconds: float = 30.0
    """Period of the probes for missing sensors; 0: never."""
    exporter_metrics: bool = True
    """Whether ``process_*`` and ``python_info`` are published."""
    web_config_file: Path | None = None
    """TLS and basic auth, in the format of the Prometheus exporter toolkit."""
    web_min_age_seconds: float = 0.0
    """Clients without a password get new values at most once in this time. 0: with every scrape."""
    edge_socket: Path | None = None
    """Unix socket for edges; None: ``edge.sock`` in the service's runtime folder or in ``/run/joulewatch``, if there is
    one; ``none``: no socket."""
    edge_socket_group: str | None = None
    """Group whose members may connect to it; None: the exporter's own group."""
    log_level: LogLevel = "info"
    log_format: LogFormat = "logfmt"
    nodename: str | None = None
    """Name of this machine in the labels; None: its hostname, which in a container is that of the container."""
    path: PathSettings = field(default_factory=PathSettings)
    primary_node_sensor: Mapping[str, str] = field(default_factory=dict)
    """Name of a host, or a pattern such as ``rack3-*`` -> the collector whose node sensor is primary there. The first
    that matches applies."""
    calibration_files: tuple[Path, ...] = ()
    """Calibrations, written by ``joulewatch calibrate``; see ``config.calibration``."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is out of range; the text begins with its key.
        """
        if not self.listen:
            raise ValueError("listen: needs at least one address")
        for address in self.listen:
            parse_address(address)
        if not re.fullmatch(r"/[\w./~-]+", self.telemetry_path) or self.telemetry_path == "/-/healthy":
            raise ValueError(
                f"telemetry_path: {self.telemetry_path!r} must be a path such as /metrics, not / nor /-/healthy"
            )
        if self.max_requests < 0:
            raise ValueError(f"max_requests: {self.max_requests} is below 0")
        if self.read_timeout_seconds <= 0:
            raise ValueError(f"read_timeout_seconds: {self.read_timeout_seconds:g} is not above 0")
        if not 0 <= self.web_min_age_seconds <= 3600:
            raise ValueError(f"web_min_age_seconds: {self.web_min_age_seconds:g} is not between 0 and 3600")
        if self.rediscover_seconds < 0:
            raise ValueError(f"rediscover_seconds: {self.rediscover_seconds:g} is below 0")
        if self.nodename == "":
            raise ValueError("nodename: must not be empty")

    def host(self) -> Host:
        """Return this machine, with its name and the roots of its files.

        Raises:
            ConfigError: A root is not a folder.
        """
        host = self.path.host()
        return host if self.nodename is None else dataclasses.replace(host, nodename=self.nodename)


@dataclass(frozen=True, slots=True)
class FamilySettings:
    """The configuration of one family."""

    enabled: bool | Literal["auto"] = "auto"
    """auto: used if present; True: an error if missing; False: never used."""
    poll_s: float | None = None
    """Overrides the family's own period."""
    options: Any = None
    """The family's ``Options``; None: its defaults."""


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """The configuration of one usage source."""

    enabled: bool | Literal["auto"] = "auto"
    """auto: used if present; True: an error if missing; False: never used."""
    options: Any = None
    """The source's ``Options``; None: its defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionSettings:
    """The section ``attribution``: whose joules."""

    enabled: bool | Literal["auto"] = "auto"
    """auto: if a usage source can be read; True: an error if none can; False: never."""
    max_workloads: int = 100
    """Number of workloads with series."""
    min_share: float = 0.005
    """A workload gets series when it used this share over 30 s."""
    keep_gone_seconds: float = 300.0
    """How long the series of a workload that has ended are kept."""
    depth: Literal["workload", "container"] = "workload"
    """Whether containers of pods and steps of jobs are workloads as well."""
    workload_names: Literal["plain", "hash", "auto"] = "auto"
    """Whether names are published; auto: names of users' units and sessions are hashed on shared machines."""
    allow: tuple[str, ...] = ()
    """Patterns of the workloads that may have series; empty: all."""
    deny: tuple[str, ...] = ()
    """Patterns of those that may not."""
    idle_watts: Mapping[str, float] = field(default_factory=dict)
    """Power without work, by device, or by device and domain (``socket0/dram``); others are measured."""
    sources: Mapping[str, SourceSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is out of range; the text begins with its key.
        """
        if not 1 <= self.max_workloads <= 10_000:
            raise ValueError(f"max_workloads: {self.max_workloads} is not between 1 and 10000")
        if not 0 < self.min_share < 1:
            raise ValueError(f"min_share: {self.min_share:g} is not between 0 and 1")
        if not 0 <= self.keep_gone_seconds <= 86_400:
            raise ValueError(f"keep_gone_seconds: {self.keep_gone_seconds:g} is not between 0 and 86400")
        for device, watts in self.idle_watts.items():
            if not 0 <= watts <= 100_000:
                raise ValueError(f"idle_watts.{device}: {watts:g} is not between 0 and 100000")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings."""

    exporter: ExporterSettings = field(default_factory=ExporterSettings)
    collectors: Mapping[str, FamilySettings] = field(default_factory=dict)
    attribution: AttributionSettings = field(default_factory=AttributionSettings)


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port``, ``:port`` or ``[ipv6]:port`` into host (empty: all addresses) and port.

    Raises:
        ValueError: The text is none of these.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^:\[\]/\s]*)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(
            f"listen: {text!r} is not a valid address such as :{DEFAULT_PORT}, 127.0.0.1:9101 or [::1]:9101"
        )
    return match[1] or match[2] or "", int(match[3])


def load_config(path: Path | None, families: Iterable[type[Collector]], sources: Iterable[Any] = ()) -> Config:
    """Read the configuration file.

    Args:
        path: The YAML file; None: all defaults.
        families: The sensor families, whose ``Options`` are the keys below ``collectors.<name>``.
        sources: The usage sources, whose ``Options`` are the keys below ``attribution.sources.<name>``.

    Raises:
        ConfigError: The file cannot be read, is not valid YAML, or has an invalid key or value.
    """
    by_name = {family.name: family for family in families}
    data: object = {} if path is None else read_yaml(path)
    source = "the defaults" if path is None else str(path)
    sections = mapping(data, source, "")
    check_keys(sections, ("exporter", "collectors", "attribution"), source, "")
    exporter = build(ExporterSettings, sections.get("exporter") or {}, source, "exporter")
    for host, collector in exporter.primary_node_sensor.items():
        if collector not in by_name:
            where = f"exporter.primary_node_sensor.{host}"
            raise ConfigError(f"{source}: {where}: unknown collector {collector}; {nearest(collector, tuple(by_name))}")
    collectors = mapping(sections.get("collectors") or {}, source, "collectors")
    check_keys(collectors, tuple(by_name), source, "collectors")
    return Config(
        exporter=exporter,
        collectors={
            name: _family_settings(family, collectors.get(name) or {}, source) for name, family in by_name.items()
        },
        attribution=_attribution(sections.get("attribution") or {}, sources, source),
    )


def _attribution(data: object, usage_sources: Iterable[Any], source: str) -> AttributionSettings:
    section = dict(mapping(data, source, "attribution"))
    valid = tuple(field.name for field in dataclasses.fields(AttributionSettings))
    check_keys(section, valid, source, "attribution")
    by_name = {usage_source.name: usage_source for usage_source in usage_sources}
    given = mapping(section.pop("sources", None) or {}, source, "attribution.sources")
    check_keys(given, tuple(by_name), source, "attribution.sources")
    settings = build(AttributionSettings, section, source, "attribution")
    return dataclasses.replace(
        settings,
        sources={
            name: _source_settings(usage_source, given.get(name) or {}, settings, source)
            for name, usage_source in by_name.items()
        },
    )


def _source_settings(usage_source: Any, data: object, shared: AttributionSettings, source: str) -> SourceSettings:
    """Return the settings of one source: options with the name of a setting of the section get its value."""
    where = f"attribution.sources.{usage_source.name}"
    section = dict(mapping(data, source, where))
    names = [option.name for option in dataclasses.fields(usage_source.Options)]
    inherited = {name: getattr(shared, name) for name in names if name in _INHERITED}
    check_keys(section, ("enabled", *(name for name in names if name not in inherited)), source, where)
    enabled = convert(section.pop("enabled", "auto"), bool | Literal["auto"], source, f"{where}.enabled")
    options = dataclasses.replace(build(usage_source.Options, section, source, where), **inherited)
    return SourceSettings(enabled=enabled, options=options)


_INHERITED: Final = ("depth", "workload_names", "allow", "deny")
"""Settings of the section that sources need."""


def _family_settings(family: type[Collector], data: object, source: str) -> FamilySettings:
    where = f"collectors.{family.name}"
    section = dict(mapping(data, source, where))
    option_names = [option.name for option in dataclasses.fields(family.Options)]
    check_keys(section, ("enabled", "poll_seconds", *option_names), source, where)
    enabled = convert(section.pop("enabled", "auto"), bool | Literal["auto"], source, f"{where}.enabled")
    poll_s = convert(section.pop("poll_seconds", None), float | None, source, f"{where}.poll_seconds")
    if poll_s is not None and not 0.01 <= poll_s <= 3600:
        raise ConfigError(f"{source}: {where}.poll_seconds: {poll_s:g} is not between 0.01 and 3600")
    return FamilySettings(enabled=enabled, poll_s=poll_s, options=build(family.Options, section, source, where))
