"""The recipe for an OpenTelemetry collector gives names, units and attributes of the semantic conventions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import pytest
import yaml
from opentelemetry.semconv._incubating.attributes import hw_attributes
from opentelemetry.semconv._incubating.metrics import hw_metrics

from joulewatch_exporter import catalog
from support.paths import ROOT

RECIPE: Final = ROOT / "deploy" / "opentelemetry" / "collector.yaml"
EXPECTED: Final = {
    hw_metrics.HW_ENERGY: catalog.ENERGY_BY_SCOPE["device"],
    hw_metrics.HW_POWER: catalog.POWER_BY_SCOPE["device"],
    hw_metrics.HW_HOST_ENERGY: catalog.ENERGY_BY_SCOPE["node"],
    hw_metrics.HW_HOST_POWER: catalog.POWER_BY_SCOPE["node"],
}
HOST_METRICS: Final = {hw_metrics.HW_HOST_ENERGY, hw_metrics.HW_HOST_POWER}
HW_TYPES: Final = {kind.value for kind in hw_attributes.HwTypeValues}


@dataclass
class Point:
    """One data point with its metric, as the receiver makes it of a sample."""

    name: str
    attributes: dict[str, str]
    unit: str = ""


class Statements:
    """An interpreter of the forms of OTTL that the recipe uses; any other form is an error."""

    def condition(self, text: str, point: Point) -> bool:
        if " and " in text:
            return all(self.condition(part, point) for part in text.split(" and "))
        if text.startswith("not "):
            return not self.condition(text.removeprefix("not "), point)
        if match := re.fullmatch(r"IsMatch\((.+), \"(.+)\"\)", text):
            return re.search(match[2], self.value(match[1], point)) is not None
        match = re.fullmatch(r"(\S+) (==|!=) (\S+)", text)
        assert match is not None, text
        return (self.value(match[1], point) == self.value(match[3], point)) == (match[2] == "==")

    def value(self, text: str, point: Point) -> str:
        if text in ("name", "metric.name"):
            return point.name
        if match := re.fullmatch(r'attributes\["(.+)"\]', text):
            return point.attributes[match[1]]
        if match := re.fullmatch(r'Concat\(\[(.+)\], "(.)"\)', text):
            return match[2].join(self.value(part, point) for part in match[1].split(", "))
        match = re.fullmatch(r'"(.*)"', text)
        assert match is not None, text
        return match[1]

    def run(self, statement: str, point: Point) -> None:
        action, _, condition = statement.partition(" where ")
        if condition and not self.condition(condition, point):
            return
        if match := re.fullmatch(r"keep_keys\(attributes, \[(.+)\]\)", action):
            kept = re.findall(r'"(.+?)"', match[1])
            point.attributes = {key: value for key, value in point.attributes.items() if key in kept}
            return
        match = re.fullmatch(r"set\((.+?), (.+)\)", action)
        assert match is not None, action
        value = self.value(match[2], point)
        if attribute := re.fullmatch(r'attributes\["(.+)"\]', match[1]):
            point.attributes[attribute[1]] = value
        else:
            assert match[1] in ("name", "unit"), action
            setattr(point, match[1], value)


@pytest.fixture(scope="module")
def recipe() -> Any:
    return yaml.safe_load(RECIPE.read_text("utf-8"))


def sent(recipe: Any, point: Point) -> Point | None:
    """Pass a point through the processors; None: it is dropped."""
    ottl = Statements()
    processors = recipe["processors"]
    drop = processors["filter/joulewatch"]["metrics"]
    if any(ottl.condition(text, point) for text in (*drop["metric"], *drop["datapoint"])):
        return None
    for group in processors["transform/joulewatch"]["metric_statements"]:
        for statement in group["statements"]:
            ottl.run(statement, point)
    return point


def point_of(metric: str, **labels: str) -> Point:
    return Point(metric, {"collector": "rapl", "component": "cpu", "device": "socket0", "domain": "package", **labels})


@pytest.mark.parametrize(("name", "metric"), EXPECTED.items(), ids=list(EXPECTED))
@pytest.mark.parametrize("suffix", ["_total", ""])
def test_names_units_instruments_and_attributes_are_those_of_the_conventions(
    recipe: Any, name: str, metric: catalog.Metric, suffix: str
) -> None:
    """Some versions of the receiver remove the suffix of counters."""
    labels = {"collector": "ipmi", "component": "node"} if name in HOST_METRICS else {}
    received = metric.name.removesuffix("_total") + (suffix if metric.kind == "counter" else "")
    point = sent(recipe, point_of(received, **labels))
    assert point is not None
    assert point.name == name
    creator = getattr(hw_metrics, f"create_{name.replace('.', '_')}")
    documented = next(text for text in creator.__code__.co_consts if isinstance(text, str) and text in ("J", "W"))
    assert point.unit == documented
    returned = str(creator.__annotations__["return"])
    assert ("Counter" in returned) == (metric.kind == "counter")
    assert point.attributes[hw_attributes.HW_ID]
    expected = {hw_attributes.HW_ID, hw_attributes.HW_NAME} | (
        set() if name in HOST_METRICS else {hw_attributes.HW_TYPE}
    )
    assert point.attributes.keys() == expected


@pytest.mark.parametrize("component", ["cpu", "gpu", "memory"])
def test_components_of_the_conventions_have_their_words(recipe: Any, component: str) -> None:
    point = sent(recipe, point_of(catalog.ENERGY_BY_SCOPE["device"].name, component=component))
    assert point is not None and point.attributes[hw_attributes.HW_TYPE] == component
    assert component in HW_TYPES


def test_ids_are_unique_within_a_host(recipe: Any) -> None:
    energy = catalog.ENERGY_BY_SCOPE["device"].name
    points = [
        sent(recipe, point_of(energy, **labels))
        for labels in ({}, {"domain": "dram"}, {"device": "socket1"}, {"collector": "estimate"})
    ]
    assert len({point.attributes[hw_attributes.HW_ID] for point in points if point is not None}) == 4


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        (catalog.ENERGY_BY_SCOPE["part"].name, {}),
        (catalog.SENSOR_UP.name, {}),
        (catalog.ENERGY_BY_SCOPE["node"].name, {"collector": "redfish"}),
    ],
)
def test_what_would_be_counted_twice_is_dropped(recipe: Any, metric: str, labels: dict[str, str]) -> None:
    assert sent(recipe, point_of(metric, **labels)) is None


def test_the_recipe_scrapes_the_default_port(recipe: Any) -> None:
    (job,) = recipe["receivers"]["prometheus"]["config"]["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"localhost:{catalog.DEFAULT_PORT}"]}]
    pipeline = recipe["service"]["pipelines"]["metrics"]
    assert pipeline["processors"][-2:] == ["filter/joulewatch", "transform/joulewatch"]
    assert set(pipeline["processors"]) == set(recipe["processors"])
