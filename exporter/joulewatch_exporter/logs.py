"""Logging to stderr, one line per event, as logfmt or JSON."""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal

from joulewatch_exporter.text import json_text

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["logfmt", "json"]


class _LogfmtFormatter(logging.Formatter):
    """``time=… level=… logger=… msg="…"``; a message of several lines stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _log_fields(self, record)
        quoted = json_text(fields.pop("msg"))
        return " ".join([*(f"{key}={value}" for key, value in fields.items()), f"msg={quoted}"])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json_text(_log_fields(self, record))


def _log_fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, str]:
    text = record.getMessage()
    if record.exc_info:
        text = f"{text}\n{formatter.formatException(record.exc_info)}"
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return {
        "time": f"{seconds}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "msg": text,
    }


def set_up_logging(level: LogLevel, log_format: LogFormat) -> None:
    """Send all log lines from ``level`` upwards to stderr, and nowhere else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _LogfmtFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
