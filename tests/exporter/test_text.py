"""Counts, and the text of devices in labels, on the terminal and in logs."""

from __future__ import annotations

import json
import logging
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from joulewatch_exporter.commands.check import Report, render
from joulewatch_exporter.errors import SensorDeniedError
from joulewatch_exporter.logs import _JsonFormatter, _LogfmtFormatter
from joulewatch_exporter.model import Finding, Quantity, Reading, SensorInfo
from joulewatch_exporter.sampling.family import Family
from joulewatch_exporter.server.exposition import Exposition
from joulewatch_exporter.text import MAX_LABEL, MAX_SOURCE, count_of, json_text, label_text, printable
from support.fake_family import Machine, fake_family

HOSTILE = "card\x1b]0;title\x07\x1b[2J\r\u202e\x9b31m\x00 12V"
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=300)


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("sensor",), "0 sensors"),
        (1, ("sensor",), "1 sensor"),
        (2, ("sensor",), "2 sensors"),
        (1, ("window is", "windows are"), "1 window is"),
        (3, ("window is", "windows are"), "3 windows are"),
    ],
)
def test_a_count_has_the_number_of_its_noun(number: int, words: tuple[str, ...], text: str) -> None:
    assert count_of(number, *words) == text


@given(TEXTS)
@example(HOSTILE)
@example("x" * (MAX_LABEL + 1))
@example("\udcff")
def test_a_label_is_printable_and_short_and_stays_the_same(text: str) -> None:
    label = label_text(text)
    assert label.isprintable()
    assert len(label) <= MAX_LABEL
    assert label_text(label) == label
    if text.isprintable() and len(text) <= MAX_LABEL:
        assert label == text


def test_long_labels_stay_different() -> None:
    labels = {label_text("x" * 200 + str(number)) for number in range(100)}
    assert len(labels) == 100
    assert all(re.fullmatch(r"x{119}~[0-9a-f]{8}", label) for label in labels)


@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5))
def test_json_is_printable_and_reads_back(value: object) -> None:
    assert json_text(value).isprintable()
    assert json.loads(json_text(value)) == json.loads(json.dumps(value))
    assert json.loads(json_text(value, indent=1)) == json.loads(json.dumps(value))


def test_json_of_plain_text_is_as_it_was() -> None:
    assert json_text({"unit": "µs"}, indent=2) == '{\n  "unit": "µs"\n}'


def test_printable() -> None:
    assert printable("µ 12 V") == "µ 12 V"
    assert printable("a\x1b[2J\n\u202e") == r"a\x1b[2J\n\u202e"


class HostileSensor:
    """A sensor whose driver chooses all texts."""

    device = HOSTILE

    def __init__(self) -> None:
        self.quantity = Quantity(scope="device", component="fpga", device=HOSTILE, domain=HOSTILE * 20)
        self.infos = (
            SensorInfo(
                quantity=self.quantity, method="integrated", source=HOSTILE * 99, model="m" * 4096, resolution="\x1b"
            ),
        )

    def read(self) -> tuple[Reading, ...]:
        return (Reading(self.quantity, 1, None, 12.0),)

    def close(self) -> None: ...


def test_no_family_passes_control_characters_or_long_texts_to_a_label() -> None:
    family = fake_family("fpga", Machine([HostileSensor()]))  # type: ignore[list-item]
    from joulewatch_exporter.model import Host

    opened = Family(family.open(Host(), family.Options()))
    scan = opened.scan()
    assert len(scan.layout.devices) == 1, "the device of the sensor is that of its quantity"
    body = Exposition(emulated=False, start_s=1.0, nodename=HOSTILE).render([scan], "text").decode()
    assert body.replace("\n", "").isprintable()
    for name, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', body):
        assert len(value.replace("\\\\", "\\")) <= (MAX_SOURCE if name == "source" else MAX_LABEL)
    assert "joulewatch_device_power_watts{" in body


def test_the_devices_of_an_error_and_of_a_finding_have_the_same_label() -> None:
    label = label_text(HOSTILE)
    assert SensorDeniedError("no", devices=[HOSTILE, ""]).devices == (label,)
    assert Finding(status="denied", collector="x", subject="s", text="t", device=HOSTILE).device == label


def report() -> Report:
    finding = Finding(status="denied", collector="hwmon", subject=HOSTILE, text=HOSTILE, cure=HOSTILE)
    return Report(
        version="1", nodename=HOSTILE, sysfs="/sys", procfs="/proc", emulated=False, virtual_machine=False,
        findings=(finding,), experimental={"hwmon": HOSTILE}, readings=(), measured=0, estimated=0, asleep=0,
    )  # fmt: skip


def test_check_escapes_what_a_terminal_would_interpret() -> None:
    lines = render(report()).split("\n")
    assert all(line.isprintable() for line in lines)
    assert r"\x1b[2J" in "".join(lines)


@pytest.mark.parametrize("formatter", [_LogfmtFormatter(), _JsonFormatter()], ids=["logfmt", "json"])
def test_logs_escape_what_a_terminal_would_interpret(formatter: logging.Formatter) -> None:
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "%s", (HOSTILE,), None)
    assert formatter.format(record).isprintable()
    assert r"\u001b[2J" in formatter.format(record)
