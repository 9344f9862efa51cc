"""The text of a scrape: golden files, and a comparison with prometheus_client."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest as generate_text
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from joulewatch_exporter import __version__, catalog
from joulewatch_exporter.config.calibration import NO_CALIBRATIONS, load_calibrations
from joulewatch_exporter.errors import SensorAsleepError, SensorDeniedError
from joulewatch_exporter.model import Host
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.sampling.primary import Key, PrimarySensors
from joulewatch_exporter.sampling.scan import FamilyScan
from joulewatch_exporter.server.exposition import CONTENT_TYPES, Exposition, Format, choose_format, escape_label
from joulewatch_exporter.text import MAX_LABEL, MAX_SOURCE, label_text
from support import golden
from support.calibrations import calibration_entry, calibration_file, ratio_entry, ratio_file
from support.clock import FakeClock
from support.fake_family import FakeSensor, Machine, fake_family, info
from support.paths import ROOT

GOLDEN = ROOT / "tests" / "exporter" / "golden"
MODEL = "AMD EPYC 7763 64-Core Processor"


def node(clock: FakeClock) -> tuple[list[FakeSensor], list[FakeSensor]]:
    """Two sockets with memory and a core each, and a power meter of the whole server."""
    rapl = []
    for socket in ("socket0", "socket1"):
        rapl.append(FakeSensor((info(socket, model=MODEL),), now_ns=clock.monotonic_ns, energies_joules=[1000.0]))
        memory = info(socket, "dram", component="memory", wrap_joules=65712.999613)
        rapl.append(FakeSensor((memory,), now_ns=clock.monotonic_ns, energies_joules=[200.0]))
        rapl.append(
            FakeSensor((info(socket, "core", scope="part"),), now_ns=clock.monotonic_ns, energies_joules=[50.0])
        )
    meter = info(
        "power_meter",
        "total",
        scope="node",
        component="node",
        method="integrated",
        wrap_joules=None,
        max_power_watts=20000.0,
        resolution="1 uW",
        accuracy=0.05,
        accuracy_source="data sheet",
    )
    return rapl, [FakeSensor((meter,), now_ns=clock.monotonic_ns, powers_watts=[412.5])]


def scans_of_node(*, dead: str | None = None) -> list[FamilyScan]:
    """Four scans, one second apart, at 100 W a package; then ``dead`` cannot be read."""
    clock = FakeClock()
    rapl, hwmon = node(clock)
    families = [
        Family(fake_family(name, Machine(list(sensors))).open(Host(), None), clock=clock)
        for name, sensors in (("rapl", rapl), ("hwmon", hwmon))
    ]
    # Counters that move every 50 ms, read every 25 ms: often enough for their refresh period and power.
    for step in range(81):
        for sensor in rapl:
            watts = {"package": 100.0, "dram": 20.5}.get(sensor.infos[0].quantity.domain, 3.25)
            sensor.energies_joules = [1000.0 + step // 2 * 0.05 * watts]
            if step == 80 and sensor.device == dead:
                sensor.error = SensorDeniedError("/sys/class/powercap/intel-rapl:1/energy_uj: Permission denied")
        scans = [family.scan() for family in families]
        clock.advance(0.025)
    return scans


def exposition(*, emulated: bool = False) -> Exposition:
    return Exposition(emulated=emulated, start_s=1_699_999_000.25, nodename="node17", self_metrics=False)


def primary_of(scans: Sequence[FamilyScan]) -> frozenset[Key]:
    return PrimarySensors("node17").choose([(scan.collector, scan.layout) for scan in scans])


def render(scans: Sequence[FamilyScan], format_: Format) -> str:
    """Return the text without the parts that differ between machines."""
    import platform

    text = exposition().render(scans, format_, primary=primary_of(scans)).decode()
    return text.replace(f'version="{__version__}"', 'version="VERSION"').replace(
        f'pythonversion="{platform.python_version()}"', 'pythonversion="PYTHON"'
    )


@pytest.mark.parametrize(("format_", "suffix"), [("text", "prom"), ("openmetrics", "openmetrics.prom")])
@pytest.mark.parametrize("name", ["node", "node_one_dead", "no_sensor"])
def test_golden(name: str, format_: Format, suffix: str, update_golden: bool) -> None:
    """Reviewed as text."""
    scans = {
        "node": scans_of_node,
        "node_one_dead": lambda: scans_of_node(dead="socket1"),
        "no_sensor": list,
    }[name]()
    golden.check(render(scans, format_), GOLDEN / f"{name}.{suffix}", update=update_golden)


@pytest.mark.parametrize("name", ["node", "node_one_dead", "no_sensor"])
def test_promtool_has_no_complaints(name: str) -> None:
    """promtool reads the text format only."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=(GOLDEN / f"{name}.prom").read_bytes(), capture_output=True, timeout=30
    )
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, "", "")


def test_promtool_accepts_a_complete_scrape_with_process_metrics() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    body = Exposition(emulated=False, start_s=1.0).render(scans_of_node(), "text")
    done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, timeout=30)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert b"process_resident_memory_bytes" in body
    assert b"python_info" in body


# -- the same as prometheus_client -----------------------------------------------------------------


class Reference(Collector):
    """Render the same scans with the objects of prometheus_client."""

    def __init__(self, scans: Sequence[FamilyScan], start_s: float, nodename: str) -> None:
        self._scans = scans
        self._start_s = start_s
        self._nodename = nodename
        self._primary = primary_of(scans)

    def collect(self) -> Iterable[Metric]:
        import platform

        families: dict[str, Metric] = {}

        def add(metric: catalog.Metric, labels: Sequence[str], value: float) -> None:
            if metric.name not in families:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                families[metric.name] = kind(metric.name, metric.help, labels=metric.labels)
            limits = [MAX_SOURCE if name == "source" else MAX_LABEL for name in metric.labels]
            families[metric.name].add_metric(list(map(label_text, labels, limits)), value)  # type: ignore[attr-defined]

        for scan in self._scans:
            for i, item in enumerate(scan.layout.infos):
                q, health = item.quantity, scan.healths[i]
                labels = (scan.collector, q.component, q.device, q.domain)
                if (energy := scan.energies_joules[i]) is not None:
                    add(catalog.ENERGY_BY_SCOPE[q.scope], labels, energy)
                if (power := scan.powers_watts[i]) is not None:
                    add(catalog.POWER_BY_SCOPE[q.scope], labels, power)
                if health is None:
                    continue
                accuracy = "" if item.accuracy is None else repr(item.accuracy)
                is_primary = str(int((scan.collector, q) in self._primary)) if q.scope == "node" else ""
                read = (item.method, scan.reads[i], item.read_mode or "", is_primary, item.host(self._nodename))
                published = item.accuracy_source if accuracy else ""
                metadata = (*read, item.model, item.source, item.resolution, accuracy, published)
                add(catalog.SENSOR_INFO, (q.scope, *labels, *metadata), 1)
                if health.refresh_s is not None:
                    add(catalog.SENSOR_REFRESH, labels, health.refresh_s)
                if scan.reads[i] == "energy":
                    add(catalog.SENSOR_WRAPS, labels, health.wraps)
                    add(catalog.SENSOR_RESETS, labels, health.resets)
                add(catalog.SENSOR_REJECTED, labels, health.rejected)
                add(catalog.SENSOR_UNMEASURED, labels, health.unmeasured_s)
            for device, state, read_at_s in zip(scan.layout.devices, scan.states, scan.read_at_s, strict=True):
                add(catalog.SENSOR_UP, (scan.collector, device), state == "ok")
                add(catalog.SENSOR_STATE, (scan.collector, device, state), 1)
                if read_at_s is not None:
                    add(catalog.READ_TIMESTAMP, (scan.collector, device), read_at_s)
            for device, reason, count in scan.errors:
                add(catalog.READ_ERRORS, (scan.collector, device, reason), count)
            if scan.duration_s is not None:
                add(catalog.READ_DURATION, (scan.collector,), scan.duration_s)
        add(catalog.EXPORTER_INFO, (__version__, platform.python_version(), self._nodename, "0"), 1)
        add(catalog.EXPORTER_START, (), self._start_s)
        return families.values()


def as_data(families: Iterable[Metric]) -> dict[str, tuple[str, str, dict[tuple[object, ...], float]]]:
    return {
        family.name: (
            family.type,
            family.documentation,
            {(sample.name, *sorted(sample.labels.items())): sample.value for sample in family.samples},
        )
        for family in families
    }


def assert_same_as_prometheus_client(scans: Sequence[FamilyScan]) -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Reference(scans, 1_699_999_000.25, "node17"))
    ours = exposition()
    for format_, parse, generate in (
        ("text", parse_text, generate_text),
        ("openmetrics", parse_openmetrics, generate_openmetrics),
    ):
        written = ours.render(scans, format_, primary=primary_of(scans)).decode()  # type: ignore[arg-type]
        reference = generate(registry).decode()
        assert as_data(parse(written)) == as_data(parse(reference))
        # Not splitlines(), which also splits at other characters of a label.
        comments = [sorted(line for line in text.split("\n") if line[:1] == "#") for text in (written, reference)]
        assert comments[0] == comments[1]
        assert written.endswith("# EOF\n") == (format_ == "openmetrics")
        assert "_created" not in written


@pytest.mark.parametrize("dead", [None, "socket0", "power_meter"])
def test_the_text_is_that_of_prometheus_client(dead: str | None) -> None:
    assert_same_as_prometheus_client(scans_of_node(dead=dead))


@given(
    texts=st.lists(st.text(max_size=20).filter(lambda text: "\r" not in text), min_size=4, max_size=4),
    energy=st.floats(0, 1e15),
    power=st.floats(0, 900),
)
@example(texts=["", "", "", "\x85#"], energy=0.0, power=0.0)
def test_any_label_and_any_value_survive(texts: list[str], energy: float, power: float) -> None:
    """Quotes, backslashes, any script: written once, read back the same; control characters as `label_text` does."""
    clock = FakeClock()
    item = info(f"d{texts[0]}", f"d{texts[1]}", model=texts[2], resolution=texts[3], wrap_joules=None)
    sensor = FakeSensor((item,), now_ns=clock.monotonic_ns, energies_joules=[energy], powers_watts=[power])
    family = Family(fake_family("fake", Machine([sensor])).open(Host(), None), clock=clock)
    assert_same_as_prometheus_client([family.scan()])


def test_a_device_that_is_down_has_its_state_and_errors_only() -> None:
    body = exposition().render(scans_of_node(dead="socket1"), "text").decode()
    names = {line.partition("{")[0] for line in body.splitlines() if 'device="socket1"' in line}
    assert names == {"joulewatch_sensor_up", "joulewatch_sensor_state", "joulewatch_read_errors_total"}
    assert 'joulewatch_sensor_up{collector="rapl",device="socket1"} 0.0' in body
    assert 'joulewatch_sensor_state{collector="rapl",device="socket1",state="denied"} 1.0' in body
    assert body.count("joulewatch_sensor_state{") == 3, "one series per device"


def test_the_state_of_a_device_follows_its_reads() -> None:
    """The rendered lines are kept while nothing changes."""
    sensor = FakeSensor((info("gpu"),), now_ns=FakeClock().monotonic_ns, energies_joules=[1.0])
    family = Family(fake_family("hwmon", Machine([sensor])).open(Host(), None), clock=FakeClock())
    renderer = exposition()

    def shown() -> list[str]:
        lines = renderer.render([family.scan()], "text").decode().splitlines()
        return [line for line in lines if line.startswith(("joulewatch_sensor_state{", "joulewatch_sensor_up{"))]

    awake = shown()
    sensor.error = SensorAsleepError("suspended")
    assert shown() == [
        'joulewatch_sensor_up{collector="hwmon",device="gpu"} 0.0',
        'joulewatch_sensor_state{collector="hwmon",device="gpu",state="asleep"} 1.0',
    ]
    sensor.error = None
    assert shown() == awake


def test_a_family_that_hangs_repeats_no_values() -> None:
    clock = FakeClock()
    family = Family(fake_family("rapl", Machine(list(node(clock)[0]))).open(Host(), None), clock=clock)
    family.scan()
    family.count_errors(("socket0", "socket1"), "timeout")
    body = exposition().render([family.down()], "text").decode()
    samples = {line.partition("{")[0] for line in body.splitlines() if 'collector="rapl"' in line}
    assert samples == {"joulewatch_sensor_up", "joulewatch_sensor_state", "joulewatch_read_errors_total"}


def test_each_quantity_of_an_emulated_machine_is_labelled_so() -> None:
    body = exposition(emulated=True).render(scans_of_node(), "text").decode()
    lines = [line for line in body.splitlines() if line.startswith("joulewatch_sensor_info{")]
    assert len(lines) == 7
    assert all('method="emulated"' in line for line in lines)


def test_a_new_choice_of_the_primary_sensor_is_shown_at_once() -> None:
    """The lines of sensor_info are kept from scrape to scrape, although the choice may change without the scans."""
    ours, scans = exposition(), scans_of_node()
    (key,) = primary_of(scans)
    assert 'primary="1"' not in ours.render(scans, "text").decode()
    assert ours.render(scans, "text", primary=frozenset({key})).decode().count('primary="1"') == 1


def test_caches_follow_the_scans() -> None:
    """A renderer never shows old lines of a family that loses and regains a device."""
    ours = exposition()
    for scans in (scans_of_node(), scans_of_node(dead="socket1"), scans_of_node()):
        assert ours.render(scans, "text") == exposition().render(scans, "text")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "text"),
        ("", "text"),
        ("*/*", "text"),
        ("text/plain;version=0.0.4", "text"),
        ("application/openmetrics-text;version=1.0.0", "openmetrics"),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
            "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "openmetrics",
        ),
        ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6", "text"),
    ],
)
def test_the_format_is_negotiated(accept: str | None, expected: Format) -> None:
    assert choose_format(accept) == expected
    assert CONTENT_TYPES[expected].startswith(
        ("text/plain; version=0.0.4", "application/openmetrics-text; version=1.0")
    )


def test_escape_label() -> None:
    assert escape_label('a\\b"c\nd') == 'a\\\\b\\"c\\nd'


def test_a_calibration_is_published_next_to_raw_values(
    tmp_path: Path, update_golden: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The values of the sensor are the same as without a calibration; a socket of another model has none."""
    socket = {"scope": "device", "collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package"}
    entries = [calibration_entry(), calibration_entry(sensor={**socket, "model": "AMD EPYC 7713 64-Core Processor"})]
    calibrations = load_calibrations([calibration_file(tmp_path, *entries)], "node17")
    scans = scans_of_node()
    texts = []
    for known in (NO_CALIBRATIONS, calibrations):
        shown = Exposition(
            emulated=False, start_s=1_699_999_000.25, nodename="node17", self_metrics=False, calibrations=known
        )
        texts.append(shown.render(scans, "text", primary=primary_of(scans)).decode().splitlines(keepends=True))
    with_lines = [line for line in texts[1] if "joulewatch_sensor_calibration" in line]
    assert [line for line in texts[1] if line not in with_lines] == texts[0]
    golden.check("".join(with_lines), GOLDEN / "calibration.prom", update=update_golden)
    assert [record.message for record in caplog.records] == [
        "rapl socket0 package: not calibrated: the calibration of 2026-11-28T10:00:00+00:00 is of the model "
        f"'AMD EPYC 7713 64-Core Processor', not {MODEL!r}; calibrate this one"
    ]


@pytest.mark.parametrize("format_", ["text", "openmetrics"])
def test_the_ratio_of_workloads_is_published(tmp_path: Path, format_: Format) -> None:
    path = ratio_file(tmp_path, ratio_entry(), ratio_entry(component="memory", ratio=3), ratio_entry(host="node18"))
    shown = Exposition(
        emulated=False,
        start_s=0.0,
        nodename="node17",
        self_metrics=False,
        calibrations=load_calibrations([path], "node17"),
    )
    lines = [line for line in shown.render((), format_).decode().splitlines() if "joulewatch_workload_ratio" in line]
    assert lines[1:] == [
        "# TYPE joulewatch_workload_ratio gauge",
        'joulewatch_workload_ratio{component="cpu"} 1.6',
        'joulewatch_workload_ratio{component="memory"} 3.0',
    ]
