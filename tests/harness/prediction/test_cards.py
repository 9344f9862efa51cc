"""Device cards: every number has a source and a status, and a product is never better founded than its inputs."""

from __future__ import annotations

import importlib.resources
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.prediction.cards import (
    FOLDER,
    STATUSES,
    Card,
    Source,
    Status,
    Value,
    cards,
    find_card,
    read_card,
    worst,
)

PAPER = ("epyc-7763", "epyc-7713", "a100-sxm4-40gb", "alveo-u280")
DATA = (
    "Firefly RK3588S", "Khadas VIM4", "Odroid (model not stated)", "Raspberry Pi 4 (Krai)", "RFSoC2x2", "NVIDIA A30",
    "NVIDIA H200", "NVIDIA A100-SXM4-40GB", "NVIDIA L40S", "NVIDIA H100 PCIe", "NVIDIA H100 NVL",
    "Tesla V100-SXM2-32GB", "NVIDIA L4", "NVIDIA GeForce RTX 3090", "Tesla T4", "NVIDIA GeForce RTX 4090",
)  # fmt: skip
SOURCE = Source(title="a data sheet", url="https://example.org", date="2024-01-01", opened="2026-11-28")


@pytest.mark.parametrize("name", [*PAPER, *DATA])
def test_the_hardware_of_the_paper_and_of_the_data_has_a_card(name: str) -> None:
    assert find_card(name).name in cards()


@pytest.mark.parametrize("card", cards().values(), ids=lambda card: card.name)
def test_every_number_has_a_source_a_date_and_a_status(card: Card) -> None:
    assert (FOLDER / f"{card.name}.yaml").is_file()
    for fact in card.facts():
        assert fact.status in STATUSES
        assert fact.sources, fact.name
        assert fact.value > 0
        for source in fact.sources:
            assert source.title and source.url.startswith("https://") and source.date
            assert re.fullmatch(r"20\d\d-\d\d-\d\d", source.opened)
    used = {value.source for value in [*card.inputs.values(), *_values(card)]}
    assert set(card.sources) == used - {""}, "a source that no number uses"


def _values(card: Card) -> list[Value]:
    single = (card.memory_bandwidth_bytes_per_second, card.tdp_watts, card.idle_watts)
    return [*card.peak_operations_per_second.values(), *(value for value in single if value is not None)]


def test_no_device_is_on_two_cards() -> None:
    names = [
        name for card in cards().values() for name in {word.lower() for word in (card.name, card.title, *card.devices)}
    ]
    assert len(names) == len(set(names))


@given(statuses=st.lists(st.sampled_from(STATUSES), min_size=1, max_size=4), stated=st.sampled_from([None, *STATUSES]))
def test_a_product_is_never_better_founded_than_its_worst_input(statuses: list[Status], stated: Status | None) -> None:
    inputs = {
        f"i{number}": Value(value=number + 2.0, source="s", status=status) for number, status in enumerate(statuses)
    }
    peak = {"fp32": Value(product_of=tuple(inputs), status=stated)}
    limit = max(STATUSES.index(status) for status in statuses)
    if stated is not None and STATUSES.index(stated) < limit:
        with pytest.raises(ValueError, match=f"status {stated}, but an input is only {STATUSES[limit]}"):
            Card(name="x", title="x", kind="cpu", sources={"s": SOURCE}, inputs=inputs, peak_operations_per_second=peak)
        return
    card = Card(name="x", title="x", kind="cpu", sources={"s": SOURCE}, inputs=inputs, peak_operations_per_second=peak)
    fact = card.fact("peak_operations_per_second.fp32")
    assert fact is not None
    assert STATUSES.index(fact.status) >= limit
    assert fact.value == math.prod(value.value or 0.0 for value in inputs.values())
    assert fact.sources == (SOURCE,)


def test_a_peak_rate_from_an_estimated_input_is_estimated() -> None:
    fact = find_card("epyc-7763").fact("peak_operations_per_second.fp32")
    assert fact is not None
    assert fact.value == pytest.approx(64 * 2.45e9 * 32)
    assert fact.status == "estimated"
    assert [source.date for source in fact.sources] == ["commit b05965e43b69, 2026-08-08", "2024-01-13"]
    assert worst("measured", "datasheet") == "datasheet"


def test_a_number_without_a_source_is_not_in_a_card() -> None:
    card = find_card("Khadas VIM4")
    assert card.facts() == []
    assert card.fact("idle_watts") is None


GOOD = """\
name: mine
title: My card
kind: fpga
sources:
  sheet: {title: A sheet, url: "https://example.org", date: "2024-01-01", opened: "2026-11-28"}
inputs:
  lanes: {value: 4, source: sheet, status: datasheet}
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("tdp_watts: {value: 75, status: datasheet, scope: device}", "tdp_watts: a value needs a source and a status"),
        ("tdp_watts: {value: 75, source: sheet, scope: device}", "tdp_watts: a value needs a source and a status"),
        ("tdp_watts: {value: 75, source: shet, status: datasheet, scope: device}",
         "tdp_watts: unknown source 'shet'; did you mean sheet? (known: sheet)"),
        ("tdp_watts: {value: 75, source: sheet, status: datasheet}",
         "tdp_watts: a power needs a scope: device, rails or wall"),
        ("tdp_watts: {value: -75, source: sheet, status: datasheet, scope: device}",
         "tdp_watts.value: must be a number > 0, got -75"),
        ("tdp_watts: {value: 75, source: sheet, status: fact, scope: device}",
         "tdp_watts.status: unknown value 'fact' (known: datasheet, estimated, measured)"),
        ("idle_watts: {product_of: [lanes, volts], scope: rails}",
         "idle_watts: unknown input 'volts' (known: lanes)"),
        ("idle_watts: {scope: rails}", "idle_watts: give either value or product_of"),
        ("idle_watts: {product_of: [lanes], source: sheet, scope: rails}",
         "idle_watts.source: a product has the sources of its inputs"),
        ("idle_watts: {product_of: [lanes], status: measured, scope: rails}",
         "idle_watts: status measured, but an input is only datasheet"),
        ("idle_power: 5", "unknown key 'idle_power'"),
    ],
)  # fmt: skip
def test_a_card_that_is_not_valid_is_an_error_of_one_line(tmp_path: Path, more: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + more + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        find_card(str(path))
    assert str(raised.value).startswith(f"{path}: {message}")
    assert len(str(raised.value).splitlines()) == 1


def test_a_file_is_a_card_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + "idle_watts: {product_of: [lanes], scope: rails}\n", encoding="utf-8")
    fact = read_card(path).fact("idle_watts")
    assert fact is not None
    assert (fact.value, fact.status, fact.scope, fact.formula) == (4.0, "datasheet", "rails", "lanes 4")


def test_a_device_without_a_card_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown device 'alveo-u28'; did you mean alveo-u280") as raised:
        find_card("alveo-u28")
    assert "joulewatch device --from-run RUN" in str(raised.value)


def test_the_cards_are_data_of_the_package() -> None:
    files = importlib.resources.files("joulewatch_harness.prediction.cards").iterdir()
    assert {file.name for file in files if file.name.endswith(".yaml")} == {f"{name}.yaml" for name in cards()}
