"""The binder accepts every valid value, refuses every other one, and names source, key, value and nearest name."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.binder import (
    Choice,
    Limits,
    Parse,
    Texts,
    Word,
    as_list,
    bind,
    bind_options,
    bind_record,
    keys,
    read_yaml,
    short_for,
)
from joulewatch_harness.errors import ConfigError, RecordError
from support.hostile_yaml import HOSTILE_YAML


def even(value: int) -> int:
    if value % 2:
        raise ValueError(f"must be even, got {value}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A mapping inside a mapping, with its own rule."""

    url: str
    port: Annotated[int, Limits(ge=1, le=9999)] = 80

    def __post_init__(self) -> None:
        if self.url == "nowhere":
            raise ValueError("url: nowhere cannot be reached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """One key of every kind."""

    whole: int = 0
    real: float = 0.0
    flag: bool = False
    text: str = ""
    file: Path | None = None
    rounds: Annotated[int, Limits(ge=3)] = 3
    wait_s: Annotated[float, Limits(gt=0, le=60, unit="seconds")] | None = None
    level: Literal["low", "high"] = "low"
    mode: Annotated[str, Choice(("eager", "compile"))] = "eager"
    pairs: Annotated[int, Parse(even)] = 0
    names: Texts = ()
    numbers: tuple[int, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    words: Mapping[str, Word] = field(default_factory=dict)
    targets: tuple[Annotated[Target, short_for("url")], ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    extra: Any = None


KEYS = ", ".join(sorted(keys(Everything)))
integers = st.integers(-(10**30), 10**30)
finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=20)
plain = st.one_of(st.none(), st.booleans(), integers, finite, texts)
anything = st.recursive(
    st.one_of(plain, st.just(math.nan), st.just(math.inf)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)

VALID: dict[str, st.SearchStrategy[Any]] = {
    "whole": integers,
    "real": finite | st.integers(-(2**53), 2**53),
    "flag": st.booleans(),
    "text": texts,
    "file": st.none() | st.text(st.characters(exclude_characters="\0/"), min_size=1),
    "rounds": st.integers(3, 10**9),
    "wait_s": st.none() | st.floats(0, 60, exclude_min=True) | st.integers(1, 60),
    "level": st.sampled_from(["low", "high"]),
    "mode": st.sampled_from(["eager", "compile"]),
    "pairs": integers.map(lambda number: 2 * number),
    "names": st.lists(texts, max_size=3),
    "numbers": st.lists(integers, max_size=3),
    "sizes": st.dictionaries(texts, integers, max_size=3),
    "words": st.dictionaries(texts, texts, max_size=3),
    "targets": st.lists(
        st.fixed_dictionaries({"url": st.text(max_size=5).map(lambda name: f"http://{name}"), "port": st.just(81)}),
        max_size=2,
    ),
    "secrets": st.dictionaries(texts, texts, max_size=3),
    "extra": anything,
}


@given(st.fixed_dictionaries({}, optional=VALID))
def test_every_valid_value_is_bound(data: dict[str, Any]) -> None:
    bound = bind(Everything, data, "x")
    for key in keys(Everything):
        value, result = data.get(key, ()), getattr(bound, key)
        if key not in data:
            assert result == getattr(Everything(), key)
        elif key in ("names", "numbers"):
            assert result == tuple(value)
        elif key == "targets":
            assert result == tuple(Target(url=item["url"], port=81) for item in value)
        elif key == "file":
            assert result == (None if value is None else Path(value))
        elif key == "extra":
            assert result is value
        else:
            assert result == value
    assert type(bound.real) is float
    assert type(bound.whole) is int


def is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


ACCEPTS: dict[str, Any] = {
    "whole": lambda value: type(value) is int,
    "real": is_number,
    "flag": lambda value: type(value) is bool,
    "text": lambda value: type(value) is str,
    "file": lambda value: value is None or (type(value) is str and value != ""),
    "rounds": lambda value: type(value) is int and value >= 3,
    "wait_s": lambda value: value is None or (is_number(value) and 0 < value <= 60),
    "level": lambda value: value in ("low", "high"),
    "mode": lambda value: value in ("eager", "compile"),
    "sizes": lambda value: isinstance(value, dict) and all(type(item) is int for item in value.values()),
    "numbers": lambda value: isinstance(value, list) and all(type(item) is int for item in value),
}


@given(st.sampled_from(sorted(ACCEPTS)), anything)
def test_every_other_value_is_refused_with_its_key(key: str, value: Any) -> None:
    if ACCEPTS[key](value):
        bind(Everything, {key: value}, "x")
        return
    with pytest.raises(ConfigError, match=rf"^file\.yaml: {key}\b") as caught:
        bind(Everything, {key: value}, "file.yaml")
    assert "\n" not in str(caught.value)
    # The same declaration as a record.
    with pytest.raises(RecordError, match=rf"^line 3: {key}\b"):
        bind_record(Everything, {key: value}, "line 3")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"rounds": 2}, "p.yaml: rounds: must be an integer >= 3, got 2"),
        ({"rounds": 3.0}, "p.yaml: rounds: must be an integer >= 3, got 3.0"),
        ({"rounds": True}, "p.yaml: rounds: must be an integer >= 3, got true"),
        ({"rounds": None}, "p.yaml: rounds: must be an integer >= 3, got null"),
        ({"wait_s": 0}, "p.yaml: wait_s: must be a number > 0 and <= 60 (seconds), got 0"),
        ({"real": math.nan}, "p.yaml: real: must be a number, got nan"),
        ({"real": 10**400}, f"p.yaml: real: must be a number, got 1{'0' * 56}..."),
        ({"flag": "yes"}, "p.yaml: flag: must be true or false, got 'yes'"),
        ({"text": 3}, "p.yaml: text: must be a string, got 3"),
        ({"file": ""}, "p.yaml: file: must be a path, got ''"),
        ({"level": "hihg"}, "p.yaml: level: unknown value 'hihg'; did you mean high? (known: high, low)"),
        ({"mode": False}, "p.yaml: mode: must be a string, one of eager, compile, got false"),
        ({"pairs": 3}, "p.yaml: pairs: must be even, got 3"),
        ({"names": [[1]]}, "p.yaml: names[0]: must be a string, got [1]"),
        ({"names": None}, "p.yaml: names: must be a value or a list of values, got null"),
        ({"numbers": "1"}, "p.yaml: numbers: must be a list, got '1'"),
        ({"sizes": [1]}, "p.yaml: sizes: must be a mapping, got [1]"),
        ({"sizes": {"a": "b"}}, "p.yaml: sizes.a: must be an integer, got 'b'"),
        ({"targets": [{"url": "a"}, {"port": 1}]}, "p.yaml: targets[1]: missing key 'url'"),
        ({"targets": [{"url": "a", "port": 0}]}, "p.yaml: targets[0].port: must be an integer >= 1 and <= 9999, got 0"),
        ({"targets": ["nowhere"]}, "p.yaml: targets[0].url: nowhere cannot be reached"),
        ({"targets": [3]}, "p.yaml: targets[0]: must be a mapping, got 3"),
        ({"targets": [{"uri": "a"}]}, "p.yaml: targets[0]: unknown key 'uri'; did you mean url? (known: port, url)"),
        ({"Text": "a"}, f"p.yaml: unknown key 'Text'; did you mean text? (known: {KEYS})"),
        ([], "p.yaml: must be a mapping, got []"),
        ({"secrets": "hush"}, "p.yaml: secrets: must be a mapping"),
        ({"secrets": {"token": 3}}, "p.yaml: secrets.token: must be a string"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_with_source_key_and_value(data: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}$"):
        bind(Everything, data, "p.yaml")


def test_what_counts_as_text_and_as_a_list() -> None:
    bound = bind(Everything, {"names": 3, "words": {"a": True, "b": 1.5, 7: "c"}, "targets": ["http://a"]}, "x")
    assert bound.names == ("3",)
    assert bound.words == {"a": "true", "b": "1.5", "7": "c"}
    assert bound.targets == (Target(url="http://a"),)
    assert as_list([1]) == as_list(1) == [1]


def test_paths_are_relative_to_the_folder_and_defaults_can_be_replaced() -> None:
    defaults = Target(url="http://default", port=443)
    assert bind(Target, {}, "x", defaults=defaults) == defaults
    assert bind(Target, {"port": 1}, "x", defaults=defaults) == Target(url="http://default", port=1)
    assert bind(Everything, {"file": "a"}, "x", folder=Path("/etc")).file == Path("/etc/a")
    assert bind(Everything, {"file": "/a"}, "x", folder=Path("/etc")).file == Path("/a")


def test_a_record_may_have_fields_of_a_newer_version() -> None:
    assert bind_record(Target, {"url": "http://a", "colour": "red"}, "x") == Target(url="http://a")
    with pytest.raises(RecordError, match=r"^x: missing field 'url'$"):
        bind_record(Target, {"port": 1}, "x")


# Options as text


@given(st.fixed_dictionaries({}, optional={key: VALID[key] for key in ("whole", "real", "rounds", "level", "numbers")}))
def test_options_given_as_text_are_converted(data: dict[str, Any]) -> None:
    words = {
        key: ",".join(map(str, value)) if isinstance(value, list) else repr(value) if key == "real" else str(value)
        for key, value in data.items()
        if value != []
    }
    bound = bind_options(Everything, words, "x")
    for key in words:
        assert getattr(bound, key) == (tuple(data[key]) if key == "numbers" else data[key])


@given(st.sampled_from(["whole", "rounds", "real", "wait_s", "flag", "level", "mode", "numbers", "sizes"]), texts)
def test_other_text_is_refused_with_the_option(key: str, text: str) -> None:
    try:
        bound = bind_options(Everything, {key: text}, "torch")
    except ConfigError as error:
        assert str(error).startswith(f"torch: option {key}")
        assert "\n" not in str(error)
        return
    value = getattr(bound, key)
    if key in ("whole", "rounds"):
        assert value == int(text)
    elif key in ("real", "wait_s"):
        assert value == float(text) and math.isfinite(value)
    elif key == "flag":
        assert value is (text.lower() in ("true", "yes", "on", "1"))
    elif key in ("level", "mode"):
        assert value == text
    elif key == "numbers":
        assert value == tuple(int(item.strip()) for item in text.split(","))
    else:
        assert value


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"rounds": "two"}, "torch: option rounds: must be an integer >= 3, got 'two'"),
        ({"rounds": "1_000"}, "torch: option rounds: must be an integer >= 3, got '1_000'"),
        ({"wait_s": "nan"}, "torch: option wait_s: must be a number > 0 and <= 60 (seconds), got 'nan'"),
        ({"flag": "maybe"}, "torch: option flag: must be true or false, got 'maybe'"),
        ({"numbers": "1,x"}, "torch: option numbers[1]: must be an integer, got 'x'"),
        ({"sizes": "a"}, "torch: option sizes: must be NAME=VALUE,..., got 'a'"),
        ({"sizes": "a=b"}, "torch: option sizes.a: must be an integer, got 'b'"),
        ({"mode": "eagre"}, "torch: option mode: unknown value 'eagre'; did you mean eager? (known: compile, eager)"),
        ({"tekst": "a"}, f"torch: unknown option 'tekst'; did you mean text? (known: {KEYS})"),
    ],
)  # fmt: skip
def test_an_error_about_an_option_names_it(words: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}$"):
        bind_options(Everything, words, "torch")


@pytest.mark.parametrize("word", ["true", "Yes", "ON", "1"])
def test_words_for_true(word: str) -> None:
    assert bind_options(Everything, {"flag": word}, "x").flag


def test_lists_and_mappings_as_text() -> None:
    bound = bind_options(Everything, {"numbers": "1, 2", "sizes": "x=1, ids.2=16", "file": "a"}, "x")
    assert (bound.numbers, bound.sizes, bound.file) == ((1, 2), {"x": 1, "ids.2": 16}, Path("a"))


# YAML


def test_yaml_errors_name_file_line_and_column_and_quote_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text, problem in (
        ("a: 1\nb: {c: 1, c: 2}\n", r"c\.yaml, line 2, column 11: the key 'c' is given twice$"),
        ("token: hush\na: b: c\n", r"c\.yaml, line 2, column 5: mapping values are not allowed here$"),
        ("? [hush]\n: 1\n", r"c\.yaml, line 1, column 3: found unhashable key$"),
        ("a: [hush", r"c\.yaml, line 1, column 9: "),
        ("a: \x01hush", r"c\.yaml: is not valid YAML"),
        ("!!python/object:os.system {}\n", r"c\.yaml, line 1, column 1: could not determine a constructor"),
        (f"{'[' * sys.getrecursionlimit()}", r"c\.yaml: is not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=problem) as caught:
            read_yaml(path)
        assert "hush" not in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"c\.yaml: is not UTF-8 text"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_yaml_values(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: [1, 2.5, true, null, x]\n1: {a: off}\n")
    assert read_yaml(path) == {"a": [1, 2.5, True, None, "x"], 1: {"a": False}}
    path.write_text("")
    assert read_yaml(path) is None


@pytest.mark.parametrize(("text", "problem"), HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_hostile_yaml_is_one_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_yaml(tmp_path / "plan.yaml")
    assert "\n" not in str(caught.value)
