"""The metric list of the exporter's README, generated from the catalog."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Final

from joulewatch_exporter.catalog import METRICS, Metric

BEGIN: Final = "<!-- metrics:begin -->"
END: Final = "<!-- metrics:end -->"
WIDTH: Final = 118


def listing(metrics: Iterable[Metric] = METRICS) -> str:
    """Return Markdown with one entry per metric that the exporter publishes."""
    return "\n".join(_entry(metric) for metric in metrics if metric.publisher == "exporter")


def _entry(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    paragraphs = (f"**`{metric.name}`**, {metric.kind}. {metric.help}", f"Labels: {labels}.")
    wrapped = (
        textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for text in paragraphs
    )
    return "- " + "\\\n  ".join(wrapped)


def with_listing(readme: str) -> str:
    """Return the README with the current list between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"the README needs the lines {BEGIN} and {END}"
    return f"{before}{BEGIN}\n{listing()}\n{END}{after}"
