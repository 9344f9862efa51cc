"""The metrics of the process, compared with those of prometheus_client."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest as generate_text
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from joulewatch_exporter.server.exposition import Exposition, Format
from support.waiting import wait_until


def reference() -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def own(format_: Format) -> bytes:
    """Return the lines of the exposition about its process."""
    text = Exposition(emulated=False, start_s=0.0).render((), format_)
    return text[text.index(b"# HELP process_virtual_memory_bytes") :]


def names(text: bytes) -> list[str]:
    """Return the comments, and the samples without their values."""
    return [line if line.startswith("#") else line.rpartition(" ")[0] for line in text.decode().splitlines()]


def test_the_text_has_the_same_names_labels_and_help() -> None:
    assert names(own("text")) == names(generate_text(reference()))


def test_openmetrics_has_the_same_names_labels_and_help() -> None:
    assert names(own("openmetrics")) == names(generate_openmetrics(reference()))  # type: ignore[no-untyped-call]


def test_the_values_are_the_same() -> None:
    def values(text: bytes) -> dict[str, float]:
        families = text_string_to_metric_families(text.decode())
        return {sample.name: sample.value for family in families for sample in family.samples}

    expected, got = values(generate_text(reference())), values(own("text"))
    for name in ("process_start_time_seconds", "process_max_fds", "python_info"):
        assert got[name] == expected[name]
    for name in ("process_virtual_memory_bytes", "process_resident_memory_bytes"):
        assert got[name] == pytest.approx(expected[name], rel=0.05)
    assert 0 <= got["process_cpu_seconds_total"] - expected["process_cpu_seconds_total"] < 0.5

    def agree() -> bool:
        """Threads of other tests may open or close files between the two."""
        listed, counted = (values(text)["process_open_fds"] for text in (generate_text(reference()), own("text")))
        return 0 <= listed - counted <= 1  # prometheus_client counts the descriptor with which it lists them

    wait_until(agree)
