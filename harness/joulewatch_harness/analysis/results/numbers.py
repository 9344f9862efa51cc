"""Numbers as text: SI prefixes, and digits justified by the uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from joulewatch_harness.analysis.results.model import Estimate

UNKNOWN_ACCURACY: Final = "†"
"""Mark of an uncertainty that does not include the accuracy of every sensor."""
UNKNOWN_ACCURACY_TEXT: Final = "sampling and repeats only: the sensor's accuracy is unknown"
MOST_DIGITS: Final = 5
"""Before the decimal point."""
_PREFIXES: Final = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M"}


def prefix_for(values: Iterable[float]) -> tuple[int, str]:
    """Return the SI prefix for the median of some values: (exponent, letter); a larger one if one has over 5 digits."""
    logs = sorted(math.log10(abs(value)) for value in values if value and math.isfinite(value))
    if not logs:
        return 0, ""
    exponent = 3 * math.floor(logs[len(logs) // 2] / 3 + 1e-9)
    while logs[-1] >= exponent + MOST_DIGITS:
        exponent += 3
    exponent = min(max(exponent, min(_PREFIXES)), max(_PREFIXES))
    return exponent, _PREFIXES[exponent]


def decimals_for(value: float, uncertainty: float) -> int:
    """Return the decimals that show two digits of the uncertainty, or four digits of a value without one."""
    scale = uncertainty if uncertainty > 0 and math.isfinite(uncertainty) else abs(value) / 100
    if scale <= 0 or not math.isfinite(scale):
        return 0
    digits = 1 - math.floor(math.log10(scale))
    # 9.96 rounds to one more digit.
    if round(scale, digits) >= 10 ** (2 - digits):
        digits -= 1
    return min(max(digits, 0), 9)


def with_uncertainty(estimate: Estimate, scale: float = 1.0) -> str:
    """Return ``12.34 ± 0.56``, in units of 1/scale; the value alone if its uncertainty is not known."""
    value, expanded = estimate.value * scale, (estimate.expanded or 0.0) * scale
    if expanded <= 0:
        return plain(value)
    decimals = decimals_for(value, expanded)
    return f"{value:.{decimals}f} ± {expanded:.{decimals}f}"


def freedom_text(dof: float) -> str:
    """Return ``2.4 degrees of freedom``."""
    number = "many" if dof > 1000 else f"{dof:.3g}"
    return f"{number} degree{'' if number == '1' else 's'} of freedom"


def energy_text(estimate: Estimate, scale: float = 1.0) -> str:
    """Return an energy with its uncertainty, which is marked if it does not include the accuracy of every sensor."""
    return marked(with_uncertainty(estimate, scale), estimate)


def marked(text: str, estimate: Estimate) -> str:
    """Return the text of an estimate, with the mark if it is an energy whose ± lacks the accuracy of a sensor."""
    lacks = "sampling" in estimate.covers and "accuracy" not in estimate.covers
    return f"{text}{UNKNOWN_ACCURACY}" if "±" in text and lacks else text


def plain(value: float, uncertainty: float = 0.0) -> str:
    """Return a value with as many digits as its uncertainty allows, at most four without one."""
    if value == 0:
        return "0"
    return f"{value:.{min(decimals_for(value, uncertainty), max(3 - math.floor(math.log10(abs(value))), 0))}f}"


def quantity(value: float, unit: str) -> str:
    """Return a value with its SI prefix: ``3.42 mJ``."""
    exponent, letter = prefix_for([value])
    return f"{plain(value / 10**exponent)} {letter}{unit}"


def warning_line(methods: Iterable[str]) -> str:
    """Return the warning for results that are not measured; empty if all are."""
    kinds = set(methods)
    texts = []
    if "estimated" in kinds:
        texts.append("ESTIMATED from a power model, not measured")
    if "emulated" in kinds:
        texts.append("from an EMULATED machine, not from hardware")
    if "predicted" in kinds:
        texts.append("PREDICTED by a model, not measured")
    if "unknown" in kinds:
        texts.append("of UNKNOWN method")
    if not texts:
        return ""
    some = "Some energies" if kinds - {"estimated", "emulated", "predicted", "unknown"} else "Energies"
    return f"!!! {some} {'; '.join(texts)} !!!"
