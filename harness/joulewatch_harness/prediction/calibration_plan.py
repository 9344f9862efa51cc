"""Which networks to measure on a new device: those that narrow its predictions most.

How wide a prediction becomes depends on which networks were measured, not on their energies: it is the variance that
remains when the Gaussian prior over the known devices is conditioned on them. The networks are chosen one after the
other, each so that the mean variance of the wanted predictions is least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from joulewatch_harness.errors import ConfigError, PredictionRefusedError
from joulewatch_harness.networks import BUILTIN
from joulewatch_harness.prediction.devices import DOF, FEWEST_DEVICES, Views, condition
from joulewatch_harness.prediction.features import Features, features_of_builtin
from joulewatch_harness.prediction.fit import ENERGY, DeviceModel, Fit, known_for, views_of
from joulewatch_harness.prediction.predict import Request, check_limits
from joulewatch_harness.prediction.table import Row

NETWORKS: Final = 3
MOST_BATCH_SIZES: Final = 3
MEASURED_SCOPE: Final = "devices"
"""Scope of the energies of ``joulewatch profile``."""
CANDIDATES: Final[tuple[tuple[str, Mapping[str, str]], ...]] = (
    ("radioml-vgg10", {}),
    ("radioml-vgg10", {"filters": "32"}),
    ("mlp", {}),
    ("mlp", {"width": "256"}),
    *(("mobilenet-like", {"size": size, "width": width}) for size in ("64", "128", "224") for width in ("100", "50")),
    *(("resnet-like", {"size": size, "width": width}) for size in ("64", "128") for width in ("64", "16")),
    ("transformer-encoder", {}),
    ("transformer-encoder", {"sequence": "256"}),
)
"""Built-in networks, which can be measured on every device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A network to measure."""

    network: str
    options: Mapping[str, str]
    remaining: float
    """Width of the interval after it and those before it, as a share of the width without any measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPlan:
    """What to measure, most informative first."""

    steps: tuple[Step, ...]
    precision: str
    runtime: str
    """Empty: the default of ``joulewatch profile``."""
    batch_sizes: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        """Return the plan as ``joulewatch profile`` reads it."""
        return {
            "preset": "quick",
            "batch_sizes": list(self.batch_sizes),
            "configurations": [
                {
                    "network": step.network,
                    **({"runtime": self.runtime} if self.runtime else {}),
                    "precision": self.precision,
                    **({"options": dict(step.options)} if step.options else {}),
                }
                for step in self.steps
            ],
        }


def plan_calibration(fit: Fit, targets: Sequence[Request], runtimes: Sequence[str]) -> CalibrationPlan:
    """Choose the networks to measure on a device that was never measured.

    Args:
        fit: Models of other devices.
        targets: What is to be predicted on the device; at least one.
        runtimes: Names of the runtimes that ``joulewatch profile`` has.

    Raises:
        PredictionRefusedError: The fit does not allow predictions for a new device, or the built-in networks are
            outside its range.
        ConfigError: The precision is ambiguous.
    """
    first = targets[0]
    precision = first.precision or _only(fit)
    known = known_for(fit.models, MEASURED_SCOPE, precision, ENERGY, (first.device,))
    if len({model.device for model in known}) < FEWEST_DEVICES:
        raise PredictionRefusedError(
            f"a plan needs a fit of at least {FEWEST_DEVICES} other devices with scope {MEASURED_SCOPE}, which "
            f"'joulewatch profile' measures; this one has {len({model.device for model in known})}"
        )
    for target in targets:
        _check(known, target)
    names = {target.network for target in targets}
    rows, chosen = [_row(known, target.network, target.features) for target in targets], []
    for network, options in CANDIDATES:
        name = " ".join([network, *(f"{key}={value}" for key, value in options.items())])
        features = features_of_builtin(network, options)
        try:
            _check(known, Request(network=name, family=network, features=features, device=first.device))
        except PredictionRefusedError:
            continue
        if name not in names and precision in BUILTIN[network].precisions:
            rows.append(_row(known, name, features))
            chosen.append((network, options))
    if len(chosen) < NETWORKS:
        raise PredictionRefusedError(
            f"only {len(chosen)} of the built-in networks are in the range of the fit and have {precision}, {NETWORKS} "
            "are needed: measure networks of the fit on the device instead"
        )
    steps = _steps(views_of(known, ENERGY, rows), len(targets), chosen)
    used = {model.runtime for model in known}
    runtime = first.runtime or (next(iter(used)) if len(used) == 1 else "")
    sizes = first.batch_sizes or tuple(sorted({size for model in known for size in model.batch_sizes}))
    few = sizes if len(sizes) <= MOST_BATCH_SIZES else (sizes[0], sizes[len(sizes) // 2], sizes[-1])
    return CalibrationPlan(
        steps=tuple(steps), precision=precision, runtime=runtime if runtime in runtimes else "", batch_sizes=few
    )


def _only(fit: Fit) -> str:
    precisions = sorted({model.precision for model in fit.models})
    if len(precisions) > 1:
        raise ConfigError(f"choose the precision with --precision: {', '.join(precisions)}")
    return precisions[0]


def _check(known: Sequence[DeviceModel], request: Request) -> None:
    operators = frozenset().union(*(model.operators for model in known))
    check_limits("the known devices", [row for model in known for row in model.rows], operators, request)


def _row(known: Sequence[DeviceModel], network: str, features: Features) -> Row:
    return Row(
        network=network, family="", device="", platform="", runtime="", precision="",
        batch_size=known[0].main_batch_size, scope=MEASURED_SCOPE, joules=1.0, seconds=None, features=features,
        where="",
    )  # fmt: skip


def _steps(views: Views, targets: int, candidates: Sequence[tuple[str, Mapping[str, str]]]) -> list[Step]:
    """Choose greedily; the first rows of the views are the targets, the others the candidates."""
    before = _width(views, targets, [])
    chosen: list[int] = []
    steps = []
    for _ in range(NETWORKS):
        left = [i for i in range(targets, views.logs.shape[1]) if i not in chosen]
        widths = [_width(views, targets, [*chosen, i]) for i in left]
        best = int(np.argmin(widths))
        chosen.append(left[best])
        network, options = candidates[left[best] - targets]
        steps.append(Step(network=network, options=options, remaining=widths[best] / before))
    return steps


def _width(views: Views, targets: int, rows: Sequence[int]) -> float:
    """Return the root mean square width of the targets' predictions after these rows, if they are as expected."""
    indexes = np.array(rows, dtype=int)
    expected = np.exp(condition(views, indexes[:0], np.zeros(0)).mean[indexes])
    scale = condition(views, indexes, expected).scale[:targets]
    as_expected = (DOF + len(rows)) / DOF if rows else 1.0
    return float(np.sqrt(np.mean(scale**2) * as_expected))
