"""``joulewatch.profile``: what the command does, with a run as its result."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joulewatch_harness.clients.options import load_options
from joulewatch_harness.commands.profile import measure_plan
from joulewatch_harness.errors import JoulewatchError
from joulewatch_harness.metering.runs import Run, load
from joulewatch_harness.plan.parsing import make_plan, read_plan
from joulewatch_harness.runner.preflight import prepare


def profile(plan: str | Path | Mapping[str, Any] | None = None, /, **keys: Any) -> Run:
    """Run a plan as ``joulewatch profile`` does, and return its results.

    Progress goes to stderr. It must be called from the main thread, because Ctrl-C ends the run early.

    Args:
        plan: A plan file, or its keys; default: none.
        keys: Keys of the plan, which override those of ``plan``: ``configurations``, ``batch_sizes``, ``preset``.

    Raises:
        ConfigError: A key or value of the plan is not valid.
        JoulewatchError: Nothing could be measured.
    """
    given = read_plan(Path(plan)) if isinstance(plan, (str, Path)) else dict(plan or {})
    where = f"plan {plan}" if isinstance(plan, (str, Path)) else "plan"
    checked = make_plan({**given, **keys}, where)
    config = Path(checked.prometheus_config) if checked.prometheus_config else None
    prometheus = load_options(checked.prometheus or None, config, None)
    with contextlib.ExitStack() as stack:
        prepared = prepare(checked, prometheus, stack)
        end, _ = measure_plan(prepared, stack)
    if end.status == "failed":
        raise JoulewatchError(f"run {prepared.run}: {end.text} ({prepared.folder / 'journal.jsonl'})")
    return load(prepared.folder, prometheus=prometheus)
