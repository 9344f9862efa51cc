"""Options of servers: one set of credentials and TLS for all runtimes behind HTTP."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from joulewatch_harness.errors import ConfigError
from joulewatch_harness.runtimes.kserve.options import Options as KServeOptions
from joulewatch_harness.runtimes.openai.options import Options as OpenAIOptions

URL = "http://server:8000"
OPTIONS = [KServeOptions, OpenAIOptions]


@pytest.fixture
def secret(tmp_path: Path) -> str:
    (tmp_path / "secret").write_text("s3cret-t0ken\n")
    return str(tmp_path / "secret")


@pytest.mark.parametrize("options", OPTIONS)
def test_credentials_become_a_header_that_is_never_shown(options: type[KServeOptions], secret: str) -> None:
    bearer = options.parse({"url": URL, "bearer_token_file": secret}).where
    assert bearer.headers == {"Authorization": "Bearer s3cret-t0ken"}
    basic = options.parse({"url": URL, "username": "me", "password_file": secret}).where
    encoded = base64.b64encode(b"me:s3cret-t0ken").decode()
    assert basic.headers == {"Authorization": f"Basic {encoded}"}
    assert basic.masked(f"HTTP 401: bad token {encoded}") == "HTTP 401: bad token ***"
    assert "s3cret" not in repr(bearer) and encoded not in repr(basic)


def test_the_key_of_an_openai_server_is_a_bearer_token(secret: str, tmp_path: Path) -> None:
    options = OpenAIOptions.parse({"url": f"{URL}/v1/", "api_key_file": secret})
    assert (options.where.url, options.where.headers) == (URL, {"Authorization": "Bearer s3cret-t0ken"})
    with pytest.raises(ConfigError, match="api_key_file and bearer_token_file are the same option"):
        OpenAIOptions.parse({"url": URL, "api_key_file": secret, "bearer_token_file": secret})
    (tmp_path / "umlaut").write_text("schlüssel")
    with pytest.raises(ConfigError, match="must be in ASCII"):
        OpenAIOptions.parse({"url": URL, "api_key_file": str(tmp_path / "umlaut")})


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"username": "me"}, "option username: requires a password_file"),
        ({"password_file": "x"}, "option password_file: requires a username"),
        ({"username": "me", "password_file": "x", "bearer_token_file": "y"}, "contradict each other"),
        ({"key_file": "x"}, "option key_file: requires a cert_file"),
        ({"url": "https://s", "cert_file": "none.pem"}, r"option cert_file: none\.pem cannot be read: No such file"),
        ({"bearer_token_file": "none"}, "option bearer_token_file: none cannot be read: No such file"),
    ],
)
def test_bad_credentials_and_certificates_are_named(
    options: type[KServeOptions], given: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^{options.RUNTIME}: .*{text}"):
        options.parse({"url": URL, **given})


def test_client_certificates_are_for_https() -> None:
    with pytest.raises(ConfigError, match="option cert_file: is for https:// only"):
        KServeOptions.parse({"url": "grpc://server:8001", "cert_file": "client.pem"})
