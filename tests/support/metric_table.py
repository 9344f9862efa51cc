"""The metric table of the exporter's README, made from the catalog."""

from __future__ import annotations

from collections.abc import Iterable

from joulewatch_exporter.catalog import METRICS, Metric

BEGIN = "<!-- metrics:begin -->"
END = "<!-- metrics:end -->"


def table(metrics: Iterable[Metric] = METRICS) -> str:
    """Markdown, one row per metric that the exporter publishes."""
    rows = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for metric in metrics:
        if metric.publisher == "exporter":
            labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
            text = metric.help.replace("|", "\\|")
            rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {text} |")
    return "\n".join(rows)


def with_table(readme: str) -> str:
    """The README with the table of today between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"the README needs the lines {BEGIN} and {END}"
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"
