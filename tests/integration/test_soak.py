"""All attacks at once, for a short time: the healthy devices stay up, and nothing grows."""

from __future__ import annotations

import pytest

from benchmarks import soak
from support.require import require_program

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def test_attacks_disturb_no_healthy_device_and_leak_no_resources() -> None:
    """15 s of the soak benchmark, which takes an hour: each local device that is hot-plugged disappears."""
    require_program("gcc", "gcc libc6-dev")
    soaked = soak.soak(15.0, quiet_s=5.0, settle_s=2.0)
    assert soaked.watched.complaints == []
    assert soaked.tracebacks == 0
    late = [reason for _, reason in soaked.lost if "TimeoutError" in reason]  # the machine of the tests may be busy
    assert len(soaked.lost) == len(late), soaked.lost
    assert soaked.left_over("threads") <= soak.MAX_THREAD_GROWTH
    assert soaked.left_over("descriptors") <= soak.MAX_DESCRIPTOR_GROWTH
    assert max(values.rss_mebibytes for _, values in soaked.samples) <= soak.MAX_RSS_MEBIBYTES
    for collector, device, _ in soak.HEALTHY:
        assert soaked.watched.was_always_up((collector, device)), device
    for device in soak.HOT_PLUGGED:
        assert not soaked.watched.was_always_up(device), device
    assert soaked.refused["passwords"] > 0
    assert soaked.refused["connections"] > 0
