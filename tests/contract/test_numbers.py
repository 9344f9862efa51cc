"""Flags with decimal numbers: each command rejects NaN, infinity, and values outside of the limits."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

import pytest

from joulewatch_exporter.arguments import Parser
from joulewatch_exporter.cli import make_parser as exporter_parser
from joulewatch_exporter.collectors import FAMILIES
from joulewatch_harness.cli import make_parser as harness_parser

OUTSIDE: Final = {
    "joulewatch analyze --carbon": ("-1",),
    "joulewatch energy --price": ("-1",),
    "joulewatch import --clock-offset": (),
    "joulewatch layers --smallest": ("-1", "101"),
    "joulewatch measure --interval": ("0", "0.001"),
    "joulewatch predict --clock-mhz": ("0", "-1"),
    "joulewatch predict --driver-seconds": ("0", "-1"),
    "joulewatch predict --host-watts": ("0", "-1"),
    "joulewatch predict --latency": ("0", "-1"),
    # The limits of these are those of the keys of a plan, which checks them.
    "joulewatch profile --idle": (),
    "joulewatch profile --scrape-rate": (),
    "joulewatch profile --server-rate": (),
    "joulewatch profile --window": (),
    "joulewatch recommend --driver-seconds": ("0", "-1"),
    "joulewatch recommend --host-watts": ("0", "-1"),
    "joulewatch recommend --max-latency": ("0", "-1"),
    "joulewatch recommend --price": ("0", "-1"),
    "joulewatch runs --timeout": ("0", "-1"),
    "joulewatch sensors --seconds": ("0", "3601"),
    "joulewatch-exporter --web.min-age": ("-1", "3601"),
    "joulewatch-exporter emulate --duration": ("0", "-1"),
}
"""Flag -> finite numbers that it must reject."""


def all_actions(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, argparse.Action]]:
    for action in parser._actions:
        yield parser, action
    if isinstance(parser, Parser):
        for command in parser.commands.values():
            yield from all_actions(command)


ACTIONS: Final = [*all_actions(harness_parser()), *all_actions(exporter_parser(FAMILIES))]
DECIMALS: Final = {
    f"{parser.prog} {action.option_strings[0]}": parser
    for parser, action in ACTIONS
    if getattr(action.type, "__qualname__", "").startswith("number.")
}


def test_every_decimal_number_has_the_type_with_limits() -> None:
    assert not [f"{parser.prog} {action.dest}" for parser, action in ACTIONS if action.type is float]
    assert sorted(DECIMALS) == sorted(OUTSIDE)


@pytest.mark.parametrize(
    ("flag", "value"),
    [(flag, value) for flag, values in OUTSIDE.items() for value in ("nan", "inf", "-inf", "soon", *values)],
)
def test_a_value_outside_of_the_limits_is_an_error(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = flag.rpartition(" ")[2]
    with pytest.raises(SystemExit) as caught:
        DECIMALS[flag].parse_args([f"{name}={value}"])
    # As in `env` and `timeout`, other codes of `measure` are those of its command.
    assert caught.value.code == (125 if flag.startswith("joulewatch measure ") else 2)
    err = capsys.readouterr().err
    assert f"argument {name}: must be a number" in err
    assert f", got {value!r}\n" in err
