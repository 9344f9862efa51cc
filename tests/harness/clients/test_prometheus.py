"""The client describes wrong answers, retries where that helps, and never shows secrets."""

from __future__ import annotations

import argparse
import json
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import responses

from joulewatch_harness.clients.options import (
    PrometheusOptions,
    add_prometheus_arguments,
    load_options,
    options_from_args,
    without_secrets,
)
from joulewatch_harness.clients.prometheus import PrometheusClient
from joulewatch_harness.errors import (
    ConfigError,
    QueryError,
    QueryRangeError,
    QueryTooLargeError,
    QueryUnavailableError,
)

BASE = "http://server:9090/prometheus"
QUERY = f"{BASE}/api/v1/query"
VECTOR = {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "1"]}]}}


class FakeTime:
    """Time that passes only in sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds


@pytest.fixture
def server() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


def client(time: FakeTime | None = None, retry_s: float = 60.0, **values: Any) -> PrometheusClient:
    time = time or FakeTime()
    return PrometheusClient(
        PrometheusOptions(BASE, **values),
        retry_s=retry_s,
        sleep=time.sleep,
        monotonic=lambda: time.now_s,
        jitter=lambda: 0.5,
    )


def test_a_query_goes_below_the_path_with_headers_and_params(server: responses.RequestsMock) -> None:
    server.post(
        QUERY,
        json=VECTOR,
        match=[
            responses.matchers.header_matcher({"X-Scope-OrgID": "lab"}),
            responses.matchers.urlencoded_params_matcher({"dedup": "true", "query": "up", "time": "1.500"}),
        ],
    )
    with client(headers={"X-Scope-OrgID": "lab"}, params={"dedup": "true"}) as prometheus:
        assert prometheus.query("up", 1.5) == VECTOR["data"]["result"]  # type: ignore[index]


def test_basic_auth_and_bearer_come_from_files(server: responses.RequestsMock, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pässword\n")
    server.post(QUERY, json=VECTOR)
    with client(username="me", password_file=tmp_path / "secret") as prometheus:
        prometheus.query("1")
        assert "pässword" not in repr(prometheus)
    assert server.calls[0].request.headers["Authorization"].startswith("Basic ")
    with client(bearer_token_file=tmp_path / "secret") as prometheus:
        prometheus.query("1")
    assert server.calls[1].request.headers["Authorization"] == "Bearer pässword"


def test_netrc_does_not_override_the_configured_credentials(
    server: responses.RequestsMock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine server login x password y\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.post(QUERY, json=VECTOR)
    with client() as prometheus:
        prometheus.query("1")
    assert "Authorization" not in server.calls[0].request.headers


@pytest.mark.parametrize(
    ("url", "compressed"),
    [
        ("http://localhost:9090", False),
        ("http://127.0.0.1:9090/prometheus", False),
        ("http://[::1]:9090", False),
        ("http://server:9090", True),
    ],
)
def test_only_another_machine_compresses_its_answers(
    server: responses.RequestsMock, url: str, compressed: bool
) -> None:
    server.post(f"{url}/api/v1/query", json=VECTOR)
    with PrometheusClient(PrometheusOptions(url)) as prometheus:
        prometheus.query("1")
    assert ("gzip" in server.calls[0].request.headers["Accept-Encoding"]) is compressed


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_retried_and_retry_after_is_honoured(server: responses.RequestsMock, status: int) -> None:
    server.post(QUERY, status=status, headers={"Retry-After": "7"}, body="busy")
    server.post(QUERY, body=requests.ConnectionError(OSError(111, "Connection refused")))
    server.post(QUERY, json=VECTOR)
    time = FakeTime()
    with client(time) as prometheus:
        prometheus.query("1")
    assert time.sleeps == [7.0, 0.5]


def test_retries_end_at_the_deadline_with_the_last_reason(server: responses.RequestsMock) -> None:
    server.post(QUERY, status=503, json={"status": "error", "errorType": "timeout", "error": "query timed out"})
    time = FakeTime()
    with client(time, retry_s=10) as prometheus, pytest.raises(QueryUnavailableError, match="timeout: query timed out"):
        prometheus.query("1")
    assert time.now_s <= 10
    assert len(time.sleeps) > 3


def test_the_error_about_an_unreachable_server_has_no_parameters(server: responses.RequestsMock) -> None:
    server.get(
        f"{BASE}/api/v1/targets", body=requests.ConnectionError("http://server/?token=hush", OSError(111, "refused"))
    )
    with client(retry_s=0, params={"token": "hush"}) as prometheus, pytest.raises(QueryUnavailableError) as caught:
        prometheus.get("/api/v1/targets")
    assert str(caught.value) == f"{BASE}/api/v1/targets: cannot be reached: refused"
    assert caught.value.__suppress_context__


def test_errors_contain_the_text_of_the_server(server: responses.RequestsMock) -> None:
    server.post(QUERY, status=400, json={"status": "error", "errorType": "bad_data", "error": "parse error: x"})
    server.post(QUERY, status=422, json={"status": "error", "errorType": "execution", "error": "too many samples"})
    with client() as prometheus:
        with pytest.raises(QueryError, match="HTTP 400 bad_data: parse error: x") as caught:
            prometheus.query("x")
        assert not isinstance(caught.value, (QueryTooLargeError, QueryUnavailableError))
        with pytest.raises(QueryTooLargeError, match="HTTP 422 execution: too many samples"):
            prometheus.query("x")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, "<!doctype html><html>hello", "text/html"),
        (404, "404 page not found", "text/plain"),
        (200, '{"hello": 1}', "application/json"),
        (200, "[1]", "application/json"),
    ],
)
def test_a_server_that_is_not_a_prometheus_is_an_error(
    server: responses.RequestsMock, status: int, body: str, kind: str
) -> None:
    server.post(QUERY, status=status, body=body, content_type=kind)
    with client() as prometheus, pytest.raises(QueryError, match="does not answer like a Prometheus") as caught:
        prometheus.query("1")
    assert BASE in str(caught.value)
    assert kind in str(caught.value)
    assert caught.value.exit_code == 2


def test_refused_credentials_and_redirects_are_errors(server: responses.RequestsMock) -> None:
    server.post(QUERY, status=401, body="Unauthorized")
    server.post(QUERY, status=302, headers={"Location": "https://user:pw@login/?next=1"})
    with client() as prometheus:
        with pytest.raises(QueryError, match=r"HTTP 401.*password_file"):
            prometheus.query("1")
        with pytest.raises(
            QueryError, match="redirects to https://login/: give the URL that answers without a redirect"
        ) as caught:
            prometheus.query("1")
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("location", ["http://[::1/", "//[\x1b[31m"])
def test_a_redirect_to_an_invalid_url_is_an_error(server: responses.RequestsMock, location: str) -> None:
    server.post(QUERY, status=302, headers={"Location": location})
    with client() as prometheus, pytest.raises(QueryError, match="redirects to") as caught:
        prometheus.query("1")
    assert str(caught.value).isprintable()


SAMPLES = {"metric": {"a": "b"}, "values": [[1, "1"], [2.5, "NaN"]]}


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(7, id="a-number"),
        pytest.param({**SAMPLES, "metric": 5}, id="labels-a-number"),
        pytest.param({**SAMPLES, "metric": {"a": {}}}, id="a-label-is-a-mapping"),
        pytest.param({**SAMPLES, "values": "x"}, id="samples-a-text"),
        pytest.param({**SAMPLES, "values": [[1]]}, id="a-sample-without-value"),
        pytest.param({**SAMPLES, "values": [[1, "x"]]}, id="a-value-that-is-no-number"),
        pytest.param({**SAMPLES, "values": [["1", "1"]]}, id="a-time-in-quotes"),
        pytest.param({"metric": {}}, id="no-samples"),
    ],
)
def test_a_malformed_result_is_an_error(server: responses.RequestsMock, series: object) -> None:
    data = {"resultType": "matrix", "result": [SAMPLES, series]}
    server.post(QUERY, json={"status": "success", "data": data})
    with client() as prometheus, pytest.raises(QueryError, match="does not answer like a Prometheus"):
        prometheus.query("1")


def test_warnings_are_logged_once(server: responses.RequestsMock, caplog: pytest.LogCaptureFixture) -> None:
    server.post(QUERY, json={**VECTOR, "warnings": ["store gateway lost"]})
    with caplog.at_level(logging.WARNING), client() as prometheus:
        prometheus.query("1")
        prometheus.query("1")
    assert caplog.text.count("store gateway lost") == 1


def test_ping_falls_back_to_a_query_without_build_information(server: responses.RequestsMock) -> None:
    server.get(f"{BASE}/api/v1/status/buildinfo", json={"status": "success", "data": {"version": "2.42.0"}})
    with client() as prometheus:
        assert prometheus.ping() == "2.42.0"
    server.replace(responses.GET, f"{BASE}/api/v1/status/buildinfo", status=404, body="404 page not found")
    server.post(QUERY, json=VECTOR)
    with client() as prometheus:
        assert prometheus.ping() == ""


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("server:9090", "is not a valid URL"),
        ("ftp://server", "is not a valid URL"),
        ("http://", "is not a valid URL"),
        ("http://server:port", "is not a valid URL"),
        ("http://me:hush@server", "must not contain a user name or a password"),
        ("http://server/?x=1", "must be a base URL"),
    ],
)
def test_the_error_about_a_bad_url_never_contains_a_password(url: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        PrometheusOptions(url)
    assert "hush" not in str(caught.value)


def test_secrets_are_in_no_repr() -> None:
    options = PrometheusOptions(BASE, headers={"Authorization": "hush"}, params={"token": "hush"})
    assert "hush" not in repr(options)
    assert without_secrets("https://me:hush@host/path?token=hush#x") == "https://host/path"


@pytest.mark.parametrize("url", ["https://host/\x1b[31m", "https://host/\x9b31m", "//[\x07"])
def test_a_url_of_a_server_does_not_control_the_terminal(url: str) -> None:
    assert without_secrets(url).isprintable()


def test_options_from_a_file_and_a_flag(tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text("url: http://a:1\nusername: me\npassword_file: pw\nheaders: {X-Scope-OrgID: 7}\ntimeout_s: 5\n")
    parser = argparse.ArgumentParser()
    add_prometheus_arguments(parser)
    args = parser.parse_args([f"--prometheus.config={config}", "--prometheus=http://b:2/"])
    options = options_from_args(args)
    assert options == PrometheusOptions(
        "http://b:2", username="me", password_file=tmp_path / "pw", headers={"X-Scope-OrgID": "7"}, timeout_s=5.0
    )
    assert options_from_args(parser.parse_args([])) is None
    with pytest.raises(ConfigError, match=r"^--prometheus: 'b' is not a valid URL"):
        options_from_args(parser.parse_args([f"--prometheus.config={config}", "--prometheus=b"]))
    assert load_options(None, config).url == "http://a:1"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_name: x\n", r"c\.yml: unknown key 'user_name'; did you mean username"),
        ("[]\n", r"c\.yml: must be a mapping, got \[\]"),
        ("a: b: c\n", r"c\.yml, line 1, column 5: mapping values are not allowed here"),
        ("insecure: false\ninsecure: true\n", "the key 'insecure' is given twice"),
        ("insecure: 3\n", r"c\.yml: insecure: must be true or false, got 3"),
        ("timeout_s: true\n", r"timeout_s: must be a number > 0 and <= 3600 \(seconds\), got true"),
        ("headers: hush\n", r"c\.yml: headers: must be a mapping$"),
        ("headers: {Authorization: [hush]}\n", r"c\.yml: headers\.Authorization: must be a string$"),
        ("username: x\n", r"c\.yml: username: requires a password_file"),
        ("key_file: x\n", r"c\.yml: key_file: requires a cert_file"),
        ("insecure: true\nca_file: x\n", "contradict"),
        ("pushgateway: {user: x}\n", r"c\.yml: pushgateway: unknown key 'user'; did you mean username"),
        ("remote_write_url: x\n", r"c\.yml: remote_write_url: 'x' is not a valid URL"),
        ("match: {a-b: x}\n", r"c\.yml: match: 'a-b' is not a valid label name$"),
        ("match: cluster=x\n", r"c\.yml: match: must be a mapping, got 'cluster=x'"),
    ],
)
def test_errors_about_a_configuration_file_have_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "c.yml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_options(BASE, config)
    assert "hush" not in str(caught.value)


def test_match_restricts_a_server(tmp_path: Path) -> None:
    config = tmp_path / "c.yml"
    config.write_text(f"url: {BASE}\nmatch: {{cluster: x, rack: 7, draft: yes}}\n")
    parser = argparse.ArgumentParser()
    add_prometheus_arguments(parser)
    words = [f"--prometheus.config={config}", "--match", "cluster=y=z", "--match=site="]
    options = options_from_args(parser.parse_args(words))
    assert options is not None
    assert options.match == {"cluster": "y=z", "rack": "7", "draft": "true", "site": ""}
    assert load_options(BASE, None, ["cluster=x", "cluster=x"]) == PrometheusOptions(BASE, match={"cluster": "x"})
    with pytest.raises(ConfigError, match="--match restricts a Prometheus, but --prometheus is not given"):
        options_from_args(parser.parse_args(["--match=cluster=x"]))


@pytest.mark.parametrize(
    "word", ["cluster", "=x", "", "a-b=x", "cluster!=x", "cluster=~x.*", 'cluster="x"', "__name__=x"]
)
def test_bad_syntax_of_match_is_one_clear_line(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_options(BASE, None, [word])
    text = "must be LABEL=VALUE without quotes or wildcards, such as cluster=x"
    assert str(caught.value) == f"--match {word!r}: {text}"
    with pytest.raises(ConfigError, match=r"^--match: cluster has two values, 'x' and 'y'$"):
        load_options(BASE, None, ["cluster=x", "cluster=y"])


def test_errors_about_missing_files_have_key_and_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bearer_token_file: .*none cannot be read: No such file"):
        client(bearer_token_file=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"ca_file: .*none cannot be read: No such file"):
        client(ca_file=tmp_path / "none")
    with pytest.raises(ConfigError, match="has no url, and --prometheus is not given"):
        (tmp_path / "c.yml").write_text(json.dumps({"insecure": False}))
        load_options(None, tmp_path / "c.yml")


def test_the_pushgateway_has_separate_options(tmp_path: Path) -> None:
    (tmp_path / "c.yml").write_text(
        "url: http://a\nusername: me\npassword_file: a\npushgateway: {username: you, password_file: b, timeout_s: 1}\n"
    )
    options = load_options(None, tmp_path / "c.yml")
    assert options is not None
    assert options.for_pushgateway("http://g:9091/") == PrometheusOptions(
        "http://g:9091", username="you", password_file=tmp_path / "b", timeout_s=1.0
    )
    assert PrometheusOptions(BASE, username="me", password_file=Path("a")).for_pushgateway("http://g").username == ""
    with pytest.raises(ConfigError, match=r"^--pushgateway: 'g' is not a valid URL"):
        options.for_pushgateway("g")


def test_certificates_are_checked_before_the_first_request(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a certificate")
    for key in ("ca_file", "cert_file"):
        options = PrometheusOptions("https://server", **{key: tmp_path / "text"})
        with pytest.raises(
            ConfigError, match=rf"^{key}: .*text (does not contain a certificate|and its key cannot be)"
        ):
            options.tls()
    options = PrometheusOptions("https://server", cert_file=tmp_path / "text", key_file=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"^key_file: .*none cannot be read: No such file"):
        options.tls()
    assert PrometheusOptions("https://server", insecure=True).tls().verify_mode == ssl.CERT_NONE
    assert PrometheusOptions("https://server").tls().verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize("status", [405, 501])
def test_a_server_that_accepts_only_get_gets_get(server: responses.RequestsMock, status: int) -> None:
    server.post(QUERY, status=status, body="Method Not Allowed")
    server.get(
        QUERY, json=VECTOR, match=[responses.matchers.query_param_matcher({"query": "up", "time": "1.000", "x": "y"})]
    )
    with client(params={"x": "y"}) as prometheus:
        for _ in range(2):
            assert prometheus.query("up", 1.0) == VECTOR["data"]["result"]  # type: ignore[index]
    assert [call.request.method for call in server.calls] == ["POST", "GET", "GET"]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (422, "expanding series: the query time range exceeds the limit (query length: 2160h0m0s, limit: 768h0m0s)"),
        (400, "the query time range exceeds the limit (query length: 2160h0m0s, limit: 768h0m0s)"),
        (400, "Query range must be at most 32 days"),
        (500, "too long query duration: maximum range is 32d"),
    ],
)
def test_a_range_that_is_too_long_is_recognised(server: responses.RequestsMock, status: int, text: str) -> None:
    server.post(QUERY, status=status, json={"status": "error", "errorType": "bad_data", "error": text})
    with client(retry_s=0) as prometheus, pytest.raises(QueryRangeError):
        prometheus.query("up[90d]", 1.0)


def test_all_requests_of_a_client_together_retry_for_a_limited_time(server: responses.RequestsMock) -> None:
    server.post(QUERY, status=503, body="busy")
    time = FakeTime()
    with client(time) as prometheus:
        for _ in range(100):
            with pytest.raises(QueryUnavailableError):
                prometheus.query("1")
        assert 250 < time.now_s < 320
        with pytest.raises(QueryUnavailableError, match=r"HTTP 503, text/plain, begins \"busy\"$"):
            prometheus.query("1")


def test_an_error_after_retries_states_their_number(server: responses.RequestsMock) -> None:
    server.post(QUERY, status=503, body="busy")
    with client(retry_s=10) as prometheus, pytest.raises(QueryUnavailableError, match=r"\(6 attempts in 8 s\)$"):
        prometheus.query("1")


def test_a_proxy_of_the_environment_is_named(server: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:hush@proxy.example:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    server.post(QUERY, body=requests.ConnectionError(OSError(111, "Connection refused")))
    server.post(QUERY, status=407, body="<html>")
    for _ in range(2):
        with (
            client(retry_s=0) as prometheus,
            pytest.raises(QueryError, match=r"proxy http://proxy\.example:3128") as caught,
        ):
            prometheus.query("1")
        assert "hush" not in str(caught.value)


def test_texts_of_the_server_are_escaped_and_cut(server: responses.RequestsMock) -> None:
    server.post(QUERY, status=400, json={"status": "error", "errorType": "\x1b[2J", "error": "\x07" + "x" * 5000})
    with client() as prometheus, pytest.raises(QueryError, match=r"HTTP 400 \\x1b\[2J: \\x07xxx") as caught:
        prometheus.query("1")
    assert len(str(caught.value)) < 500
