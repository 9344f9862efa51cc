"""Figure of a calibration: the errors of the sensor over its power, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from joulewatch_harness import files
from joulewatch_harness.analysis.calibration.fit import Fit
from joulewatch_harness.analysis.reports.figure_parts import DPI, PALETTE, STYLE, check_figure_path, wrapped
from joulewatch_harness.gum import NORMAL_95

_SIZE_INCHES: Final = (6.4, 5.0)
_LINE_POINTS: Final = 101


def write_figure(fit: Fit, path: Path) -> None:
    """Draw the figure.

    Raises:
        ConfigError: The suffix is not valid, the directory does not exist, or the file cannot be written.
    """
    import matplotlib as mpl

    check_figure_path(path)
    with mpl.rc_context(STYLE):
        try:
            make_figure(fit).savefig(path, dpi=DPI)
        except OSError as error:
            raise files.write_error(f"--figure {path}: cannot be written: {error.strerror}", error) from error


def make_figure(fit: Fit) -> Any:
    """Return the figure: above sensor minus reference with the line, below what the calibration leaves."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    points, line, record = fit.comparison.points, fit.line, fit.entries[0].calibration
    figure = Figure(figsize=_SIZE_INCHES, layout=ConstrainedLayoutEngine(h_pad=0.1))
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    watts = np.array([point.sensor_watts for point in points])
    reference = np.array([point.reference_watts for point in points])
    u_x = np.array([point.sensor_standard_watts for point in points])
    u_y = np.array([point.reference_standard_watts for point in points])
    at = np.linspace(watts.min(), watts.max(), _LINE_POINTS)
    variance = (line.slope_standard * at) ** 2 + line.intercept_standard**2 + 2 * at * line.covariance
    band = NORMAL_95 * np.sqrt(np.maximum(variance, 0.0) + fit.linearity_watts**2)
    bars = {"fmt": "o", "markersize": 4, "capsize": 2, "elinewidth": 0.8}
    above.plot(at, at - (line.intercept + line.slope * at), color=PALETTE[1], linewidth=1.2, label="fitted line")
    above.errorbar(
        watts, watts - reference, NORMAL_95 * np.hypot(u_x, u_y), color=PALETTE[0], label="window, ± 95 %", **bars
    )
    below.fill_between(at, -band, band, color=PALETTE[1], alpha=0.2, linewidth=0, label="± 95 % of the calibration")
    below.errorbar(
        watts,
        line.intercept + line.slope * watts - reference,
        NORMAL_95 * np.hypot(line.slope * u_x, u_y),
        color=PALETTE[0],
        label="window, ± 95 %",
        **bars,
    )
    for axes, text in ((above, "sensor − reference, W"), (below, "calibrated − reference, W")):
        axes.axhline(0.0, color="#444444", linewidth=0.8)
        axes.set_ylabel(text)
        axes.legend(loc="best", fontsize=8, frameon=False)
        axes.grid(visible=True, color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
    below.set_xlabel("power that the sensor reads, W")
    names = ", ".join(f"{one.sensor.collector} {one.sensor.device} {one.sensor.domain}" for one in fit.entries)
    title = f"{names} against {record.reference}: gain {line.slope:.5g}, offset {line.intercept:+.3g} W"
    figure.suptitle(wrapped(title, _SIZE_INCHES[0] - 0.6, 10.0, "bold"), fontsize=10, fontweight="bold")
    return figure
