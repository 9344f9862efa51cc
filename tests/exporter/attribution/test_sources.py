"""The registry of usage sources."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from joulewatch_exporter import collectors
from joulewatch_exporter.attribution.sources import ENTRY_POINT, SOURCES, all_sources
from joulewatch_exporter.errors import ConfigError


class GoodSource:
    name = "good"
    components = ("cpu",)
    Options = findings = open = read = survey = workload = close = None


def install(monkeypatch: pytest.MonkeyPatch, name: str, target: str) -> None:
    entry = EntryPoint(name=name, value=f"{__name__}:{target}", group=ENTRY_POINT)

    def entry_points(*, group: str) -> list[EntryPoint]:
        return [entry] if group == ENTRY_POINT else []

    loaded: dict[str, Any] = globals()
    monkeypatch.setattr(collectors, "entry_points", entry_points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: loaded[self.value.partition(":")[2]])


def test_sources_of_packages_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "good", "GoodSource")
    assert all_sources() == (*SOURCES, GoodSource)


def test_names_of_sources_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    monkeypatch.setattr(GoodSource, "name", "cgroups")
    install(monkeypatch, "cgroups", "GoodSource")
    with pytest.raises(ConfigError, match="a usage source of this name already exists"):
        all_sources()


def test_a_source_that_lacks_a_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(GoodSource, "survey")
    install(monkeypatch, "good", "GoodSource")
    with pytest.raises(ConfigError, match=r"usage source good of the package .*missing survey"):
        all_sources()
