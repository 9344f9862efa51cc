"""``joulewatch-exporter --once``: print one scrape and exit."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Final

from joulewatch_exporter.config.config import Config
from joulewatch_exporter.errors import EXIT_DONE
from joulewatch_exporter.model import Collector, Host

ONCE_INTERVAL_S: Final = 0.15
"""Between the two reads of ``--once``: power of a counter needs two."""


SETTLE_S: Final = 15.0
"""How long ``--once`` waits for devices that are read in the background: a BMC's first answer takes seconds."""


def once(families: Sequence[type[Collector]], host: Host, config: Config) -> int:
    from joulewatch_exporter.sampling.sampler import Sampler
    from joulewatch_exporter.server.exposition import Exposition

    start_s = time.time()
    sampler = Sampler(families, host, config.collectors, rediscover_s=0.0)
    sampler.start()
    try:
        timeout_s = config.exporter.read_timeout_seconds
        sampler.settle(SETTLE_S)
        sampler.fresh(timeout_s)
        time.sleep(ONCE_INTERVAL_S)
        scans = sampler.fresh(timeout_s)
    finally:
        sampler.stop()
    if not any(scan.layout.infos for scan in scans):
        print(  # noqa: T201
            "joulewatch-exporter: no sensor found; 'joulewatch-exporter check' says why", file=sys.stderr
        )
    exposition = Exposition(emulated=host.emulated, start_s=start_s, self_metrics=config.exporter.exporter_metrics)
    sys.stdout.write(exposition.render(scans, "text").decode())
    sys.stdout.flush()
    return EXIT_DONE
