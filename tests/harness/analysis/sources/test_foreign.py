"""Series of other exporters: mappings, wraps, overlap, and wrong mappings."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import responses

from joulewatch_harness.analysis.energy.sensor_energies import measure, total_of
from joulewatch_harness.analysis.energy.window_energy import Span
from joulewatch_harness.analysis.sources.foreign import joined, unwrapped
from joulewatch_harness.analysis.sources.history import History, RawSeries
from joulewatch_harness.analysis.sources.mapping import read_mapping, shipped
from joulewatch_harness.analysis.sources.opening import open_sources
from joulewatch_harness.analysis.sources.series import Series
from joulewatch_harness.clients.options import PrometheusOptions
from joulewatch_harness.errors import ConfigError, IdentityError
from joulewatch_harness.records import ExporterRecord
from support.fake_prometheus import URL, FakePrometheus

START_S, END_S, STEP_S = 1000.0, 1600.0, 15.0
TIMES_S = np.arange(START_S - 90, END_S + 90, STEP_S)


def raw(name: str, values: np.ndarray | float, **labels: str) -> RawSeries:
    return RawSeries(
        name=name,
        labels={"instance": "node1:9100", "job": "other", **labels},
        times_s=TIMES_S,
        values=np.broadcast_to(np.asarray(values, dtype=np.float64), TIMES_S.shape).copy(),
    )


def history(samples: list[RawSeries], *names: str, exporters: list[ExporterRecord] | None = None) -> History:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:
        FakePrometheus(samples).install(mocked)
        source = open_sources(names, PrometheusOptions(URL))
        try:
            return source.history([(START_S, START_S), (END_S, END_S)], exporters, power=True)
        finally:
            source.close()


def joules(samples: list[RawSeries], *names: str) -> dict[str, tuple[str, float]]:
    """Return sensor -> scope and joules in the window."""
    rows = measure(history(samples, *names), Span(START_S, END_S), (), "all")
    assert all(row.energy is not None for row in rows), [row.text for row in rows]
    return {str(row.sensor): (row.sensor.scope, row.energy.joules) for row in rows if row.energy is not None}


COUNTER = (TIMES_S - TIMES_S[0]) * 200.0 + 1e6
LENGTH_S = END_S - START_S


@pytest.mark.parametrize(
    ("source", "samples", "expected"),
    [
        (
            "node_exporter",
            [
                raw("node_rapl_package_joules_total", COUNTER % 65532.610987, index="0", path="/sys/intel-rapl:0"),
                raw("node_rapl_dram_joules_total", (TIMES_S - 900) * 20, index="1"),
            ],
            {
                "node1:9100/node_exporter/socket0/package": ("device", 200 * LENGTH_S),
                "node1:9100/node_exporter/socket1/dram": ("device", 20 * LENGTH_S),
            },
        ),
        (
            "dcgm",
            [
                raw("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", COUNTER * 1e3, UUID="GPU-1", gpu="0", Hostname="node1"),
                raw("DCGM_FI_DEV_POWER_USAGE", 190.0, UUID="GPU-1", gpu="0", Hostname="node1"),
                raw("DCGM_FI_DEV_POWER_USAGE", 50.0, UUID="GPU-2", gpu="1", Hostname="node1"),
            ],
            {
                "node1:9100/dcgm/GPU-1/total": ("device", 200 * LENGTH_S),
                "node1:9100/dcgm/GPU-2/total": ("device", 50 * LENGTH_S),
            },
        ),
        (
            "ipmi_exporter",
            [raw("ipmi_dcmi_power_consumption_watts", 300.0)],
            {"node1:9100/ipmi_exporter/bmc/total": ("node", 300 * LENGTH_S)},
        ),
        (
            "kepler",
            [raw("kepler_node_cpu_joules_total", COUNTER, zone="package", node_name="node1", path="/sys/0")],
            {"node1:9100/kepler/cpus/package": ("device", 200 * LENGTH_S)},
        ),
        (
            "ceems",
            [
                raw("ceems_rapl_package_joules_total", COUNTER % 262143.328850, index="0", hostname="node1"),
                raw("ceems_ipmi_dcmi_power_current_watts", 300.0, hostname="node1"),
            ],
            {
                "node1:9100/ceems/socket0/package": ("device", 200 * LENGTH_S),
                "node1:9100/ceems/bmc/total": ("node", 300 * LENGTH_S),
            },
        ),
        (
            "scaphandre",
            [raw("scaph_socket_power_microwatts", 80e6, socket_id="0"), raw("scaph_host_power_microwatts", 90e6)],
            {
                "node1:9100/scaphandre/socket0/package": ("device", 80 * LENGTH_S),
                "node1:9100/scaphandre/host/total": ("part", 90 * LENGTH_S),
            },
        ),
        (
            "all-smi",
            [raw("all_smi_gpu_power_consumption_watts", 70.0, uuid="GPU-1", index="0", gpu="H200")],
            {"node1:9100/all-smi/GPU-1/total": ("device", 70 * LENGTH_S)},
        ),
        (
            "nvidia_gpu_exporter",
            [raw("nvidia_smi_power_draw_watts", 70.0, uuid="df6e7a7c")],
            {"node1:9100/nvidia_gpu_exporter/GPU-df6e7a7c/total": ("device", 70 * LENGTH_S)},
        ),
    ],
)
def test_shipped_mappings(source: str, samples: list[RawSeries], expected: dict[str, tuple[str, float]]) -> None:
    """Scrapes every 15 s; wrapping counters and power have the energy of the window."""
    measured = joules(samples, source)
    assert {name: scope for name, (scope, _) in measured.items()} == {
        name: scope for name, (scope, _) in expected.items()
    }
    for name, (_, value) in expected.items():
        assert measured[name][1] == pytest.approx(value, rel=1e-6), name


def test_every_shipped_mapping_is_valid() -> None:
    assert set(shipped()) == {
        "node_exporter", "dcgm", "ipmi_exporter", "kepler", "ceems", "scaphandre", "all-smi", "nvidia_gpu_exporter"
    }  # fmt: skip
    for name in shipped():
        assert read_mapping(name).name == name


def test_a_device_read_twice_is_reported_and_not_added() -> None:
    samples = [
        raw("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", COUNTER * 1e3, UUID="GPU-1", Hostname="node1"),
        raw("nvidia_smi_power_draw_watts", 200.0, uuid="1", instance="node1:9835"),
        raw("nvidia_smi_power_draw_watts", 100.0, uuid="2", instance="node1:9835"),
        raw("nvidia_smi_power_draw_watts", 50.0, uuid="1", instance="node2:9835"),
    ]
    both = history(samples, "dcgm", "nvidia_gpu_exporter")
    (notice,) = both.notices
    assert (notice.severity, notice.reason) == ("warning", "source_overlap")
    both_read = "dcgm on node1:9100 and nvidia_gpu_exporter on node1:9835 both read GPU-1/total"
    assert notice.text == f"{both_read}: sums include the first only"
    rows = measure(both, Span(START_S, END_S), (), "all")
    total = total_of(rows)
    assert total is not None and total.joules == pytest.approx((200 + 100 + 50) * LENGTH_S)
    assert sum(row.sensor.scope == "part" for row in rows) == 1


def test_only_the_machines_of_a_run() -> None:
    samples = [raw("ipmi_dcmi_power_consumption_watts", 300.0, instance=f"node{i}:9290") for i in (1, 2)]
    exporter = ExporterRecord(name="node2:10717", url="http://node2:10717", nodename="node2")
    chosen = history(samples, "ipmi_exporter", exporters=[exporter])
    assert [sensor.exporter for sensor in chosen.powers] == ["node2:9290"]


def test_two_series_of_one_sensor_at_once_are_an_error() -> None:
    samples = [raw("DCGM_FI_DEV_POWER_USAGE", 50.0, UUID="GPU-1", pod=pod) for pod in "ab"]
    with pytest.raises(IdentityError, match=r"dcgm/GPU-1/total: several series .* differ in the labels pod: select"):
        history(samples, "dcgm")


def counter(*values: float, step_s: float = 10.0) -> Series:
    return Series(np.arange(len(values)) * step_s, np.array(values, dtype=np.float64))


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (counter(900, 950, 0, 50, 100), [900, 950, 1000, 1050, 1100]),  # a wrap at 1000
        (counter(900, 950, 1, 51), [900, 950, 1001, 1051]),
        (counter(100, 150, 0, 50), [100, 150, 0, 50]),  # no range explains it: a restart
        (counter(1900, 1950, 0, 50), [1900, 1950, 2000, 2050]),  # the range that gives the usual power
        (counter(1, 2, 3), [1, 2, 3]),
    ],
)
def test_wraps(series: Series, expected: list[float]) -> None:
    assert unwrapped(series, (1000.0, 2000.0)).tolist() == pytest.approx(expected)


def test_a_gap_that_may_hide_two_wraps_has_no_energy() -> None:
    series = Series(np.array([0.0, 10.0, 20.0, 500.0, 510.0]), np.array([0.0, 50.0, 100.0, 400.0, 450.0]))
    values = unwrapped(series, (1000.0,))
    assert values[3] < values[2]
    assert values[4] - values[3] == pytest.approx(50)


def test_a_history_alone_is_itself() -> None:
    alone = History(source="a")
    assert joined([alone]) is alone


MAPPING = "sensors: [{metric: a_watts, type: gauge, unit: W, component: node, device: a}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MAPPING.replace("metric:", "metrik:"), "unknown key 'metrik'; did you mean metric?"),
        (MAPPING.replace("unit: W", "unit: watt"), "unit"),
        (MAPPING.replace("unit: W", "unit: J"), "J is not the unit of a gauge"),
        (MAPPING.replace("gauge", "summary"), "type"),
        (MAPPING.replace("device: a", "device: a, wrap: [5]"), "a gauge does not wrap"),
        (MAPPING.replace("device: a", "device: a, match: {b: '('}"), "is not a regular expression"),
        (MAPPING.replace("device: a", "device: a, match: {'b c': d}"), "match: 'b c' is not a name of a label"),
        (MAPPING.replace("device: a", "device: 'a{b'"), "device: 'a{b' has braces around something else than labels"),
        (MAPPING.replace("device: a", "device: a, host: '{b c}'"), "host: '{b c}' has braces"),
        (MAPPING.replace("a_watts", "'a watts'"), "is not a name of a metric"),
        ("sensors: []\n", "at least one is needed"),
        ("", "must be a mapping"),
    ],
)
def test_a_wrong_mapping_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_mapping(str(path))
    assert message in str(caught.value) and str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_mapping_file(tmp_path: Path) -> None:
    path = tmp_path / "rack.yaml"
    path.write_text(MAPPING.replace("device: a", "device: 'pdu{outlet}', accuracy: 0.01, factor: 2"), encoding="utf-8")
    result = history([raw("a_watts", 10.0, outlet="7")], str(path))
    ((sensor, record),) = result.sensors.items()
    assert (str(sensor), record.accuracy) == ("node1:9100/rack/pdu7/total", 0.01)
    assert set(result.powers[sensor].values.tolist()) == {20.0}


def test_two_mappings_need_different_names(tmp_path: Path) -> None:
    """A node sensor of the second would replace the same one of the first."""
    paths = [tmp_path / folder / "rack.yaml" for folder in ("a", "b")]
    samples = [raw("a_watts", 10.0), raw("b_watts", 20.0)]
    for path, metric in zip(paths, ("a_watts", "b_watts"), strict=True):
        path.parent.mkdir()
        path.write_text(MAPPING.replace("a_watts", metric).replace("gauge", "gauge, scope: node"), encoding="utf-8")
    names = [str(path) for path in paths]
    with pytest.raises(ConfigError) as caught:
        history(samples, *names)
    assert str(caught.value) == (
        f"--source {names[0]} and --source {names[1]}: both mappings have the name rack; change it in {names[1]}, "
        "for example to rack2"
    )
    names[0] = str(paths[0].rename(tmp_path / "dcgm.yaml"))
    for both in ([names[0], "dcgm"], ["dcgm", names[0]]):
        with pytest.raises(ConfigError, match=re.escape(f"dcgm; change it in {names[0]}, for example to dcgm2")):
            history(samples, *both)
    paths[1].write_text(f"name: rack2\n{paths[1].read_text(encoding='utf-8')}", encoding="utf-8")
    result = history(samples, *names)
    assert {sensor.collector: series.values[0] for sensor, series in result.powers.items()} == {"dcgm": 10, "rack2": 20}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("node-exporter",), "unknown source 'node-exporter'; did you mean node_exporter?"),
        (("dcgm", "dcgm"), "--source dcgm: is given twice"),
        (("none.yaml",), "none.yaml: cannot be read"),
        (("dcgm",), "--source needs --prometheus URL"),
    ],
)
def test_wrong_sources_are_one_line(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_sources(names, None)
    assert message in str(caught.value)
