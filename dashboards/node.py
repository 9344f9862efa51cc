"""The dashboard joulewatch / Node: power and energy of servers and devices, and the health of the sensors."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard
from kit import (
    BY_QUANTITY,
    DEVICE_ENERGY,
    DEVICES_COLOUR,
    NODE_COLOUR,
    NODE_ENERGY,
    OTHER_COLOUR,
    QUANTITY_LEGEND,
    RANGE,
    RATE,
    SENSORS,
    Panel,
    columns,
    data_table,
    link,
    method_column,
    methods_panel,
    new_dashboard,
    override,
    panel,
    query,
    sensor_variables,
    series_colour,
    single_stat,
    thresholds,
    time_series,
    transformation,
)

from joulewatch_exporter import catalog

PART_ENERGY: Final = f"{catalog.PART_ENERGY.name}{{{SENSORS}}}"
DEVICES_WATTS: Final = f"rate({DEVICE_ENERGY}{RATE})"
NODES_WATTS: Final = f"rate({NODE_ENERGY}{RATE})"
AGE: Final = f"time() - {catalog.READ_TIMESTAMP.name}{{{SENSORS}}}"


def node() -> dashboard.Dashboard:
    """Return the dashboard for one server or many."""
    rows = {
        "Overview": overview_row(),
        "Power": power_row(),
        "Parts of devices": parts_row(),
        "Health of sensors": health_row(),
        "Sensors": sensors_row(),
    }
    return (
        new_dashboard(
            "joulewatch / Node",
            "joulewatch-node",
            "Power and energy of servers and of the devices inside them, "
            "and the health of the sensors behind the figures.",
            [*sensor_variables()],
            rows,
        )
        .link(link("Experiment", "joulewatch-experiment"))
        .refresh("10s")
        .time("now-1h", "now")
    )


def overview_row() -> list[Panel]:
    return [
        panel(
            "Power of all devices",
            "Sum over CPU packages, memory, GPUs and FPGA cards, from their energy counters. Devices are "
            "disjoint, so the sum counts nothing twice.",
            "watt",
            [query(f"sum({DEVICES_WATTS})", "devices")],
            size=(4, 5),
            kind=single_stat(shade=DEVICES_COLOUR, sparkline=True),
        ),
        panel(
            "Power of whole servers",
            "Sum over servers, as their own sensors give it (board, BMC). It contains the devices; the two are "
            "never added. No data: no server here has such a sensor.",
            "watt",
            [query(f"sum({NODES_WATTS})", "nodes")],
            size=(4, 5),
            kind=single_stat(shade=NODE_COLOUR, sparkline=True),
        ),
        panel(
            "Energy of all devices in the time range",
            "Joules, and the same in kilowatt hours, over the time range of this dashboard. PromQL extrapolates at "
            "the edges of the range: for a report use `joulewatch energy`.",
            "joule",
            [
                query(f"sum(increase({DEVICE_ENERGY}{RANGE}))", "J", shape="instant"),
                query(f"sum(increase({DEVICE_ENERGY}{RANGE})) / 3.6e6", "kWh", ref="B", shape="instant"),
            ],
            size=(6, 5),
            kind=single_stat(shade=DEVICES_COLOUR),
            overrides=[override("byFrameRefID", "B", unit="kwatth")],
        ),
        methods_panel(4),
        panel(
            "Sensors down",
            "Devices whose last read failed. Their series are absent until they answer again, never repeated.",
            "short",
            [query(f"sum(1 - {catalog.SENSOR_UP.name}{{{SENSORS}}})", "down", shape="instant")],
            size=(3, 5),
            kind=single_stat(levels=thresholds("green", (1, "red"))),
        ),
        panel(
            "Oldest value",
            "Age of the oldest value on this dashboard, from the time at which it was read from the device.",
            "s",
            [query(f"max({AGE})", "age", shape="instant")],
            size=(3, 5),
            kind=single_stat(levels=thresholds("green", (60, "orange"), (300, "red"))),
        ),
    ]


def power_row() -> list[Panel]:
    return [
        panel(
            "Power of devices, from energy counters",
            "Stacked rate of the energy counters: nothing is lost between two scrapes, however the load moves. "
            "The height of the stack is the power of all devices.",
            "watt",
            [query(f"sum by ({BY_QUANTITY}) ({DEVICES_WATTS})", QUANTITY_LEGEND)],
            size=(14, 10),
            kind=time_series(stacked=True),
        ),
        panel(
            "Momentary power of devices",
            "Power over the last reading interval, or the sensor's own value. A gauge misses what happens between "
            "scrapes: look here for peaks, and left for energy.",
            "watt",
            [query(f"{catalog.DEVICE_POWER.name}{{{SENSORS}}}", QUANTITY_LEGEND)],
            size=(10, 10),
            kind=time_series(calcs=("lastNotNull", "max")),
        ),
        panel(
            "Whole servers against the sum of their devices",
            "Other is what the server draws beyond its measured devices: fans, disks, network, board and the loss "
            "of power supplies. It falls below 0 only where the sensors contradict each other.",
            "watt",
            [
                query(f"sum by (instance) ({NODES_WATTS})", "node · {{instance}}"),
                query(f"sum by (instance) ({DEVICES_WATTS})", "devices · {{instance}}", ref="B"),
                query(
                    f"sum by (instance) ({NODES_WATTS}) - sum by (instance) ({DEVICES_WATTS})",
                    "other · {{instance}}",
                    ref="C",
                ),
            ],
            size=(14, 8),
            kind=time_series(minimum=None),
            overrides=[
                series_colour("node", NODE_COLOUR),
                series_colour("devices", DEVICES_COLOUR),
                series_colour("other", OTHER_COLOUR),
            ],
        ),
        panel(
            "Energy of devices in the time range",
            "Joules of each device over the time range of this dashboard, the largest first.",
            "joule",
            [query(f"sum by ({BY_QUANTITY}) (increase({DEVICE_ENERGY}{RANGE}))", shape="table")],
            size=(10, 8),
            kind=data_table(
                [
                    columns(
                        [
                            ("Value", "Energy"),
                            ("component", "Component"),
                            ("device", "Device"),
                            ("domain", "Domain"),
                            ("instance", "Instance"),
                        ],
                        hidden=["Time", "collector"],
                    )
                ],
                sort=("Energy", True),
            ),
            overrides=[
                override("byName", "Instance", custom__minWidth=140),
                override("byRegexp", "/^(Component|Domain)$/", custom__width=100),
                override("byName", "Device", custom__width=125),
                override("byName", "Energy", custom__width=100),
                method_column(),
            ],
        ),
    ]


def parts_row() -> list[Panel]:
    return [
        panel(
            "Power of parts",
            "Cores, uncore, rails, memory on a card: each lies inside a device above and must not be added to it, "
            "so this panel does not stack.",
            "watt",
            [query(f"sum by ({BY_QUANTITY}) (rate({PART_ENERGY}{RATE}))", QUANTITY_LEGEND)],
            size=(24, 8),
            kind=time_series(legend_right=True),
        ),
    ]


def health_row() -> list[Panel]:
    return [
        panel(
            "Down",
            "Exporters that Prometheus cannot scrape, and devices that the exporter cannot read. 0 is right.",
            "short",
            [
                query(f"sum by (instance) (1 - {catalog.SENSOR_UP.name}{{{SENSORS}}})", "devices · {{instance}}"),
                query(f"1 - up{{{SENSORS}}}", "exporter · {{instance}}", ref="B"),
            ],
            size=(8, 8),
            kind=time_series(steps=True, soft_maximum=1, calcs=()),
            overrides=[series_colour("devices", "orange"), series_colour("exporter", "red")],
        ),
        panel(
            "Failed reads",
            "Reads that gave no value, by reason; none: no read of this device ever failed. Each leaves a gap that "
            "the time not measured (right) accounts for.",
            "cps",
            [
                query(
                    f"sum by (instance, collector, device, reason) (rate({catalog.READ_ERRORS.name}"
                    f"{{{SENSORS}}}{RATE})) or label_replace("
                    f"sum by (instance, collector, device) (0 * {catalog.SENSOR_UP.name}{{{SENSORS}}}), "
                    '"reason", "none", "", "")',
                    "{{collector}} {{device}}: {{reason}} · {{instance}}",
                )
            ],
            size=(8, 8),
            kind=time_series(soft_maximum=1, calcs=()),
        ),
        panel(
            "Share of time not measured",
            "Time whose energy is missing from the counters because readings failed or came too late. "
            "Above 0, energies over this time are too low by about this share.",
            "percentunit",
            [
                query(
                    f"max by (instance, collector, device) (rate({catalog.SENSOR_UNMEASURED.name}{{{SENSORS}}}{RATE}))",
                    "{{collector}} {{device}} · {{instance}}",
                )
            ],
            size=(8, 8),
            kind=time_series(soft_maximum=0.01, calcs=()),
        ),
        panel(
            "Age of values",
            "How long before now the values were read from the device. It swings between 0 and the scrape "
            "interval; a slow management controller adds its own period. Below 0: the node's clock is ahead.",
            "s",
            [query(AGE, "{{collector}} {{device}} · {{instance}}")],
            size=(8, 8),
            kind=time_series(minimum=None, calcs=()),
        ),
        panel(
            "Time to read all devices",
            "How long the last scan of a sensor family took.",
            "s",
            [query(f"{catalog.READ_DURATION.name}{{{SENSORS}}}", "{{collector}} · {{instance}}")],
            size=(8, 8),
            kind=time_series(calcs=()),
        ),
        panel(
            "Refresh period of sensors",
            "How often the value inside the sensor really changes, as measured. Windows much longer than this "
            "are measured well.",
            "s",
            [
                query(
                    f"max by (instance, collector, device) ({catalog.SENSOR_REFRESH.name}{{{SENSORS}}})",
                    "{{collector}} {{device}} · {{instance}}",
                )
            ],
            size=(8, 8),
            kind=time_series(calcs=()),
        ),
        panel(
            "Wraps, resets and rejected readings",
            "Wraps are normal: a hardware counter went round and was carried on. A reset loses the energy around "
            "it; a rejected reading was physically impossible.",
            "short",
            [
                query(
                    f"sum by (instance) (increase({metric.name}{{{SENSORS}}}{RATE}))",
                    f"{word} · {{{{instance}}}}",
                    ref=ref,
                )
                for metric, word, ref in (
                    (catalog.SENSOR_WRAPS, "wraps", "A"),
                    (catalog.SENSOR_RESETS, "resets", "B"),
                    (catalog.SENSOR_REJECTED, "rejected", "C"),
                )
            ],
            size=(8, 8),
            kind=time_series(soft_maximum=1, calcs=()),
            overrides=[
                series_colour("wraps", "green"),
                series_colour("resets", "orange"),
                series_colour("rejected", "red"),
            ],
        ),
        panel(
            "CPU time of the exporter",
            "Share of one core that measuring costs.",
            "percentunit",
            [query(f"rate(process_cpu_seconds_total{{{SENSORS}}}{RATE})", "{{instance}}")],
            size=(8, 8),
            kind=time_series(calcs=()),
        ),
        panel(
            "Memory of the exporter",
            "Resident memory of the exporter's process.",
            "bytes",
            [query(f"process_resident_memory_bytes{{{SENSORS}}}", "{{instance}}")],
            size=(8, 8),
            kind=time_series(calcs=()),
        ),
    ]


def sensors_row() -> list[Panel]:
    return [
        panel(
            "Every quantity and how it is measured",
            "One row for each series. Method: counter (the device counts joules), integrated (its watts are "
            "integrated), estimated (a model, no sensor), emulated (a made-up machine).",
            "none",
            [
                query(
                    f"max by ({', '.join(('instance', *catalog.SENSOR_INFO.labels))}) "
                    f"({catalog.SENSOR_INFO.name}{{{SENSORS}}})",
                    shape="table",
                ),
                query(f"max by ({BY_QUANTITY}) ({catalog.SENSOR_REFRESH.name}{{{SENSORS}}})", ref="B", shape="table"),
            ],
            size=(24, 10),
            kind=data_table(
                [
                    transformation("merge"),
                    columns(
                        [
                            ("instance", "Instance"),
                            ("scope", "Scope"),
                            ("component", "Component"),
                            ("device", "Device"),
                            ("domain", "Domain"),
                            ("method", "Method"),
                            ("collector", "Collector"),
                            ("reads", "Reads"),
                            ("model", "Model"),
                            ("resolution", "Resolution"),
                            ("accuracy", "Accuracy ±"),
                            ("Value #B", "Refresh"),
                            ("source", "Source"),
                        ],
                        hidden=["Time", "Value #A"],
                    ),
                ],
                sort=("Scope", False),
            ),
            overrides=[
                override("byName", "Refresh", unit="s", custom__width=90),
                override("byName", "Instance", custom__width=150),
                override("byName", "Source", custom__minWidth=320),
                override("byName", "Model", custom__minWidth=260),
                override("byName", "Device", custom__width=125),
                override("byRegexp", "/^(Scope|Component|Domain|Collector|Reads)$/", custom__width=100),
                override("byName", "Accuracy ±", unit="percentunit", custom__width=105),
                override("byName", "Resolution", custom__width=110),
                method_column(),
            ],
        ),
    ]
