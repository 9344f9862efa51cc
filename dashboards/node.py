"""The dashboard joulewatch / Node: power and energy of servers and devices, and the health of the sensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import whose
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models
from kit import (
    BY_NAME,
    BY_QUANTITY,
    DEVICE_ENERGY,
    DEVICES_COLOUR,
    NODE_COLOUR,
    OTHER_COLOUR,
    RANGE,
    RATE,
    SENSORS,
    Panel,
    Variable,
    by_server,
    data_source_variable,
    data_table,
    devices_by_host,
    link,
    method_column,
    methods_panel,
    multi_value_variable,
    new_dashboard,
    override,
    panel,
    query,
    query_variable,
    series_colour,
    single_stat,
    state_column,
    thresholds,
    time_series,
    with_name,
)

from joulewatch_exporter import catalog

NAME_LEGEND: Final = "{{component}} {{name}} {{domain}}"
"""Without the instance: the dashboard shows one at a time."""
HEALTH: Final = "Sensor health"
PART_ENERGY: Final = f"{catalog.PART_ENERGY.name}{{{SENSORS}}}"
DEVICES_WATTS: Final = f"rate({DEVICE_ENERGY}{RATE})"
DOWN: Final = (
    f"(1 - {catalog.SENSOR_UP.name}{{{SENSORS}}}) unless on (job, instance, collector, device) "
    f'{catalog.SENSOR_STATE.name}{{{SENSORS}, state="asleep"}}'
)
"""1 for each device that cannot be read; a device that is asleep can be read again when it wakes."""
BY_SERVER_WATTS: Final = by_server(f"rate(%s{RATE})")
DEVICES_BY_HOST_WATTS: Final = devices_by_host(f"rate(%s{RATE})")
AGE: Final = f"time() - {catalog.READ_TIMESTAMP.name}{{{SENSORS}}}"


def node() -> dashboard.Dashboard:
    """Return the dashboard for one server."""
    rows = {
        "Overview": overview_row(),
        "Power": power_row(),
        whose.TITLE: whose.node_row(),
        "Parts of devices": parts_row(),
        HEALTH: health_row(),
        "Sensors": sensors_row(),
    }
    return (
        new_dashboard(
            "joulewatch / Node",
            "joulewatch-node",
            "Power and energy of one server and its devices, and the health of the sensors.",
            [*variables()],
            rows,
            collapsed=[HEALTH],
        )
        .link(link("Experiment", "joulewatch-experiment"))
        .refresh("10s")
        .time("now-1h", "now")
    )


def variables() -> Iterator[Variable]:
    """Yield the variables that select a server and, of the exporters that measure it, one."""
    yield data_source_variable()
    info = catalog.SENSOR_INFO.name
    yield multi_value_variable("job", "Job", f"label_values({catalog.EXPORTER_INFO.name}, job)")
    for name, label, selector in (
        ("host", "Host", f'{info}{{job=~"$job"}}'),
        ("instance", "Instance", f'{info}{{job=~"$job", host=~"$host"}}'),
    ):
        yield (
            query_variable(name, label, f"label_values({selector}, {name})")
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .multi(False)
        )


def overview_row() -> list[Panel]:
    return [
        panel(
            "Devices",
            "Power of all devices: sum over CPU packages, memory, GPUs and FPGA cards, computed from their energy "
            "counters. Devices do not overlap, so nothing is counted twice.",
            "watt",
            [query(f"sum({DEVICES_WATTS})", "devices")],
            size=(4, 5),
            kind=single_stat(shade=DEVICES_COLOUR, sparkline=True),
        ),
        panel(
            "Server",
            "Power of the whole server by its primary node sensor (board, BMC). It includes the devices: do not add "
            "the two. No data means that the server has no node sensor.",
            "watt",
            [query(f"sum({BY_SERVER_WATTS})", "nodes")],
            size=(4, 5),
            kind=single_stat(shade=NODE_COLOUR, sparkline=True),
        ),
        panel(
            "Energy",
            "Energy of all devices in the time range, in joules and in watt-hours. PromQL extrapolates at the edges of "
            "the time range: for a report, use `joulewatch energy`.",
            "joule",
            [
                query(f"sum(increase({DEVICE_ENERGY}{RANGE}))", "J", shape="instant"),
                query(f"sum(increase({DEVICE_ENERGY}{RANGE})) / 3.6e6", "kWh", ref="B", shape="instant"),
            ],
            size=(5, 5),
            kind=single_stat(shade=DEVICES_COLOUR),
            overrides=[override("byFrameRefID", "B", unit="kwatth")],
        ),
        methods_panel(),
        panel(
            "Down",
            "Number of devices whose last read failed. Their series are absent until a read succeeds. Devices that are "
            "asleep do not count.",
            "short",
            [query(f"sum({DOWN})", "down", shape="instant")],
            size=(3, 5),
            kind=single_stat(levels=thresholds("green", (1, "red"))),
        ),
        panel(
            "Oldest",
            "Time since the oldest value on this dashboard was read from its device.",
            "s",
            [query(f"max({AGE})", "age", shape="instant")],
            size=(4, 5),
            kind=single_stat(levels=thresholds("green", (60, "orange"), (300, "red"))),
        ),
    ]


def power_row() -> list[Panel]:
    return [
        panel(
            "Power of devices, from energy counters",
            "Rate of the energy counters, stacked: the top of the stack is the power of all devices. Peaks between two "
            "scrapes are averaged, but their energy is included.",
            "watt",
            [query(f"sum by ({BY_NAME}) ({with_name(DEVICES_WATTS, 'device')})", NAME_LEGEND)],
            size=(12, 18),
            kind=time_series(stacked=True),
        ),
        panel(
            "Power readings of devices",
            "The latest reading at each scrape: the sensor's own value, or the power over the last reading interval of "
            "an energy counter. Readings between two scrapes are not shown: for energy, use the panel on the left. "
            "Dashed: the limit that a device enforces.",
            "watt",
            [
                query(with_name(f"{catalog.DEVICE_POWER.name}{{{SENSORS}}}", "device"), NAME_LEGEND),
                query(
                    with_name(f"{catalog.DEVICE_LIMIT.name}{{{SENSORS}}}", "device"), f"limit {NAME_LEGEND}", ref="B"
                ),
            ],
            size=(12, 18),
            kind=time_series(calcs=("lastNotNull", "max")),
            overrides=[
                override(
                    "byFrameRefID",
                    "B",
                    color={"mode": "fixed", "fixedColor": "red"},
                    custom__fillOpacity=0,
                    custom__hideFrom={"legend": True, "tooltip": False, "viz": False},
                    custom__lineStyle={"fill": "dash", "dash": [8, 6]},
                )
            ],
        ),
        panel(
            "Whole servers and the sum of their devices",
            "Other is the power of the server minus that of its measured devices: fans, disks, network, board, power "
            "supply losses. A negative value means that the sensors contradict each other.",
            "watt",
            [
                query(BY_SERVER_WATTS, "node · {{host}}"),
                query(DEVICES_BY_HOST_WATTS, "devices · {{host}}", ref="B"),
                query(f"{BY_SERVER_WATTS} - {DEVICES_BY_HOST_WATTS}", "other · {{host}}", ref="C"),
            ],
            size=(12, 9),
            kind=time_series(minimum=None),
            overrides=[
                series_colour("node", NODE_COLOUR),
                series_colour("devices", DEVICES_COLOUR),
                series_colour("other", OTHER_COLOUR),
            ],
        ),
        panel(
            "Energy of each device",
            "Energy in the time range from the counters, largest first.",
            "joule",
            [query(f"sum by ({BY_NAME}) ({with_name(f'increase({DEVICE_ENERGY}{RANGE})', 'device')})", shape="table")],
            size=(12, 9),
            kind=data_table(
                {
                    "Value": "Energy",
                    "component": "Component",
                    "name": "Device",
                    "domain": "Domain",
                    "instance": "Instance",
                },
                rows=(),
                sort=("Energy", True),
            ),
            overrides=[
                override("byName", "Instance", custom__minWidth=140),
                override("byRegexp", "/^(Component|Domain)$/", custom__width=100),
                override("byName", "Device", custom__minWidth=320),
                override("byName", "Energy", custom__width=100),
            ],
        ),
    ]


def parts_row() -> list[Panel]:
    return [
        panel(
            "Power of parts",
            "Cores, uncore, rails, memory on a card. The energy of a part is included in the energy of its device, so "
            "the series are not stacked.",
            "watt",
            [query(f"sum by ({BY_NAME}) ({with_name(f'rate({PART_ENERGY}{RATE})', 'part')})", NAME_LEGEND)],
            size=(24, 9),
            kind=time_series(),
        ),
    ]


def health_row() -> list[Panel]:
    return [
        panel(
            "Exporters and sensors down",
            "Exporters that Prometheus cannot scrape, and devices that the exporter cannot read, except those that are "
            "asleep. Normal value: 0.",
            "short",
            [
                query(f"sum by (instance) ({DOWN})", "devices"),
                query(f"1 - up{{{SENSORS}}}", "exporter", ref="B"),
            ],
            size=(8, 8),
            kind=time_series(steps=True, soft_maximum=1, calcs=()),
            overrides=[series_colour("devices", "orange"), series_colour("exporter", "red")],
        ),
        panel(
            "Failed reads",
            "Reads that returned no value, by reason. Each device also has a constant 0 with the reason none, so that "
            "devices without failures are listed.",
            "cps",
            [
                query(
                    f"sum by (instance, collector, device, reason) (rate({catalog.READ_ERRORS.name}"
                    f"{{{SENSORS}}}{RATE})) or label_replace("
                    f"sum by (instance, collector, device) (0 * {catalog.SENSOR_UP.name}{{{SENSORS}}}), "
                    '"reason", "none", "", "")',
                    "{{collector}} {{device}}: {{reason}}",
                )
            ],
            size=(8, 8),
            kind=time_series(soft_maximum=1, calcs=()),
        ),
        panel(
            "Share of time not measured",
            "Time whose energy is missing from the counters because reads failed or came too late. Energies over this "
            "time are too low by about this share.",
            "percentunit",
            [
                query(
                    "clamp_max(max by (instance, collector, device) "
                    f"(rate({catalog.SENSOR_UNMEASURED.name}{{{SENSORS}}}{RATE})), 1)",
                    "{{collector}} {{device}}",
                )
            ],
            size=(8, 8),
            kind=time_series(soft_maximum=0.01, calcs=()),
        ),
        panel(
            "Age of values",
            "Time since the values were read from the device. It varies between 0 and the scrape interval; a slow BMC "
            "adds its own period. A negative age means that the node's clock is ahead.",
            "s",
            [query(AGE, "{{collector}} {{device}}")],
            size=(8, 8),
            kind=time_series(minimum=None, calcs=()),
        ),
        panel(
            "Time to read all devices",
            "Duration of the last scan of each sensor family.",
            "s",
            [query(f"{catalog.READ_DURATION.name}{{{SENSORS}}}", "{{collector}}")],
            size=(8, 8),
            kind=time_series(calcs=()),
        ),
        panel(
            "Refresh period of sensors",
            "Measured time between two changes of the sensor's value. Measure windows should be much longer than this.",
            "s",
            [
                query(
                    f"max by (instance, collector, device) ({catalog.SENSOR_REFRESH.name}{{{SENSORS}}})",
                    "{{collector}} {{device}}",
                )
            ],
            size=(8, 8),
            kind=time_series(calcs=()),
        ),
        panel(
            "Wraps, resets, rejections",
            "A wrap is normal: the hardware counter passed its maximum, and the exporter accounts for it. A reset "
            "loses the energy around it. A rejected reading was physically impossible and was not used.",
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
            "Share of one CPU core that the exporter uses.",
            "percentunit",
            [query(f"rate(process_cpu_seconds_total{{{SENSORS}}}{RATE})", "exporter")],
            size=(8, 8),
            kind=time_series(calcs=()),
        ),
        panel(
            "Memory of the exporter",
            "Resident memory of the exporter process.",
            "bytes",
            [query(f"process_resident_memory_bytes{{{SENSORS}}}", "exporter")],
            size=(8, 8),
            kind=time_series(calcs=()),
        ),
    ]


def sensors_row() -> list[Panel]:
    return [
        panel(
            "State of each device",
            "ok; asleep (in runtime suspend, without values; not a failure); or why the device cannot be read: denied, "
            "absent, timeout, glitch, error. Click a heading to sort.",
            "none",
            [
                query(
                    f"max by ({', '.join(('instance', *catalog.SENSOR_STATE.labels))}) "
                    f"({catalog.SENSOR_STATE.name}{{{SENSORS}}})",
                    shape="table",
                )
            ],
            size=(24, 7),
            kind=data_table(
                {
                    "instance": "Instance",
                    "collector": "Collector",
                    "device": "Device",
                    "state": "State",
                },
                rows=(),
                hidden=["Value"],
                sort=("State", False),
            ),
            overrides=[state_column()],
        ),
        panel(
            "All sensor series and how they are measured",
            "One row per series. Method: counter (the device counts joules), integrated (the exporter integrates the "
            "device's power), estimated (a power model, no sensor), emulated (the emulator, no hardware).",
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
                {
                    "instance": "Instance",
                    "scope": "Scope",
                    "component": "Component",
                    "device": "Device",
                    "domain": "Domain",
                    "method": "Method",
                    "collector": "Collector",
                    "reads": "Reads",
                    "model": "Model",
                    "resolution": "Resolution",
                    "accuracy": "Accuracy ±",
                    "Value #B": "Refresh",
                    "source": "Source",
                },
                hidden=["Value #A", "read_mode", "primary", "host", "accuracy_source"],
                sort=("Scope", False),
            ),
            overrides=[
                override("byName", "Refresh", unit="s", custom__width=90),
                override("byName", "Instance", custom__width=150),
                override("byName", "Source", custom__minWidth=200),
                override("byName", "Model", custom__width=200),
                override("byName", "Device", custom__width=365),
                override("byRegexp", "/^(Scope|Component|Domain|Collector|Reads)$/", custom__width=100),
                override("byName", "Accuracy ±", unit="percentunit", custom__width=105),
                override("byName", "Resolution", custom__width=110),
                method_column(),
            ],
        ),
    ]
