"""The argument parser: suggestions for misspelt words, examples in the help."""

from __future__ import annotations

import argparse

import pytest

from joulewatch_exporter.arguments import Parser, number, suggestion


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="tool", examples=(("tool run --fast", "run it fast"),), allow_abbrev=False)
    parser.add_argument("--listen-address")
    parser.add_argument("--level", choices=("low", "high"))
    commands = parser.add_subparsers(dest="command", parser_class=Parser)
    run = commands.add_parser("run")
    run.add_argument("--fast", action="store_true")
    run.add_argument("words", nargs="*")
    return parser


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--listen-addres", ":1"], "tool: unknown flag --listen-addres; did you mean --listen-address?"),
        (["--listen-addres=:1"], "tool: unknown flag --listen-addres; did you mean --listen-address?"),
        (["--listen"], "tool: unknown flag --listen; did you mean --listen-address?"),
        (["--zzz"], "tool: unknown flag --zzz\n"),
        (
            ["--level", "hihg"],
            "tool: argument --level: invalid value 'hihg'; did you mean high? (choose from low, high)",
        ),
        (["ru"], "tool: unknown command 'ru'; did you mean run? (commands: run)"),
        (["run", "--fats"], "tool run: unknown flag --fats; did you mean --fast?"),
        (["run", "--fast", "--zzz"], "tool run: unknown flag --zzz\n"),
    ],
)
def test_a_misspelt_word_suggests_the_nearest(
    parser: Parser, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(text)
    assert error.count("\n") == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--zzz=1"], "unknown flag --zzz; if it is the value of --listen-address, write --listen-address=--zzz=1\n"),
        (["--level"], "argument --listen-address: expected one argument; if its value begins with -, write "),
        (["-x"], "argument --listen-address: expected one argument; if its value begins with -, write "),
        ([], "argument --listen-address: expected one argument; if its value begins with -, write "),
    ],
)
def test_a_value_that_looks_like_a_flag_needs_an_equals_sign(
    parser: Parser, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["--listen-address", *words])
    assert capsys.readouterr().err.startswith(f"tool: {text}")
    assert parser.parse_args(["--listen-address=--zzz=1"]).listen_address == "--zzz=1"


@pytest.mark.parametrize(
    ("words", "prog"),
    [(["--listen-address", ""], "tool"), (["--listen-address="], "tool"), (["run", ""], "tool run")],
)
def test_an_empty_value_does_not_select_the_default(
    parser: Parser, words: list[str], prog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(words)
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith(f"{prog}: argument ")
    assert ": the value is empty; is a shell variable unset?\n" in text


def test_what_is_right_is_parsed(parser: Parser) -> None:
    args = parser.parse_args(["--listen-address=:1", "--level", "low", "run", "--fast", "--", "--no-flag"])
    assert (args.listen_address, args.level, args.command, args.fast) == (":1", "low", "run", True)
    assert args.words == ["--no-flag"]


def test_flags_for_another_command_are_a_value(parser: Parser) -> None:
    """As in ``joulewatch profile --exporter.flags "--path.sysfs=/x --once"``."""
    assert parser.parse_args(["--listen-address", "--unknown=1 --flags"]).listen_address == "--unknown=1 --flags"


def test_abbreviations_pass_where_they_are_allowed(parser: Parser) -> None:
    parser.allow_abbrev = True
    assert parser.parse_args(["--listen", ":1"]).listen_address == ":1"


def test_the_help_ends_with_the_examples(parser: Parser) -> None:
    assert parser.format_help().endswith("\nexamples:\n  tool run --fast\n      run it fast\n")


@pytest.mark.parametrize(
    ("limits", "text", "message"),
    [
        ({}, "nan", "must be a number, got 'nan'"),
        ({"gt": 0}, "0", "must be a number > 0, got '0'"),
        ({"ge": 0, "le": 100}, "100.1", "must be a number >= 0 and <= 100, got '100.1'"),
        ({"ge": 0.5}, "0,7", "must be a number >= 0.5, got '0,7'"),
    ],
)
def test_a_number_is_finite_and_within_its_limits(limits: dict[str, float], text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        number(**limits)(text)
    assert str(caught.value) == message


def test_a_number_may_be_equal_to_a_limit() -> None:
    assert [number(ge=0, le=100)(text) for text in ("0", "1e2")] == [0.0, 100.0]


def test_far_words_suggest_nothing() -> None:
    assert suggestion("abc", ["xyz"]) == ""
