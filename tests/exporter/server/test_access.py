"""Passwords under a flood of guesses, and files that change while the exporter runs. No network."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from joulewatch_exporter.config.web import RateLimit
from joulewatch_exporter.server import access as access_module
from joulewatch_exporter.server.access import (
    CHECK_NICENESS,
    GUESSER_S,
    MOST_WAITING_OF_ADDRESS,
    Access,
    TokenBucket,
    Verdict,
)
from support.waiting import wait_until

HASH = "$2b$10$" + "a" * 53


class FakeBcrypt:
    """Accepts ``open sesame``; a check can be made to wait."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.hold.set()
        self.began = threading.Semaphore(0)
        self.checks = 0

    def checkpw(self, password: bytes, stored: bytes) -> bool:
        self.checks += 1
        self.began.release()
        assert self.hold.wait(10)
        return password == b"open sesame"


@pytest.fixture
def bcrypt(monkeypatch: pytest.MonkeyPatch) -> FakeBcrypt:
    fake = FakeBcrypt()
    monkeypatch.setattr(access_module, "_bcrypt", lambda path: fake)
    return fake


def web_file(folder: Path, text: str) -> Path:
    path = folder / "web.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def access(tmp_path: Path, bcrypt: FakeBcrypt) -> Access:
    return Access(web_file(tmp_path, f"basic_auth_users: {{ali: {HASH}}}"))


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"ali:{password}".encode()).decode()


def test_guesses_delay_neither_cached_passwords_nor_reloads_nor_open_requests(
    access: Access, bcrypt: FakeBcrypt
) -> None:
    assert access.check(basic("open sesame")) is Verdict.ALLOWED
    assert bcrypt.began.acquire(timeout=10)
    bcrypt.hold.clear()
    with ThreadPoolExecutor(1) as pool:
        guess = pool.submit(access.check, basic("a guess"), "attacker")
        assert bcrypt.began.acquire(timeout=10)
        # The guess is being checked. Each of these would wait for ever if it needed the same lock.
        assert access.check(basic("open sesame")) is Verdict.ALLOWED
        assert access.check(None) is Verdict.NO_PASSWORD
        access.refresh()
        bcrypt.hold.set()
        assert guess.result(10) is Verdict.WRONG


def test_the_queue_of_passwords_is_bounded_for_each_address(access: Access, bcrypt: FakeBcrypt) -> None:
    bcrypt.hold.clear()
    with ThreadPoolExecutor(MOST_WAITING_OF_ADDRESS + 1) as pool:
        guesses = [pool.submit(access.check, basic(f"guess {n}"), "attacker") for n in range(MOST_WAITING_OF_ADDRESS)]
        wait_until(lambda: access._waiting["attacker"] == MOST_WAITING_OF_ADDRESS)
        assert access.check(basic("one more"), "attacker") is Verdict.BUSY
        assert access.refused["passwords"] == 1
        scraper = pool.submit(access.check, basic("open sesame"), "scraper")
        wait_until(lambda: access._waiting["scraper"] == 1)
        bcrypt.hold.set()
        assert scraper.result(10) is Verdict.ALLOWED
        assert {guess.result(10) for guess in guesses} == {Verdict.WRONG}
    assert not access._waiting, "all places are free again"


def test_passwords_are_checked_at_a_low_priority(
    access: Access, bcrypt: FakeBcrypt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Niceness belongs to a thread on Linux: that of the connection must not change."""
    seen: list[int] = []

    def checkpw(password: bytes, stored: bytes) -> bool:
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))
        return True

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert access.check(basic("open sesame")) is Verdict.ALLOWED
    assert seen == [min(before + CHECK_NICENESS, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_new_connections_of_a_guesser_wait(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(access_module.time, "monotonic", lambda: now_s)
    assert not access.has_guessed("attacker")
    assert access.check(basic("a guess"), "attacker") is Verdict.WRONG
    assert access.check(basic("open sesame"), "scraper") is Verdict.ALLOWED
    assert access.has_guessed("attacker")
    assert not access.has_guessed("scraper")
    now_s += GUESSER_S
    assert not access.has_guessed("attacker")


TLS = "tls_server_config: {{cert: c, key: k{}}}\n"
RATE = "rate_limit: {interval: 1s, burst: 1}"
VERIFIED = ", client_ca: ca, client_auth_type: RequireAndVerifyClientCert"


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        (f"basic_auth_users: {{ali: {HASH}}}", "", "basic_auth_users"),
        (f"basic_auth_users: {{ali: {HASH}}}", "# a comment only\n", "basic_auth_users"),
        (f"basic_auth_users: {{ali: {HASH}}}", "basic_auth_users: {}", "basic_auth_users"),
        (TLS.format(""), "http_server_config: {}", "tls_server_config"),
        (TLS.format(VERIFIED), TLS.format(""), "client_auth_type RequireAndVerifyClientCert"),
        (
            TLS.format(VERIFIED),
            TLS.format(VERIFIED.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")),
            "client_auth_type RequireAndVerifyClientCert",
        ),
        (TLS.format(VERIFIED + ", client_allowed_sans: [a]"), TLS.format(VERIFIED), "client_allowed_sans"),
        (RATE, "http_server_config: {}", "rate_limit"),
        (RATE, "rate_limit: {interval: 0}", "rate_limit"),
        (TLS.format(", min_version: TLS13"), TLS.format(""), "min_version TLS13"),
        (TLS.format(", min_version: TLS13"), TLS.format(", min_version: TLS11"), "min_version TLS13"),
    ],
)
def test_a_file_that_loses_protection_is_refused(
    tmp_path: Path,
    bcrypt: FakeBcrypt,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    before: str,
    after: str,
    lost: str,
) -> None:
    monkeypatch.setattr(access_module, "server_context", lambda tls, path: object())
    path = web_file(tmp_path, before)
    access = Access(path)
    settings = access.web
    for stamp in (1, 2):
        web_file(tmp_path, after)
        os.utime(path, ns=(stamp, stamp))
        access.refresh()
        assert access.web is settings
    assert f"no longer has {lost}; to remove them, write only {{}} into it" in caplog.text
    web_file(tmp_path, "{}  # open on purpose\n")
    os.utime(path, ns=(3, 3))
    access.refresh()
    assert access.web != settings
    assert not access.required
    assert access.tls is None


def test_users_may_change_and_protection_may_grow(tmp_path: Path, bcrypt: FakeBcrypt) -> None:
    path = web_file(tmp_path, f"basic_auth_users: {{ali: {HASH}, bob: {HASH}}}")
    access = Access(path)
    web_file(tmp_path, f"basic_auth_users: {{eve: {HASH}}}\nrate_limit: {{interval: 1s, burst: 1}}")
    os.utime(path, ns=(1, 1))
    access.refresh()
    assert set(access.web.basic_auth_users) == {"eve"}
    assert [access.is_within_rate() for _ in range(3)] == [True, False, False]
    assert access.refused["rate"] == 2
    web_file(tmp_path, f"basic_auth_users: {{eve: {HASH}}}\nrate_limit: {{interval: 1ms, burst: 9}}")
    os.utime(path, ns=(2, 2))
    access.refresh()
    assert access.web.rate_limit == RateLimit(interval="1ms", burst=9)


def test_a_deleted_file_changes_nothing(access: Access, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "web.yaml").unlink()
    access.refresh()
    access.refresh()
    assert access.required
    assert caplog.text.count("cannot be read") == 1


def test_an_empty_file_at_the_start_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Access(web_file(tmp_path, ""))
    assert "neither users nor TLS" in caplog.text
    caplog.clear()
    Access(web_file(tmp_path, "{}"))
    assert not caplog.text


def test_token_bucket() -> None:
    now_s = 0.0
    bucket = TokenBucket(RateLimit(interval="500ms", burst=2), lambda: now_s)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now_s = 0.75
    assert [bucket.take() for _ in range(2)] == [True, False]
    now_s = 100.0
    assert [bucket.take() for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("replace", [os.mkfifo, os.mkdir, endless])
def test_a_web_configuration_that_is_not_a_file_any_longer_changes_nothing(
    access: Access, tmp_path: Path, replace: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "web.yaml"
    path.unlink()
    replace(path)
    access.refresh()
    assert access.required
    assert "is not a file any longer; the earlier settings remain in effect" in caplog.text
