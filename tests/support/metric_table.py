"""The lists of metrics in documents, generated from the catalog."""

from __future__ import annotations

import textwrap
from collections.abc import Collection
from typing import Final

from joulewatch_exporter.catalog import METRICS, Metric

BEGIN: Final = "<!-- metrics:begin -->"
END: Final = "<!-- metrics:end -->"
WIDTH: Final = 118


def listing(publishers: Collection[str]) -> str:
    """Return Markdown with one entry per metric of these publishers."""
    return "\n".join(_entry(metric) for metric in METRICS if metric.publisher in publishers)


def _entry(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    paragraphs = (f"**`{metric.name}`**, {metric.kind}. {metric.help}", f"Labels: {labels}.")
    wrapped = (
        textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for text in paragraphs
    )
    return "- " + "\\\n  ".join(wrapped)


def with_listing(document: str, publishers: Collection[str]) -> str:
    """Return the document with the current list between its markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"the document needs the lines {BEGIN} and {END}"
    return f"{before}{BEGIN}\n{listing(publishers)}\n{END}{after}"
