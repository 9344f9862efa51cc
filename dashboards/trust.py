"""The dashboard joulewatch / Trust: whether the energies of sensors and runs can be believed, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from grafana_foundation_sdk.builders import dashboard
from kit import (
    RATE,
    SENSORS,
    Panel,
    Variable,
    data_source_variable,
    data_table,
    link,
    methods_panel,
    multi_value_variable,
    new_dashboard,
    override,
    panel,
    query,
    series_colour,
    single_stat,
    thresholds,
    time_series,
)
from runs import WHOLE_RUN, result, run_variable

from joulewatch_exporter import catalog

MOST: Final = 20
"""Series of a panel that would have one per exporter or device."""
NO_FINDINGS: Final = "No findings, or no results yet: joulewatch analyze RUN --prometheus URL --publish"


def trust() -> dashboard.Dashboard:
    """Return the dashboard for the quality of measurements."""
    rows = {
        "Overview": overview_row(),
        "Audit of runs": audit_row(),
        "Plausibility": plausibility_row(),
        "Sensors": sensors_row(),
        "Cost of the exporters": cost_row(),
    }
    return (
        new_dashboard(
            "joulewatch / Trust",
            "joulewatch-trust",
            "Findings of the audit, plausibility of sensors, refresh and age of values, cost of the exporters.",
            [*variables()],
            rows,
        )
        .link(link("Node", "joulewatch-node"))
        .link(link("Results", "joulewatch-results"))
        .refresh("1m")
        .time("now-6h", "now")
    )


def variables() -> Iterator[Variable]:
    """Yield the variables that select exporters and runs."""
    yield data_source_variable()
    info = catalog.EXPORTER_INFO.name
    yield multi_value_variable("job", "Job", f"label_values({info}, job)")
    yield multi_value_variable("instance", "Instance", f'label_values({info}{{job=~"$job"}}, instance)')
    yield run_variable(several=True)


def worst(values: str, by: str) -> str:
    """Return PromQL for the largest of ``values`` by these labels, over the whole time range."""
    grouped = f"max by ({by}) ({values})"
    return f"{grouped} and on ({by}) topk({MOST}, max_over_time(({grouped})[$__range:$__interval] @ end()))"


def overview_row() -> list[Panel]:
    def states(matcher: str) -> str:
        return f"sum({catalog.SENSOR_STATE.name}{{{SENSORS}, {matcher}}}) or vector(0)"

    return [
        panel(
            "Devices",
            "Devices that are read, and those in runtime suspend, which have no values while they sleep.",
            "short",
            [
                query(states('state="ok"'), "ok", shape="instant"),
                query(states('state="asleep"'), "asleep", ref="B", shape="instant"),
            ],
            size=(5, 5),
            kind=single_stat(named=True),
            overrides=[series_colour("ok", "green"), series_colour("asleep", "blue")],
        ),
        panel(
            "Failed",
            "Devices that cannot be read: denied, absent, timeout, glitch or error.",
            "short",
            [query(states('state!~"ok|asleep"'), "failed", shape="instant")],
            size=(5, 5),
            kind=single_stat(levels=thresholds("green", (1, "red"))),
        ),
        panel(
            "Doubtful",
            "Plausibility checks that fail: two sensors contradict each other, or a value stands still.",
            "short",
            [query(f"sum({catalog.SENSOR_IMPLAUSIBLE.name}{{{SENSORS}}}) or vector(0)", "checks", shape="instant")],
            size=(5, 5),
            kind=single_stat(levels=thresholds("green", (1, "red"))),
        ),
        panel(
            "Errors",
            "Findings of severity error in the audit of the selected runs: results that are contradicted or missing.",
            "short",
            [
                query(
                    f"sum({result(catalog.RESULT_FINDINGS, by='run, reason', of=WHOLE_RUN + severity('error'))})"
                    " or vector(0)",
                    "findings",
                    shape="instant",
                )
            ],
            size=(5, 5),
            kind=single_stat(levels=thresholds("green", (1, "red"))),
        ),
        methods_panel(),
    ]


def severity(name: str) -> str:
    return f', severity="{name}"'


def audit_row() -> list[Panel]:
    return [
        panel(
            "Findings of the audit",
            "error: a result is contradicted or missing; warning: check the result; info: worth knowing. "
            "harness/README.md lists the fix of each reason.",
            "none",
            [query(result(catalog.RESULT_FINDINGS, by="run, severity, reason", of=WHOLE_RUN), shape="table")],
            size=(24, 9),
            no_value=NO_FINDINGS,
            kind=data_table(
                {"run": "Run", "severity": "Severity", "reason": "Reason", "Value": "Findings"},
                rows=(),
                sort=("Severity", False),
            ),
            overrides=[
                override("byName", "Run", custom__width=220),
                override(
                    "byName",
                    "Severity",
                    mappings=[
                        {"type": "value", "options": {name: {"text": name, "color": shade, "index": index}}}
                        for index, (name, shade) in enumerate(
                            (("error", "red"), ("warning", "orange"), ("info", "blue"))
                        )
                    ],
                    custom__cellOptions={"type": "color-text"},
                ),
            ],
        ),
    ]


def plausibility_row() -> list[Panel]:
    by = "instance, check, collector, device, domain"
    return [
        panel(
            "Plausibility checks",
            "Ratio of two mean powers that should agree or be ordered, such as the cores of a package to the package. "
            "A check fails if the ratio was outside its bounds twice in a row. stuck has no ratio: the value does not "
            "change.",
            "none",
            [
                query(f"max by ({by}) ({catalog.SENSOR_IMPLAUSIBLE.name}{{{SENSORS}}})", ref="A", shape="table"),
                query(f"max by ({by}) ({catalog.PLAUSIBILITY_RATIO.name}{{{SENSORS}}})", ref="B", shape="table"),
            ],
            size=(24, 10),
            no_value="No checks: a check needs two sensors that measure the same power",
            kind=data_table(
                {
                    "Value #A": "Result",
                    "check": "Check",
                    "instance": "Instance",
                    "collector": "Collector",
                    "device": "Device",
                    "domain": "Domain",
                    "Value #B": "Ratio",
                },
                sort=("Result", True),
            ),
            overrides=[
                override(
                    "byName",
                    "Result",
                    mappings=[
                        {
                            "type": "value",
                            "options": {
                                "0": {"text": "plausible", "color": "green", "index": 0},
                                "1": {"text": "implausible", "color": "red", "index": 1},
                            },
                        }
                    ],
                    custom__cellOptions={"type": "color-text"},
                    custom__width=130,
                ),
                override("byName", "Device", custom__minWidth=365),
                override("byName", "Ratio", decimals=3),
            ],
        ),
    ]


def sensors_row() -> list[Panel]:
    def of(metric: catalog.Metric) -> str:
        return f"{metric.name}{{{SENSORS}}}"

    return [
        panel(
            "Refresh period by family",
            "Slowest measured time between two changes of a value, by sensor family. Windows should be much longer.",
            "s",
            [query(f"max by (collector) ({of(catalog.SENSOR_REFRESH)})", "{{collector}}")],
            size=(12, 13),
            kind=time_series(log_base=10),
        ),
        panel(
            "Age of values by family",
            "Time since the oldest value of a sensor family was read. A negative age means that the clock of a machine "
            "is ahead.",
            "s",
            [query(f"max by (collector) (time() - {of(catalog.READ_TIMESTAMP)})", "{{collector}}")],
            size=(12, 13),
            kind=time_series(minimum=None),
        ),
        panel(
            "Time not measured by exporter",
            f"Largest share of time whose energy is missing from a counter. The {MOST} worst exporters.",
            "percentunit",
            [
                query(
                    worst(f"clamp_max(rate({of(catalog.SENSOR_UNMEASURED)}{RATE}), 1)", "instance"),
                    "{{instance}}",
                )
            ],
            size=(12, 10),
            kind=time_series(soft_maximum=0.01, calcs=("mean", "max")),
        ),
        panel(
            "Failed and rejected readings",
            "Per second: reads that failed, readings that were physically impossible, restarts of hardware counters.",
            "cps",
            [
                query(f"sum(rate({of(metric)}{RATE})) or vector(0)", word, ref=ref)
                for metric, word, ref in (
                    (catalog.READ_ERRORS, "failed", "A"),
                    (catalog.SENSOR_REJECTED, "rejected", "B"),
                    (catalog.SENSOR_RESETS, "restarts", "C"),
                )
            ],
            size=(12, 10),
            kind=time_series(soft_maximum=1, calcs=("mean", "max")),
        ),
    ]


def cost_row() -> list[Panel]:
    return [
        panel(
            "CPU time of exporters",
            f"Share of one CPU core that an exporter uses. The {MOST} largest.",
            "percentunit",
            [query(worst(f"rate(process_cpu_seconds_total{{{SENSORS}}}{RATE})", "instance"), "{{instance}}")],
            size=(12, 10),
            kind=time_series(calcs=("mean", "max")),
        ),
        panel(
            "Memory of exporters",
            f"Resident memory of an exporter. The {MOST} largest.",
            "bytes",
            [query(worst(f"process_resident_memory_bytes{{{SENSORS}}}", "instance"), "{{instance}}")],
            size=(12, 10),
            kind=time_series(calcs=("mean", "max")),
        ),
        panel(
            "Duration of scrapes",
            f"Time until Prometheus has the answer of an exporter. The {MOST} slowest.",
            "s",
            [query(worst(f"scrape_duration_seconds{{{SENSORS}}}", "instance"), "{{instance}}")],
            size=(12, 10),
            kind=time_series(calcs=("mean", "max")),
        ),
        panel(
            "Samples per scrape",
            f"Number of series of an exporter. The {MOST} largest.",
            "short",
            [query(worst(f"scrape_samples_scraped{{{SENSORS}}}", "instance"), "{{instance}}")],
            size=(12, 10),
            kind=time_series(calcs=("mean", "max")),
        ),
    ]
