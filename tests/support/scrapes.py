"""What an exporter publishes, read over HTTP."""

from __future__ import annotations

import re
import urllib.request


class Scrape:
    """One scrape of an exporter."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            self.text = str(answer.read().decode())

    def samples(self, metric: str) -> dict[str, float]:
        """Return the values of a metric by ``device/domain``, or by device where there is no domain."""
        values = {}
        for text, value in re.findall(rf"^{metric}{{(.*)}} (\S+)$", self.text, re.MULTILINE):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', text))
            values["/".join(labels[name] for name in ("device", "domain") if name in labels)] = float(value)
        return values
