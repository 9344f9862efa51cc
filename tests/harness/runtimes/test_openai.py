"""OpenAI's API without a network: streams, counting, and joules per token. Servers: tests/integration."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulewatch_harness.analysis.reports import to_csv, to_json, to_text
from joulewatch_harness.analysis.results.summary import analyze_run
from joulewatch_harness.errors import ConfigError, NetworkError
from joulewatch_harness.network import Phases
from joulewatch_harness.plan.parsing import make_plan
from joulewatch_harness.records import Configuration, Window, decode_line, encode_line
from joulewatch_harness.runtimes import as_loaded, open_network
from joulewatch_harness.runtimes.openai import network as openai
from joulewatch_harness.runtimes.openai.network import Events, Generated, StreamError, read_stream
from joulewatch_harness.runtimes.openai.options import APIS, Options
from support.openai_sender import DONE, STREAM, URL, USAGE, FakeSender, chunk, event, page
from support.runs import window
from support.synthetic import TWO_SOCKETS, make_world


def read(pieces: Sequence[bytes], step_ns: int = 100) -> Generated:
    """Each piece arrives 100 ns after the one before it; the first at 200."""
    ticks = itertools.count(100, step_ns)
    return read_stream(iter(pieces), lambda: next(ticks))


# Streams


def test_the_first_token_is_the_first_text_and_usage_counts() -> None:
    answer = read(STREAM)
    assert answer == Generated(
        first_ns=400, end_ns=700, pieces=2, prompt_tokens=7, output_tokens=3, cached_tokens=2, model="m"
    )


@given(st.lists(st.integers(1, 300), max_size=20))
def test_pieces_of_any_size_are_the_same_events(cuts: list[int]) -> None:
    whole = b"".join(STREAM).replace(b"\n", b"\r\n", 3)
    pieces, rest = [], whole
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    answer = read([*(piece for piece in pieces if piece), *([rest] if rest else [])])
    assert (answer.pieces, answer.output_tokens, answer.prompt_tokens) == (2, 3, 7)


def test_events_by_their_rules() -> None:
    events = Events()
    assert list(events.feed(b"event: x\ndata:a\ndata: b\n: c\n\n\n\nid: 7\n\ndata")) == ["a\nb"]
    assert list(events.feed(b": last\n")) == []
    assert list(events.end()) == ["last"]


@pytest.mark.parametrize(
    ("choice", "counts"),
    [
        ({"text": " a"}, True),
        ({"text": ""}, False),
        ({"delta": {"content": None}}, False),
        ({"delta": {"reasoning_content": "hm"}}, True),
        ({"delta": {"reasoning": "hm"}}, True),
        ({"delta": {"tool_calls": [{"id": "1"}]}}, True),
        ("text", False),
    ],
)
def test_only_text_counts_as_a_token(choice: Any, counts: bool) -> None:
    assert openai._has_text(choice) is counts


def test_a_server_that_ends_without_done_or_sends_null_choices() -> None:
    """vLLM has had ``choices: null`` in its last chunk; some servers send no [DONE]."""
    answer = read([event(chunk("a", "stop")), b'data: {"choices": null, "usage": {"completion_tokens": 1}}'])
    assert (answer.output_tokens, answer.prompt_tokens, answer.cached_tokens) == (1, 0, 0)


def test_tokens_are_never_guessed() -> None:
    for usage in (None, {}, {"completion_tokens": None}, {"completion_tokens": "3"}, {"completion_tokens": True}):
        assert read([event(chunk("a", "stop"), usage=usage), DONE]).output_tokens is None


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (
            [event(chunk("a")), event(chunk("b"))],
            "ended after 2 pieces, without .DONE. or a finish_reason: it was cut off",
        ),
        ([b'{"choices": []}'], "is not an event stream .it begins"),
        ([], "is not an event stream"),
        ([b"data: <html>\n\n"], "not valid JSON: it begins"),
        ([b"data: [1]\n\n"], "not an object: it begins"),
        ([event(chunk("a")), b'data: {"error": {"message": "out of memory"}}\n\n'], "after 1 piece: out of memory"),
        ([b'data: {"error": "stopped"}\n\n'], "after 0 pieces: stopped"),
        ([b'data: {"error": "\\u001b[2J"}\n\n'], r"after 0 pieces: \\x1b\[2J"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], "not valid JSON: it begins"),
        ([b'data: {"choices": 5}\n\n'], "choices in an event of the stream are invalid"),
        ([b'data: {"choices": [5]}\n\n'], "choices in an event of the stream are invalid"),
        ([b"data: ", *[b"x" * 65536] * 17], "a line of the stream is longer than 1 MiB"),
    ],
    ids=range(12),
)
def test_invalid_streams_are_named(pieces: list[bytes], text: str) -> None:
    with pytest.raises(StreamError, match=text):
        read(pieces)


# The network


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSender:
    sender = FakeSender(Options.parse({"url": URL}).where)
    monkeypatch.setattr(openai, "Connection", lambda where: sender)
    return sender


def opened(**options: str) -> openai.OpenAINetwork:
    return openai.open_network("m:1b", "native", {"url": URL, **options})


def test_a_model_behind_a_fake_server(fake: FakeSender) -> None:
    asked = Configuration(
        name="n", network="m:1b", runtime="openai", precision="native", options={"url": f"{URL}/v1/", "max_tokens": "3"}
    )
    network = open_network(asked)
    network.load()
    loaded = as_loaded(asked, network.describe())
    assert (loaded.runtime, loaded.runtime_version, loaded.provider) == ("openai", "7.7", "us")
    assert loaded.details["url"] == URL
    assert loaded.details["tokens_counted_by"] == "the server (usage)"
    assert loaded.details["context_tokens"] == "99"
    assert loaded.details["answers_as"] == "m"
    assert network.check()  # type: ignore[attr-defined]
    for batch in (1, 4):
        network.prepare(batch)
        phases = Phases()
        network.run(2, phases)
        assert phases.counts == {"prompt_tokens": 7 * 2 * batch, "output_tokens": 3 * 2 * batch}
        assert {name: count for name, (count, _) in phases.spans.items()} == {"prefill": 2, "decode": 2}
        assert len(phases.batch_ends_ns) == 2
    body = fake.bodies[-1]
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"], body["stream"]) == ("m:1b", 3, 0.0, True)
    assert body["stream_options"] == {"include_usage": True}
    assert "ignore_eos" not in body
    network.close()
    network.close()


def test_prompts_are_unique_unless_salt_is_false(fake: FakeSender, tmp_path: Path) -> None:
    """The same prompt twice would come out of the server's prefix cache: no prefill, and no word of it."""
    (tmp_path / "p.jsonl").write_text('"first"\n\n{"prompt": "second", "id": 4}\n')
    for api, salt in (("chat", "true"), ("completions", "false")):
        network = opened(prompt_file=str(tmp_path / "p.jsonl"), api=api, salt=salt, ignore_eos="true", max_tokens="3")
        network.load()
        network.prepare(1)
        fake.bodies.clear()
        network.run(3, Phases())
        sent = [body["prompt"] if "prompt" in body else body["messages"][0]["content"] for body in fake.bodies]
        assert [text.rpartition("] ")[2] for text in sent] == ["second", "first", "second"]
        assert len(set(sent)) == (3 if salt == "true" else 2)
        assert fake.bodies[0]["ignore_eos"] is True
        assert fake.bodies[0]["path"] == APIS[api]


def test_a_warm_prefix_cache_is_reported(fake: FakeSender, caplog: pytest.LogCaptureFixture) -> None:
    fake.answer = [event(chunk("a", "stop"), usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 6}}), DONE]
    for salt, lines in (("true", 0), ("false", 1)):
        network = opened(salt=salt)
        network.load()
        network.prepare(1)
        network.run(3, Phases())
        assert caplog.text.count("6 of 7 tokens of the prompt were in the server's prefix cache") == lines


def test_a_server_that_does_not_count(fake: FakeSender) -> None:
    fake.answer = [event(chunk("a")), event(chunk("b", "stop")), DONE]
    with pytest.raises(ConfigError, match=r"does not count tokens .*count_chunks=true .*not tokens"):
        opened().load()
    network = opened(count_chunks="true")
    network.load()
    assert network.describe()["tokens_counted_by"] == "not counted: pieces of the stream instead (count_chunks)"
    network.prepare(2)
    phases = Phases()
    network.run(1, phases)
    assert phases.counts == {"output_pieces": 4}, "pieces are not called tokens"


def test_a_server_that_stops_counting_in_the_middle(fake: FakeSender) -> None:
    network = opened(count_chunks="true")
    network.load()
    network.prepare(1)
    fake.answer = [event(chunk("a", "stop")), DONE]
    with pytest.raises(NetworkError, match="a stream without usage, although earlier streams had it"):
        network.run(1, Phases())


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (page({"error": "no key sk-s3cret"}, 401), ConfigError, r"HTTP 401: no key \*\*\*: check .* api_key_file"),
        (page({"detail": "Not Found"}, 404), ConfigError, "the model or the chat API does not exist .options url"),
        (page({"error": {"message": "stream_options?"}}, 400), ConfigError, "HTTP 400: stream_options"),
        (page({"error": "slow down"}, 429), NetworkError, "limits requests"),
        (page({"error": "engine died"}, 500), NetworkError, "HTTP 500: engine died: see the server's log"),
        ([event(chunk("a"))], NetworkError, "chat/completions: the stream ended after 1 piece"),
        ([b"<html>"], NetworkError, "chat/completions: the answer is not an event stream"),
    ],
)  # fmt: skip
def test_servers_that_fail_are_named(
    fake: FakeSender, tmp_path: Path, answer: Any, error: type[Exception], text: str
) -> None:
    (tmp_path / "key").write_text("sk-s3cret\n")
    fake.answer = answer
    network = opened(api_key_file=str(tmp_path / "key"))
    with pytest.raises(error, match=text) as caught:
        network.load()
    assert URL in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_models_that_are_not_there(fake: FakeSender) -> None:
    with pytest.raises(ConfigError, match="unknown model 'm:2b'; did you mean m:1b"):
        openai.open_network("m:2b", "native", {"url": URL}).load()
    fake.pages["/v1/models"] = page({"error": "who"}, 403)
    with pytest.raises(ConfigError, match="/v1/models: HTTP 403: who: check the option api_key_file"):
        opened().load()
    fake.pages = {}
    network = opened()
    network.load()
    assert "provider" not in network.describe()
    network.close()


def test_answers_that_are_too_short_or_too_long(fake: FakeSender) -> None:
    for options, text in (
        ({"max_tokens": "2"}, "3 tokens, but at most 2 were requested"),
        ({"max_tokens": "9", "ignore_eos": "true"}, "3 of 9 tokens: this server does not support ignore_eos"),
    ):
        network = opened(**options)
        network.load()
        with pytest.raises(NetworkError, match=text):
            network.check()
    fake.answer = [event(finish_reason="stop"), event(usage={"prompt_tokens": 7, "completion_tokens": 0}), DONE]
    network = opened()
    network.load()
    with pytest.raises(NetworkError, match="the answer of m:1b has no token"):
        network.check()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": ""}, "option url: is required"),
        ({"url": "grpc://localhost:8001"}, "option url: .*gRPC is not supported; give the server.s HTTP port"),
        ({"max_token": "3"}, "did you mean max_tokens"),
        ({"max_tokens": "0"}, "option max_tokens: must be an integer >= 1, got '0'"),
        ({"api": "chats"}, "did you mean chat"),
        ({"temperature": "warm"}, "option temperature: must be a number >= 0 and <= 100, got 'warm'"),
        ({"prompt": "a", "prompt_file": "b"}, "prompt and prompt_file contradict each other"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt_file": "none.txt"}, r"none\.txt cannot be read: No such file"),
        ({"prompt_file": "bad.jsonl"}, r"bad\.jsonl, line 2: must be a string"),
        ({"api_key_file": "none.txt"}, r"none\.txt cannot be read: No such file"),
        ({"api_key_file": "bad.jsonl"}, r"bad\.jsonl must contain exactly one line"),
        ({"salt": "pepper"}, "option salt: must be true or false"),
    ],
)
def test_bad_options_are_named(
    options: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('"fine"\n{"text": "no prompt"}\n')
    with pytest.raises(ConfigError, match=text):
        Options.parse({"url": URL, **options})


def test_the_name_of_a_model_with_a_colon_is_whole() -> None:
    plan = make_plan({"configurations": [{"network": "llama3.2:1b", "runtime": "openai"}]}, "x")
    assert plan.configurations[0].name == "llama3.2:1b/openai/native"


# Joules per token


def test_counts_go_through_the_journal() -> None:
    recorded = window(0, 100.0, counts={"output_tokens": 320})
    line = encode_line(recorded)
    assert line["counts"] == {"output_tokens": 320}
    assert decode_line(line) == recorded
    del line["counts"]
    older = decode_line(line)
    assert isinstance(older, Window)
    assert older.counts == {}


def test_joules_for_each_token_are_energy_over_tokens() -> None:
    """Tokens differ from window to window: the mean is over rounds, of each window's own ratio."""
    world = make_world(TWO_SOCKETS)
    assert world.record is not None
    windows = tuple(
        dataclasses.replace(item, counts={"output_tokens": item.inferences * (2 + item.repeat), "odd": 0})
        if item.kind == "measure"
        else item
        for item in world.record.windows
    )
    record = dataclasses.replace(world.record, windows=windows)
    result = analyze_run(record, None)
    plain = analyze_run(world.record, None)
    for group, without in zip(result.groups, plain.groups, strict=True):
        assert without.counts == ()
        (tokens,) = group.counts
        used = [windows[index] for index in group.windows]
        assert tokens.name == "output_tokens"
        assert tokens.count == sum(item.counts["output_tokens"] for item in used)
        assert tokens.gross is not None and tokens.net is not None and group.total.gross is not None
        joules = {
            item.index: sum(world.truth_joules(one, item) for one in world.sensors if one.scope == "device")
            for item in used
        }
        truth = sum(joules[item.index] / item.counts["output_tokens"] for item in used) / len(used)
        assert tokens.gross.value == pytest.approx(truth, rel=0.005)
        assert abs(tokens.gross.value - truth) <= tokens.gross.expanded
        assert tokens.net.value < tokens.gross.value
        assert tokens.rate is not None
        assert group.total == without.total
    document = to_json.result_document(result)
    jsonschema.validate(document, to_json.schema())
    assert document["results"][0]["counts"]["output_tokens"]["gross"]["unit"] == "J"
    assert document["results"][0]["counts"]["output_tokens"]["count"] == result.groups[0].counts[0].count
    text = to_text.render_table(result)
    assert "Output tokens (per inf: per inference; total, net:" in text
    head, first, *_ = to_csv.render_csv(result).splitlines()
    row = dict(zip(head.split(","), first.split(","), strict=True))
    assert float(row["output_tokens_gross_joules_each"]) == pytest.approx(result.groups[0].counts[0].gross.value)  # type: ignore[union-attr]
    assert "output_tokens" not in to_csv.render_csv(plain)
    assert "Output tokens" not in to_text.render_table(plain)
