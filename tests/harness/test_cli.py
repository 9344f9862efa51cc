"""The command ``joulewatch``: help without arguments, suggestions, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from joulewatch_harness.cli import EXAMPLES, SUMMARIES, main, make_parser
from joulewatch_harness.networks import BUILTIN


def test_without_arguments_the_help_shows_the_next_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().err
    assert len(EXAMPLES) == 3
    assert all(example in text for example, _ in EXAMPLES)
    assert all(command in text for command in SUMMARIES)


def test_an_example_is_a_command_that_parses() -> None:
    for example, _ in EXAMPLES:
        _, *words = example.split()
        assert make_parser((words[0],)).parse_args(words).command == words[0]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["profil"], "unknown command 'profil'; did you mean profile?"),
        (["--verson"], "unknown flag --verson; did you mean --version?"),
        (["profile", "--presett", "quick"], "unknown flag --presett; did you mean --preset?"),
        (["profile", "--preset", "quik"], "did you mean quick?"),
        (["profile", "--network", "radioml-vgg1"], "did you mean radioml-vgg10?"),
        (["profile", "--runtime", "onxruntime"], "did you mean onnxruntime?"),
        (["profile", "--option", "thread=1"], "did you mean threads?"),
        (["profile", "--scenario", "servr"], "did you mean server?"),
        (["profile", "--phases", "inlin"], "did you mean inline?"),
        (["profile", "--precision", "fp23"], "did you mean fp32?"),
        (["analyze", "x", "--format", "jsn"], "invalid value 'jsn'; did you mean json?"),
        (["profile", "--exporter.flags", '"a'], "argument --exporter.flags: '\"a': No closing quotation"),
        (["sensors", "--exporter.flags", '"a'], "argument --exporter.flags: '\"a': No closing quotation"),
        (["runs", "lst"], "invalid value 'lst'; did you mean list?"),
    ],
)
def test_a_wrong_word_is_named_with_the_nearest(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words)
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 2
    assert text in capsys.readouterr().err


def test_networks_lists_each_network_with_precisions_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["networks"]) == 0
    text = capsys.readouterr().out
    for name, entry in BUILTIN.items():
        assert f"{name} ({', '.join(entry.precisions)}" in text
        assert all(option.meaning.split()[0] in text for option in entry.options.values())
    assert all(len(line) <= 80 for line in text.splitlines())
    assert main(["networks", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in listed] == list(BUILTIN)
    assert all(set(item["options"]) == set(BUILTIN[item["name"]].options) for item in listed)
    assert main(["networks", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("network,option,default,values,meaning\nradioml-vgg10,filters,64,")
