"""The dashboard joulewatch / Node."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from kit import (
    BY_QUANTITY,
    DEVICES_COLOUR,
    NODE_COLOUR,
    OTHER_COLOUR,
    RANGE,
    RATE,
    SENSORS,
    Panel,
    columns,
    figure,
    fill,
    fixed,
    graph,
    grid,
    link,
    methods_figure,
    override,
    query,
    start,
    thresholds,
    transformation,
    variables,
)

from joulewatch_exporter import catalog


def node() -> dashboard.Dashboard:
    """One server or many: what they draw, what it goes into, and whether the sensors can be trusted."""
    device = f"{catalog.DEVICE_ENERGY.name}{{{SENSORS}}}"
    whole = f"{catalog.NODE_ENERGY.name}{{{SENSORS}}}"
    part = f"{catalog.PART_ENERGY.name}{{{SENSORS}}}"
    device_rate = f"rate({device}{RATE})"
    node_rate = f"rate({whole}{RATE})"
    quantity = "{{component}} {{device}} {{domain}} · {{instance}}"
    age = f"time() - {catalog.READ_TIMESTAMP.name}{{{SENSORS}}}"
    board = start(
        "joulewatch / Node",
        "joulewatch-node",
        "Power and energy of servers and of the devices inside them, and the health of the sensors behind the figures.",
    )
    for variable in variables(run=False):
        board = board.with_variable(variable)
    board = board.link(link("Experiment", "joulewatch-experiment"))
    panels: dict[str, list[Panel]] = {
        "Overview": [
            figure(
                "Power of all devices",
                "Sum over CPU packages, memory, GPUs and FPGA cards, from their energy counters. Devices are "
                "disjoint, so the sum counts nothing twice.",
                "watt",
                [query(f"sum({device_rate})", "devices")],
                width=4,
                shade=DEVICES_COLOUR,
                sparkline=True,
            ),
            figure(
                "Power of whole servers",
                "Sum over servers, as their own sensors give it (board, BMC). It contains the devices; the two are "
                "never added. No data: no server here has such a sensor.",
                "watt",
                [query(f"sum({node_rate})", "nodes")],
                width=4,
                shade=NODE_COLOUR,
                sparkline=True,
            ),
            figure(
                "Energy of all devices in the time range",
                "Joules, and the same in kilowatt hours, over the time range of this dashboard. PromQL extrapolates at "
                "the edges of the range: for a report use `joulewatch energy`.",
                "joule",
                [
                    query(f"sum(increase({device}{RANGE}))", "J", shape="instant"),
                    query(f"sum(increase({device}{RANGE})) / 3.6e6", "kWh", ref="B", shape="instant"),
                ],
                width=6,
                shade=DEVICES_COLOUR,
                overrides=[override("byFrameRefID", "B", unit="kwatth")],
            ),
            methods_figure(4),
            figure(
                "Sensors down",
                "Devices whose last read failed. Their series are absent until they answer again, never repeated.",
                "short",
                [query(f"sum(1 - {catalog.SENSOR_UP.name}{{{SENSORS}}})", "down", shape="instant")],
                width=3,
                levels=thresholds("green", (1, "red")),
            ),
            figure(
                "Oldest value",
                "Age of the oldest value on this dashboard, from the time at which it was read from the device.",
                "s",
                [query(f"max({age})", "age", shape="instant")],
                width=3,
                levels=thresholds("green", (60, "orange"), (300, "red")),
            ),
        ],
        "Power": [
            graph(
                "Power of devices, from energy counters",
                "Stacked rate of the energy counters: nothing is lost between two scrapes, however the load moves. "
                "The height of the stack is the power of all devices.",
                "watt",
                [query(f"sum by ({BY_QUANTITY}) ({device_rate})", quantity)],
                width=14,
                height=10,
                stacked=True,
            ),
            graph(
                "Momentary power of devices",
                "Power over the last reading interval, or the sensor's own value. A gauge misses what happens between "
                "scrapes: look here for peaks, and left for energy.",
                "watt",
                [query(f"{catalog.DEVICE_POWER.name}{{{SENSORS}}}", quantity)],
                width=10,
                height=10,
                calcs=("lastNotNull", "max"),
            ),
            graph(
                "Whole servers against the sum of their devices",
                "Other is what the server draws beyond its measured devices: fans, disks, network, board and the loss "
                "of power supplies. It falls below 0 only where the sensors contradict each other.",
                "watt",
                [
                    query(f"sum by (instance) ({node_rate})", "node · {{instance}}"),
                    query(f"sum by (instance) ({device_rate})", "devices · {{instance}}", ref="B"),
                    query(
                        f"sum by (instance) ({node_rate}) - sum by (instance) ({device_rate})",
                        "other · {{instance}}",
                        ref="C",
                    ),
                ],
                width=14,
                minimum=None,
                overrides=[fixed("node", NODE_COLOUR), fixed("devices", DEVICES_COLOUR), fixed("other", OTHER_COLOUR)],
            ),
            grid(
                "Energy of devices in the time range",
                "Joules of each device over the time range of this dashboard, the largest first.",
                [query(f"sum by ({BY_QUANTITY}) (increase({device}{RANGE}))", shape="table")],
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
                height=8,
                width=10,
                unit="joule",
                sort=("Energy", True),
                overrides=[
                    override("byName", "Instance", custom__minWidth=140),
                    override("byRegexp", "/^(Component|Domain)$/", custom__width=100),
                    override("byName", "Device", custom__width=125),
                    override("byName", "Energy", custom__width=100),
                ],
            ),
        ],
        "Parts of devices": [
            graph(
                "Power of parts",
                "Cores, uncore, rails, memory on a card: each lies inside a device above and must not be added to it, "
                "so this panel does not stack.",
                "watt",
                [query(f"sum by ({BY_QUANTITY}) (rate({part}{RATE}))", quantity)],
                width=24,
                height=8,
                legend_right=True,
            ),
        ],
        "Health of sensors": [
            graph(
                "Down",
                "Exporters that Prometheus cannot scrape, and devices that the exporter cannot read. 0 is right.",
                "short",
                [
                    query(f"sum by (instance) (1 - {catalog.SENSOR_UP.name}{{{SENSORS}}})", "devices · {{instance}}"),
                    query(f"1 - up{{{SENSORS}}}", "exporter · {{instance}}", ref="B"),
                ],
                width=8,
                calcs=(),
                steps=True,
                soft_maximum=1,
                overrides=[fixed("devices", "orange"), fixed("exporter", "red")],
            ),
            graph(
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
                width=8,
                soft_maximum=1,
                calcs=(),
            ),
            graph(
                "Share of time not measured",
                "Time whose energy is missing from the counters because readings failed or came too late. "
                "Above 0, energies over this time are too low by about this share.",
                "percentunit",
                [
                    query(
                        f"max by (instance, collector, device) (rate({catalog.SENSOR_UNMEASURED.name}"
                        f"{{{SENSORS}}}{RATE}))",
                        "{{collector}} {{device}} · {{instance}}",
                    )
                ],
                width=8,
                soft_maximum=0.01,
                calcs=(),
            ),
            graph(
                "Age of values",
                "How long before now the values were read from the device. It swings between 0 and the scrape "
                "interval; a slow management controller adds its own period. Below 0: the node's clock is ahead.",
                "s",
                [query(age, "{{collector}} {{device}} · {{instance}}")],
                width=8,
                calcs=(),
                minimum=None,
            ),
            graph(
                "Time to read all devices",
                "How long the last scan of a sensor family took.",
                "s",
                [
                    query(
                        f"{catalog.READ_DURATION.name}{{{SENSORS}}}",
                        "{{collector}} · {{instance}}",
                    )
                ],
                width=8,
                calcs=(),
            ),
            graph(
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
                width=8,
                calcs=(),
            ),
            graph(
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
                width=8,
                soft_maximum=1,
                calcs=(),
                overrides=[fixed("wraps", "green"), fixed("resets", "orange"), fixed("rejected", "red")],
            ),
            graph(
                "CPU time of the exporter",
                "Share of one core that measuring costs.",
                "percentunit",
                [
                    query(
                        f"rate(process_cpu_seconds_total{{{SENSORS}}}{RATE})",
                        "{{instance}}",
                    )
                ],
                width=8,
                calcs=(),
            ),
            graph(
                "Memory of the exporter",
                "Resident memory of the exporter's process.",
                "bytes",
                [query(f"process_resident_memory_bytes{{{SENSORS}}}", "{{instance}}")],
                width=8,
                calcs=(),
            ),
        ],
        "Sensors": [
            grid(
                "Every quantity and how it is measured",
                "One row for each series. Method: counter (the device counts joules), integrated (its watts are "
                "integrated), estimated (a model, no sensor), emulated (a made-up machine).",
                [
                    query(
                        f"max by ({', '.join(('instance', *catalog.SENSOR_INFO.labels))}) "
                        f"({catalog.SENSOR_INFO.name}{{{SENSORS}}})",
                        shape="table",
                    ),
                    query(
                        f"max by ({BY_QUANTITY}) ({catalog.SENSOR_REFRESH.name}{{{SENSORS}}})",
                        ref="B",
                        shape="table",
                    ),
                ],
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
                height=10,
                sort=("Scope", False),
                overrides=[
                    override("byName", "Refresh", unit="s", custom__width=90),
                    override("byName", "Instance", custom__width=150),
                    override("byName", "Source", custom__minWidth=320),
                    override("byName", "Model", custom__minWidth=260),
                    override("byName", "Device", custom__width=125),
                    override("byRegexp", "/^(Scope|Component|Domain|Collector|Reads)$/", custom__width=100),
                    override("byName", "Accuracy ±", unit="percentunit", custom__width=105),
                    override("byName", "Resolution", custom__width=110),
                ],
            ),
        ],
    }
    return fill(board, panels).refresh("10s").time("now-1h", "now")
