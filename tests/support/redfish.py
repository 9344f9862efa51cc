"""A Redfish service made of dictionaries, behind ``responses``; needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import responses

from joulewatch_exporter.collectors.redfish.device import RedfishDevice, Service
from joulewatch_exporter.collectors.redfish.target import RedfishTarget
from joulewatch_exporter.model import Reading, SensorInfo

USER = "monitor"
PASSWORD = "correct horse é"
SESSIONS = "/redfish/v1/SessionService/Sessions"

Resources = dict[str, Any]
"""By path without trailing slash: a resource, a status, raw bytes, or an exception to raise."""


def link(path: str) -> dict[str, str]:
    return {"@odata.id": path}


def collection(*paths: str) -> dict[str, Any]:
    return {"Members": [link(path) for path in paths], "Members@odata.count": len(paths)}


class FakeService:
    """A fake service; all attributes can be changed while it runs."""

    def __init__(self, mock: responses.RequestsMock, resources: Resources, *, url: str = "https://bmc1") -> None:
        self.url = url
        self.resources = resources
        self.requests: list[str] = []
        """Method and path of each request."""
        self.sessions: dict[str, str] = {}
        """Paths by token."""
        self.logins = 0
        self.login_status = 201
        self.login_body: Any = {}
        self.token = "t0ken-{number}"
        self.location = "{path}"
        """Header ``Location`` of a login."""
        self.open_paths = {"/redfish/v1"}
        """Paths that need no login."""
        root = resources.setdefault("/redfish/v1", {})
        if isinstance(root, dict):
            root.setdefault("Chassis", link("/redfish/v1/Chassis"))
            root.setdefault("Links", {"Sessions": link(SESSIONS)})
        anything = re.compile(re.escape(url) + "/.*")
        for method in (responses.GET, responses.POST, responses.DELETE):
            mock.add_callback(method, anything, callback=self._answer)

    @property
    def gets(self) -> list[str]:
        return [entry.removeprefix("GET ") for entry in self.requests if entry.startswith("GET ")]

    def _answer(self, request: requests.PreparedRequest) -> Any:
        path = urlsplit(str(request.url)).path.rstrip("/")
        self.requests.append(f"{request.method} {path}")
        if request.method == "POST":
            return self._log_in(json.loads(request.body or b"{}"))
        if path not in self.open_paths and not self._is_logged_in(request.headers):
            return 401, {}, "{}"
        if request.method == "DELETE":
            answer = self.resources.get(f"DELETE {path}", 204)
            if isinstance(answer, Exception):
                raise answer
            self.sessions = {token: known for token, known in self.sessions.items() if known != path}
            return answer, {}, ""
        resource = self.resources.get(path, 404)
        if isinstance(resource, Exception):
            raise resource
        if isinstance(resource, int):
            return resource, {}, "{}"
        if isinstance(resource, tuple):
            return resource
        return 200, {}, resource if isinstance(resource, bytes) else json.dumps(resource)

    def _is_logged_in(self, headers: Mapping[str, Any]) -> bool:
        if "X-Auth-Token" in headers:
            return headers["X-Auth-Token"] in self.sessions
        return headers.get("Authorization") == requests.auth._basic_auth_str(USER.encode(), PASSWORD.encode())

    def _log_in(self, login: Mapping[str, str]) -> Any:
        if self.login_status not in (200, 201, 204):
            return self.login_status, {}, json.dumps(self.login_body)
        if (login.get("UserName"), login.get("Password")) != (USER, PASSWORD):
            return 401, {}, "{}"
        self.logins += 1
        token, path = self.token.format(number=self.logins), f"{SESSIONS}/{self.logins}"
        self.sessions[token] = path
        headers = {"X-Auth-Token": token, "Location": self.location.format(path=path)}
        return self.login_status, headers, "" if self.login_status == 204 else json.dumps(self.login_body)


def a_target(folder: Path, **settings: Any) -> RedfishTarget:
    """Return a target whose password is in a file."""
    password_file = folder / "password"
    password_file.write_text(f"{PASSWORD}\n")
    password_file.chmod(0o600)
    values: dict[str, Any] = {"name": "bmc1", "url": "https://bmc1", "user": USER, "password_file": password_file}
    return RedfishTarget(**values | settings)


def a_service(folder: Path, *, interval_s: float = 10.0, deadline_s: float = 10.0, **settings: Any) -> Service:
    return Service(a_target(folder, **settings), interval_s=interval_s, deadline_s=deadline_s)


def by_label(readings: Any) -> dict[str, tuple[Any, Any]]:
    """Return energy and power by ``device/domain``."""
    typed: list[Reading] = list(readings)
    return {f"{r.quantity.device}/{r.quantity.domain}": (r.energy_joules, r.power_watts) for r in typed}


@dataclass(frozen=True)
class Direct:
    """A sensor that reads its service directly, not in the background."""

    device: str
    service: RedfishDevice

    @property
    def infos(self) -> Sequence[SensorInfo]:
        return self.service.infos

    def read(self) -> Sequence[Reading]:
        return self.service.read()
