"""Strict configuration: an error names the file, the key and the nearest valid key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from joulewatch_exporter.attribution.sources import SOURCES
from joulewatch_exporter.collectors import FAMILIES
from joulewatch_exporter.config.config import (
    AttributionSettings,
    Config,
    ExporterSettings,
    PathSettings,
    load_config,
    parse_address,
)
from joulewatch_exporter.config.web import is_open_on_purpose, load_web_config
from joulewatch_exporter.errors import ConfigError
from support.fake_family import FakeOptions, Machine, fake_family
from support.paths import ROOT

EXAMPLE = ROOT / "exporter" / "example.yaml"
HASH = "$2b$10$" + "a" * 53
FAKE = [fake_family("rapl", Machine()), fake_family("hwmon", Machine())]


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "exporter.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, FAKE)


def test_the_example_shows_every_setting_with_its_default() -> None:
    import dataclasses

    import yaml

    assert load_config(EXAMPLE, FAMILIES, SOURCES) == load_config(None, FAMILIES, SOURCES)
    data = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert set(data["exporter"]) == {item.name for item in dataclasses.fields(ExporterSettings)}
    assert set(data["exporter"]["path"]) == {item.name for item in dataclasses.fields(PathSettings)}
    for family in FAMILIES:
        keys = {"enabled", "poll_seconds"} | {item.name for item in dataclasses.fields(family.Options)}
        assert set(data["collectors"][family.name]) == keys
    assert set(data["attribution"]) == {item.name for item in dataclasses.fields(AttributionSettings)}
    inherited = {"depth", "workload_names", "allow", "deny"}
    for source in SOURCES:
        keys = {"enabled"} | {item.name for item in dataclasses.fields(source.Options)} - inherited
        assert set(data["attribution"]["sources"][source.name]) == keys


def test_a_host_may_name_its_primary_collector(tmp_path: Path) -> None:
    config = load(tmp_path, """exporter: {primary_node_sensor: {node17: hwmon, "rack3-*": rapl}}""")
    assert config.exporter.primary_node_sensor == {"node17": "hwmon", "rack3-*": "rapl"}


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("{node17: hwmonn}", "node17: unknown collector hwmonn; did you mean hwmon?"),
        ("{node17: 5}", "node17: must be a string, not 5"),
        ("hwmon", "must be a mapping of keys to values, not 'hwmon'"),
    ],
)
def test_an_unknown_primary_collector_is_an_error(tmp_path: Path, value: str, error: str) -> None:
    with pytest.raises(ConfigError, match=rf"exporter\.yaml: exporter\.primary_node_sensor[.:] ?{re.escape(error)}$"):
        load(tmp_path, f"exporter: {{primary_node_sensor: {value}}}")


def test_no_file_and_an_empty_file_are_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    assert config == load_config(None, FAKE)
    assert config.exporter.listen == (":10717",)
    assert config.collectors["rapl"].enabled == "auto"
    assert config.collectors["rapl"].options == FakeOptions()


def test_everything_can_be_set(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        exporter: {listen: "127.0.0.1:9101", max_requests: 3, read_timeout_seconds: 1, log_format: json}
        collectors:
          rapl: {enabled: true, poll_seconds: 5, level: 2, words: [a, b]}
          hwmon: {enabled: false}
        """,
    )
    assert config.exporter.listen == ("127.0.0.1:9101",)
    assert config.exporter.read_timeout_seconds == 1.0
    rapl = config.collectors["rapl"]
    assert (rapl.enabled, rapl.poll_s, rapl.options) == (True, 5.0, FakeOptions(2, ("a", "b")))
    assert config.collectors["hwmon"].enabled is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exportr: {}", "unknown key exportr; did you mean exporter?"),
        ("exporter: {lisen: x}", "unknown key exporter.lisen; did you mean listen?"),
        ("exporter: {zzz: 1}", "unknown key exporter.zzz; valid: listen, "),
        ("exporter: {path: {sysf: /sys}}", "unknown key exporter.path.sysf; did you mean sysfs?"),
        ("collectors: {rapI: {}}", "unknown key collectors.rapI; did you mean rapl?"),
        ("collectors: {rapl: {levle: 1}}", "unknown key collectors.rapl.levle; did you mean level?"),
        ("collectors: {rapl: {enabled: maybe}}", "collectors.rapl.enabled: must be true or false or auto, not 'maybe'"),
        ("collectors: {rapl: {poll_seconds: fast}}", "collectors.rapl.poll_seconds: must be a number or null"),
        ("collectors: {rapl: {poll_seconds: 0}}", "collectors.rapl.poll_seconds: 0 is not between 0.01 and 3600"),
        ("collectors: {rapl: {level: true}}", "collectors.rapl.level: must be a whole number, not True"),
        ("collectors: {rapl: {words: [1]}}", "collectors.rapl.words[0]: must be a string, not 1"),
        ("exporter: {nodename: 2026-11-29}", "must be a string or null, not 2026-11-29 without quotes"),
        ("collectors: {rapl: 3}", "collectors.rapl: must be a mapping of keys to values, not 3"),
        ("exporter: {max_requests: -1}", "exporter.max_requests: -1 is below 0"),
        ("exporter: {max_requests: 1.5}", "exporter.max_requests: must be a whole number, not 1.5"),
        ("exporter: {read_timeout_seconds: 0}", "exporter.read_timeout_seconds: 0 is not above 0"),
        ("exporter: {read_timeout_seconds: .nan}", "exporter.read_timeout_seconds: must be a number, not nan"),
        ("exporter: {nodename: ''}", "exporter.nodename: must not be empty"),
        ("exporter: {rediscover_seconds: -3}", "exporter.rediscover_seconds: -3 is below 0"),
        ("exporter: {listen: []}", "exporter.listen: needs at least one address"),
        ("exporter: {listen: here}", "exporter.listen: 'here' is not a valid address such as :10717"),
        ("exporter: {telemetry_path: metrics}", "exporter.telemetry_path: 'metrics' must be a path such as /metrics"),
        ("exporter: {telemetry_path: /}", "must be a path such as /metrics"),
        ("exporter: {log_level: loud}", "exporter.log_level: must be debug or info or warning or error, not 'loud'"),
        ("exporter: [1]", "exporter: must be a mapping of keys to values, not [1]"),
        ("exporter: {listen: a: b}", "is not valid YAML"),
        ("exporter: {max_requests: 1, max_requests: 2}", "the key 'max_requests' is given twice"),
        ("- 1", "exporter.yaml: must be a mapping"),
        ("1: {}", "the key 1 must be a string"),
    ],
)
def test_an_error_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert str(tmp_path / "exporter.yaml") in str(caught.value)


def test_options_of_a_family_are_checked_by_the_family(tmp_path: Path) -> None:
    path = tmp_path / "exporter.yaml"
    path.write_text("collectors: {estimate: {min_watts: -1}}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"exporter\.yaml.*collectors\.estimate\.min_watts"):
        load_config(path, FAMILIES)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "nope.yaml", FAKE)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--path\.sysfs .*/nope is not a folder"):
        PathSettings(sysfs=tmp_path / "nope").host()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":10717", ("", 10717)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:9101", ("localhost", 9101)),
        ("[::1]:9101", ("::1", 9101)),
        ("[fe80::1%eth0]:9", ("fe80::1%eth0", 9)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "10717", "host", "host:", "host:99999", "::1:9101", "a b:1", "http://x:1"])
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid address"):
        parse_address(text)


# -- web configuration -----------------------------------------------------------------------------


def load_web(tmp_path: Path, text: str) -> object:
    path = tmp_path / "web.yaml"
    path.write_text(text, encoding="utf-8")
    return load_web_config(path)


def test_a_complete_web_configuration(tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem", "ca.pem"):
        (tmp_path / name).touch()
    path = tmp_path / "web.yaml"
    path.write_text(
        f"""
        tls_server_config:
          cert_file: cert.pem
          key_file: key.pem
          client_ca_file: ca.pem
          client_auth_type: RequireAndVerifyClientCert
          min_version: TLS13
        http_server_config: {{http2: true, headers: {{X-Frame-Options: deny}}}}
        basic_auth_users: {{alice: {HASH}}}
        """,
        encoding="utf-8",
    )
    web = load_web_config(path)
    assert web.tls_server_config is not None
    assert web.tls_server_config.cert_file == tmp_path / "cert.pem"
    assert web.http_server_config.headers == {"X-Frame-Options": "deny"}
    assert HASH not in repr(web)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tls_server_conf: {}", "unknown key tls_server_conf; did you mean tls_server_config?"),
        ("tls_server_config: {cert_file: a}", "tls_server_config.key_file: is required, or key"),
        ("tls_server_config: {cert_file: a, key_file: b}", "tls_server_config.cert_file: "),
        (
            "tls_server_config: {cert_file: a, key_file: b, min_version: TLS9}",
            "must be TLS10 or TLS11 or TLS12 or TLS13, not 'TLS9'",
        ),
        (
            "tls_server_config: {cert_file: a, key_file: b, client_auth_type: RequireAndVerifyClientCert}",
            "tls_server_config.client_ca_file: is required",
        ),
        ("tls_server_config: {cert_file: a, key_file: b, client_ca_file: c}", "client_auth_type: "),
        ('http_server_config: {headers: {X: "a\\nb"}}', "headers.X: is not a valid header"),
        ("tls_server_config: {cert: a, key: [secret]}", "tls_server_config.key: must be a string"),
        ("tls_server_config: {cert: a, cert_file: b, key: secret}", "tls_server_config.cert: excludes cert_file"),
        (
            "tls_server_config: {cert: a, key: secret, client_auth_type: RequireAnyClientCert}",
            "RequireAnyClientCert cannot be enforced: Python cannot require a certificate without verifying it",
        ),
        ("tls_server_config: {cert: a, key: secret, max_version: TLS11}", "max_version: TLS11 is not supported"),
        (
            "tls_server_config: {cert: a, key: secret, cipher_suites: [TLS_AES_128_GCM_SHA265]}",
            "cipher_suites: unknown TLS_AES_128_GCM_SHA265; did you mean TLS_AES_128_GCM_SHA256?",
        ),
        (
            "tls_server_config: {cert: a, key: secret, cipher_suites: [TLS_AES_128_GCM_SHA256]}",
            "cipher_suites: has no suite of TLS 1.2",
        ),
        ("tls_server_config: {cert: a, key: secret, curve_preferences: [P256]}", "curve_preferences[0]: must be"),
        ("rate_limit: {interval: often, burst: 1}", "rate_limit.interval: 'often' is not a duration"),
        ("rate_limit: {interval: 1s}", "rate_limit.burst: 0 allows no request"),
        ("basic_auth_users: {alice: secret}", "basic_auth_users.alice: is not a bcrypt hash"),
        ("basic_auth_users: [secret]", "basic_auth_users: must map user names to bcrypt hashes"),
        ("basic_auth_users: {alice: 12345}", "basic_auth_users: must map user names to bcrypt hashes"),
    ],
)
def test_an_error_in_the_web_configuration_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_web(tmp_path, text)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "12345" not in str(caught.value)


def test_every_key_of_the_exporter_toolkit_is_known(tmp_path: Path) -> None:
    """A file that other exporters use, too, does not stop this one; what differs is a warning."""
    path = tmp_path / "web.yaml"
    path.write_text(
        f"""
        tls_server_config:
          cert: |
            -----BEGIN CERTIFICATE-----
          key: hidden
          client_ca: authority
          client_auth_type: RequestClientCert
          min_version: TLS10
          max_version: TLS12
          cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256]
          prefer_server_cipher_suites: false
          curve_preferences: [X25519, CurveP256]
        http_server_config:
          http2: true
          headers: {{Content-Security-Policy: "default-src 'self'", X-Content-Type-Options: nosniff}}
        rate_limit: {{interval: 1m1.5s, burst: 20}}
        basic_auth_users: {{alice: {HASH}}}
        """,
        encoding="utf-8",
    )
    web = load_web_config(path)
    assert web.tls_server_config is not None
    assert web.tls_server_config.ciphers == ("ECDHE-RSA-AES128-GCM-SHA256",)
    assert web.rate_limit is not None
    assert web.rate_limit.interval_s == 61.5
    assert "hidden" not in repr(web)
    assert web.warnings == (
        "tls_server_config.min_version TLS10: TLS12 is used, because older versions are not secure",
        "tls_server_config.client_auth_type RequestClientCert: no certificate is requested, because none is verified",
        "tls_server_config.curve_preferences: only the first is used, X25519",
        "http_server_config.http2 is ignored: this server supports HTTP/1.1 only",
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", True),
        (b"---\n{ } # open\n", True),
        (b"# open\n{}\n", True),
        (b"", False),
        (b"# {}\n", False),
        (b"null", False),
        (b"{a: b}", False),
    ],
)
def test_only_an_explicit_file_opens_the_exporter(data: bytes, expected: bool) -> None:
    assert is_open_on_purpose(data) == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("max_workload: 5", "unknown key attribution.max_workload; did you mean max_workloads?"),
        ("max_workloads: 0", "attribution.max_workloads: 0 is not between 1 and 10000"),
        ("min_share: 1.5", "attribution.min_share: 1.5 is not between 0 and 1"),
        ("keep_gone_seconds: -1", "attribution.keep_gone_seconds: -1 is not between 0 and 86400"),
        ("depth: pod", "attribution.depth: must be workload or container, not 'pod'"),
        ("idle_watts: {socket0: -1}", "attribution.idle_watts.socket0: -1 is not between 0 and 100000"),
        ("sources: {cgroup: {}}", "unknown key attribution.sources.cgroup; did you mean cgroups?"),
        ("sources: {cgroups: {depth: container}}", "unknown key attribution.sources.cgroups.depth"),
        ("sources: {cgroups: {enabled: maybe}}", "attribution.sources.cgroups.enabled: must be"),
    ],
)
def test_an_error_in_the_attribution_is_named(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "exporter.yaml"
    path.write_text(f"attribution: {{{text}}}", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config(path, FAKE, SOURCES)
    assert f"{path}: {error}" in str(raised.value)


def test_sources_inherit_the_settings_that_they_need(tmp_path: Path) -> None:
    path = tmp_path / "exporter.yaml"
    text = "attribution: {depth: container, deny: [secret-*], sources: {cgroups: {hierarchy: v1, enabled: true}}}"
    path.write_text(text, encoding="utf-8")
    cgroups = load_config(path, FAKE, SOURCES).attribution.sources["cgroups"]
    assert (cgroups.enabled, cgroups.options.hierarchy) == (True, "v1")
    assert (cgroups.options.depth, cgroups.options.deny) == ("container", ("secret-*",))


def test_an_empty_text_is_a_key_that_is_not_set_as_in_the_exporter_toolkit(tmp_path: Path) -> None:
    (tmp_path / "a.pem").touch()
    path = tmp_path / "web.yaml"
    path.write_text(
        "tls_server_config: {cert_file: a.pem, key_file: a.pem, cert: '', client_ca_file: '', client_auth_type: ''}"
    )
    tls = load_web_config(path).tls_server_config
    assert tls is not None
    assert (tls.client_ca_file, tls.client_auth_type) == (None, "NoClientCert")
