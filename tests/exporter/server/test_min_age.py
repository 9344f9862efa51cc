"""``--web.min-age``: clients without a password get old values."""

from __future__ import annotations

from joulewatch_exporter.attribution.shares import Shares, SharesLayout
from joulewatch_exporter.sampling.scan import FamilyScan
from joulewatch_exporter.server.min_age import AgedScans
from support.fake_family import Machine, energy_sensor, fake_family


def test_one_read_serves_all_choices_until_it_is_old() -> None:
    reads = 0
    now_s = 0.0

    def fresh() -> tuple[tuple[FamilyScan, ...], Shares | None]:
        nonlocal reads
        reads += 1
        return scans, shares

    shares = Shares(layout=SharesLayout(), shown=0, rest=0, gone=0)
    scans = tuple(scan_of(name) for name in ("rapl", "hwmon"))
    aged = AgedScans(fresh, 10.0, lambda: now_s)
    assert aged.get() == (scans, shares)
    now_s = 9.9
    assert aged.get({"hwmon"}) == (scans[1:], None)
    assert aged.get({"rapl", "attribution"}) == (scans[:1], shares)
    assert reads == 1
    now_s = 10.0
    aged.get()
    assert reads == 2


def scan_of(name: str) -> FamilyScan:
    from joulewatch_exporter.model import Host
    from joulewatch_exporter.sampling.family import Family

    family = fake_family(name, Machine([energy_sensor()]))
    return Family(family.open(Host(), family.Options())).scan()
