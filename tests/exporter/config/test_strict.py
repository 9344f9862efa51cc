"""The binder from YAML to dataclasses, with converters for custom types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from joulewatch_exporter.config.config import ExporterSettings
from joulewatch_exporter.config.strict import build, convert, nearest, parse_yaml, read_yaml
from joulewatch_exporter.errors import ConfigError
from support.hostile_yaml import HOSTILE_YAML


@dataclass(frozen=True)
class Ramp:
    """A custom type, written as ``start..end``."""

    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Board:
    name: str
    power: Ramp
    spare: Ramp | None = None
    span: tuple[float, float] = (0.0, 1.0)
    rails: Mapping[str, Ramp] | None = None
    steps: tuple[Ramp, ...] = ()


def to_ramp(value: Any, source: str, where: str) -> Ramp:
    try:
        start, end = str(value).split("..")
        return Ramp(float(start), float(end))
    except ValueError as error:
        raise ConfigError(f"{source}: {where}: {value!r} is not a ramp") from error


def board(text: str) -> Board:
    return build(Board, parse_yaml(text, "board.yaml"), "board.yaml", "", {Ramp: to_ramp})


def test_a_converter_is_used_in_unions_mappings_and_lists() -> None:
    text = "{name: b, power: 1..2, spare: 3..4, rails: {core: 5..6}, steps: [7..8, 9..10], span: [2, 3.5]}"
    assert board(text) == Board(
        name="b",
        power=Ramp(1, 2),
        spare=Ramp(3, 4),
        rails={"core": Ramp(5, 6)},
        steps=(Ramp(7, 8), Ramp(9, 10)),
        span=(2.0, 3.5),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: b}", "board.yaml: needs power"),
        ("{name: b, power: 1}", "board.yaml: power: 1 is not a ramp"),
        ("{name: b, power: 1..2, steps: [x]}", "board.yaml: steps[0]: 'x' is not a ramp"),
        ("{name: b, power: 1..2, rails: {core: x}}", "board.yaml: rails.core: 'x' is not a ramp"),
        ("{name: b, power: 1..2, spare: x}", "board.yaml: spare: 'x' is not a ramp"),
        ("{name: b, power: 1..2, span: [1]}", "span: must be a list of 2: a number, a number, not [1]"),
        ("{name: b, power: 1..2, span: [1, x]}", "board.yaml: span[1]: must be a number, not 'x'"),
        ("{name: b, powr: 1..2}", "board.yaml: unknown key powr; did you mean power?"),
        ("{name: b, name: c}", "the key 'name' is given twice"),
    ],
)
def test_an_error_names_source_and_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        board(text)
    assert message in str(caught.value)


def test_null_is_not_passed_to_a_converter() -> None:
    assert board("{name: b, power: 1..2, spare: null}").spare is None


def test_a_single_value_is_converted_by_its_annotation() -> None:
    assert convert([1, 2], tuple[int, ...], "x", "key") == (1, 2)
    with pytest.raises(ConfigError, match="x: key: must be a list, each element a whole number, not 1"):
        convert(1, tuple[int, ...], "x", "key")


def test_the_nearest_word_or_all_valid_words_are_suggested() -> None:
    assert nearest("sokcet", ("board", "socket")) == "did you mean socket?"
    assert nearest("zzz", ("board", "socket")) == "valid: board, socket"
    assert nearest("zzz", ()) == "nothing is valid here"


@pytest.mark.parametrize(("text", "problem"), HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_hostile_yaml_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_yaml(tmp_path / "plan.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: cannot be read: longer than 16 MiB"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize(
    "data",
    [
        {"x" * 5_000_000: 1},
        {"\x1b[2J" * 100: 1},
        {"listen": ["x"] * 1_000_000},
        {"listen": "x" * 5_000_000},
    ],
    ids=["key", "escape", "value", "checked"],
)
def test_an_error_is_short_and_printable(data: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ExporterSettings, data, "file.yaml")
    assert str(caught.value).startswith("file.yaml: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1100
