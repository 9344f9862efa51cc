"""What can go wrong in the harness and the analysis; each class knows its exit code."""

from typing import ClassVar


class JoulewatchError(Exception):
    """Base of every error raised on purpose: the text names the file, key, URL or sensor and what to do."""

    exit_code: ClassVar[int] = 1


class ConfigError(JoulewatchError):
    """A bad argument, plan, model file or output folder."""

    exit_code = 2


class QueryError(JoulewatchError):
    """A source of samples cannot be asked: wrong URL, unreachable, not a Prometheus, unknown run."""

    exit_code = 2


class QueryTooLargeError(QueryError):
    """HTTP 422: the server refuses to execute this query (too many samples): ask for a smaller piece."""

    status: ClassVar[int] = 422


class QueryUnavailableError(QueryError):
    """Nothing answered, or 429 or 5xx until the time for retries was over: another try may succeed later."""


class RecordError(JoulewatchError):
    """A journal or recording cannot be read or written."""

    exit_code = 2


class NetworkError(JoulewatchError):
    """The network under test failed to load, to prepare a batch size or to run."""


class UnsupportedBatchError(NetworkError):
    """The network cannot run this batch size; the sweep goes on without it."""


class ExporterUnreachableError(JoulewatchError):
    """An exporter named in the plan does not answer, or what answers is no joulewatch exporter."""

    exit_code = 2


class DeliveryError(JoulewatchError):
    """Annotations could not be delivered; they stay in the journal."""


class CoverageError(JoulewatchError):
    """The samples do not cover the window: no number is better than a wrong one.

    ``reason`` is a stable code, the same as the audit's.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
