"""``sushy-emulator``, an independent Redfish service, extended by power resources; run as a program.

It has chassis, but neither Power, EnvironmentMetrics nor sessions; this module adds them to its Flask application. The
readings ``watts`` and ``kwh`` come from the JSON file ``SUSHY_POWER_STATE``, so that a test can change them.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# Imported dynamically, because the type checker must not require them.
flask: Any = importlib.import_module("flask")
main: Any = importlib.import_module("sushy_tools.emulator.main")

ROOT = "/redfish/v1"
SESSIONS = f"{ROOT}/SessionService/Sessions"
USER, PASSWORD = "admin", "secret"


def state() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(os.environ["SUSHY_POWER_STATE"]).read_text())
    return data


def answer(resource: Any, status: int = 200, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return flask.Response(json.dumps(resource), status, {"Content-Type": "application/json", **named})


class Guard:
    """Requires a login, except for the root and the login itself."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self._inner = inner
        self.tokens: dict[str, str] = {}
        self._basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"].rstrip("/")
        is_login = path == SESSIONS and environ["REQUEST_METHOD"] == "POST"
        is_known = environ.get("HTTP_X_AUTH_TOKEN") in self.tokens or environ.get("HTTP_AUTHORIZATION") == self._basic
        if path == ROOT or is_login or is_known:
            return self._inner(environ, start_response)
        start_response("401 Unauthorized", [("Content-Type", "application/json")])
        return [b"{}"]


def add_power(app: Any) -> None:
    guard = Guard(app.wsgi_app)
    app.wsgi_app = guard

    def log_in() -> Any:
        login = flask.request.get_json()
        if (login.get("UserName"), login.get("Password")) != (USER, PASSWORD):
            return answer({}, 401)
        token = secrets.token_hex(16)
        guard.tokens[token] = identity = str(len(guard.tokens) + 1)
        return answer({"Id": identity}, 201, X_Auth_Token=token, Location=f"{SESSIONS}/{identity}")

    def log_out(identity: str) -> Any:
        guard.tokens = {token: known for token, known in guard.tokens.items() if known != identity}
        return flask.Response(status=204)

    def sessions() -> Any:
        return answer({"Members": [{"@odata.id": f"{SESSIONS}/{known}"} for known in guard.tokens.values()]})

    def power(chassis: str) -> Any:
        control = {"MemberId": "0", "Name": "System Power Control", "PowerConsumedWatts": state()["watts"]}
        return answer({"@odata.type": "#Power.v1_7_1.Power", "Id": "Power", "PowerControl": [control]})

    def environment(chassis: str) -> Any:
        now = state()
        metrics = {"PowerWatts": {"Reading": now["watts"]}, "EnergykWh": {"Reading": now["kwh"]}}
        return answer({"@odata.type": "#EnvironmentMetrics.v1_3_0.EnvironmentMetrics"} | metrics)

    def link(response: Any) -> Any:
        path = flask.request.path.rstrip("/")
        is_chassis = path.startswith(f"{ROOT}/Chassis/") and path.count("/") == 4
        if flask.request.method == "GET" and response.status_code == 200 and (is_chassis or path == ROOT):
            resource = json.loads(response.get_data())
            if is_chassis:
                resource |= {name: {"@odata.id": f"{path}/{name}"} for name in ("Power", "EnvironmentMetrics")}
            else:
                resource["Links"] = {"Sessions": {"@odata.id": SESSIONS}}
            response.set_data(json.dumps(resource))
        return response

    chassis = f"{ROOT}/Chassis/<chassis>"
    app.add_url_rule(SESSIONS, view_func=log_in, methods=["POST"])
    app.add_url_rule(SESSIONS, view_func=sessions)
    app.add_url_rule(f"{SESSIONS}/<identity>", view_func=log_out, methods=["DELETE"])
    app.add_url_rule(f"{chassis}/Power", view_func=power)
    app.add_url_rule(f"{chassis}/EnvironmentMetrics", view_func=environment)
    app.after_request(link)


if __name__ == "__main__":
    if "SUSHY_POWER_STATE" in os.environ:
        add_power(main.app)
    main.main()
