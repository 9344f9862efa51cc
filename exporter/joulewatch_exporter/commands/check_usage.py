"""The part of ``check`` about attribution: the usage sources, and whose energy the exporter would show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from joulewatch_exporter.attribution.attributor import is_superseded
from joulewatch_exporter.attribution.idle import IdlePower, MeasuredIdle
from joulewatch_exporter.attribution.model import ROOT, UsageSource
from joulewatch_exporter.config.config import AttributionSettings
from joulewatch_exporter.model import Component, Finding, Host
from joulewatch_exporter.text import count_of
from joulewatch_exporter.threads import DeadlineThread

ANSWER_S: Final = 10.0
NAME: Final = "attribution"


def examine_usage(
    sources: Sequence[type[UsageSource]],
    host: Host,
    settings: AttributionSettings,
    measured: Sequence[MeasuredIdle],
    failure: Callable[[str, Exception], Finding],
) -> list[Finding]:
    """Open all sources, read each one once, and close them.

    Args:
        sources: In the order of their preference.
        host: Where the files are.
        settings: The configuration.
        measured: Idle power that the exporter has measured.
        failure: Returns the finding for a source that cannot be opened.
    """
    if settings.enabled is False:
        text = "disabled by the configuration: energy is not shared between workloads"
        return [Finding(status="skipped", collector=NAME, subject=NAME, text=text)]
    findings: list[Finding] = []
    shared: dict[Component, str] = {}
    for source in sources:
        setting = settings.sources.get(source.name)
        if setting is not None and setting.enabled is False:
            text = "disabled by the configuration"
            findings.append(Finding(status="skipped", collector=source.name, subject=source.name, text=text))
            continue
        if is_superseded(source, shared) and not (setting is not None and setting.enabled is True):
            text = "not needed: another source has the same usage"
            findings.append(Finding(status="skipped", collector=source.name, subject=source.name, text=text))
            continue
        options = setting.options if setting is not None else source.Options()
        thread = DeadlineThread(f"check-{source.name}")
        try:
            opened = thread.call(
                lambda source=source, options=options: source.open(host, options),  # type: ignore[misc]
                ANSWER_S,
                discard=lambda late: late.close(),
            )
            scan = thread.call(opened.survey, ANSWER_S)
            findings += opened.findings
            thread.call(opened.close, ANSWER_S)
        except Exception as error:
            findings.append(failure(source.name, error))
            continue
        finally:
            thread.close()
        count = len({usage.key for usages in scan.usages.values() for usage in usages} - {ROOT})
        weights = " or ".join(dict.fromkeys(scan.weights.values()))
        for component in source.components:
            shared.setdefault(component, f"{component} by {weights or 'holder'} ({source.name}: {count})")
    if not shared:
        return [*findings, Finding(status="absent", collector=NAME, subject=NAME, text="no usage can be read")]
    text = (
        f"shares the energy of {', '.join(shared.values())} between workloads, of which at most "
        f"{count_of(settings.max_workloads, 'has', 'have')} series"
    )
    findings.append(Finding(status="found", collector=NAME, subject="workloads", text=text))
    return findings + _idle(settings, measured)


def _idle(settings: AttributionSettings, measured: Sequence[MeasuredIdle]) -> list[Finding]:
    idle = IdlePower(settings.idle_watts, measured)
    texts = [f"{device} {watts:g} W (configured)" for device, watts in settings.idle_watts.items()]
    for entry in measured:
        if idle.source(entry.key) == "measured":
            date = datetime.fromtimestamp(entry.measured_at_s, UTC).date().isoformat()
            texts.append(f"{entry.device}/{entry.domain} {entry.watts:.1f} W ({date})")
    if not texts:
        texts = ["not known yet: all energy counts as active until the machine was idle for 30 s"]
    return [Finding(status="found", collector=NAME, subject="idle power", text="; ".join(texts))]
