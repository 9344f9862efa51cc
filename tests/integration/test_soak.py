"""Devices that disappear and return: the energies of the others are correct, and nothing grows."""

from __future__ import annotations

import pytest

from benchmarks import soak
from support.require import require_program

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def test_sensors_that_disappear_and_return_leak_no_resources() -> None:
    """35 s of the soak benchmark, which takes half an hour: each device disappears at least once."""
    require_program("gcc", "gcc libc6-dev")
    soaked = soak.soak(35.0)
    assert soaked.watched.complaints == []
    assert soaked.growth("threads") <= soak.MAX_THREAD_GROWTH
    assert soaked.growth("descriptors") <= soak.MAX_DESCRIPTOR_GROWTH
    assert soaked.growth("rss_mebibytes") <= soak.MAX_RSS_GROWTH_MEBIBYTES
    for collector, device, _ in soak.HEALTHY:
        assert soaked.watched.was_always_up((collector, device)), device
    lost = [device for device in soaked.watched.up if not soaked.watched.was_always_up(device)]
    assert len(lost) == len(soak.HEALTHY), lost
