"""What the figures share: colours, markers, texts, axes and files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from joulewatch_harness import files
from joulewatch_harness.analysis.reports.table import wrap
from joulewatch_harness.errors import ConfigError

SUFFIXES: Final = (".png", ".svg", ".pdf")
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Okabe and Ito's colours, distinguishable with common colour blindness; without their yellow, too pale for lines."""
MARKERS: Final = (("o", 4.5), ("s", 4.5), ("^", 5.0), ("D", 4.5), ("v", 5.0), ("P", 6.5), ("X", 6.5), ("*", 8.0))
"""Markers, and sizes in points that make their areas look equal."""
TEXT_INCHES: Final = 5.2
"""Width of texts that start at the left edge of the panels."""
DPI: Final = 200
STYLE: Final = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.labelcolor": "#222222",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
LINE_STYLES: Final = ("-", (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1.2)))
"""Solid, dash-dotted, dotted; plain dashes are for predictions and for net energy."""
_LEGEND_INCHES: Final = {2: 2.4, 1: 5.6}
"""Number of columns of the legend -> width of a name."""
LEGEND_POINTS: Final = 8.0
TITLE_POINTS: Final = 11.5


def check_figure_path(path: Path) -> None:
    """Raise ConfigError unless the suffix is valid (PNG, SVG or PDF) and the directory exists."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--figure {path}: the name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--figure {path}: the directory {path.parent} does not exist")


def save_figure(figure: Any, path: Path, title: str, style: Mapping[str, Any] = STYLE) -> None:
    """Write a figure.

    Raises:
        ConfigError: The file cannot be written.
        StorageError: The disk is full.
    """
    import matplotlib as mpl

    with mpl.rc_context(dict(style)):
        try:
            figure.savefig(path, dpi=DPI, metadata={"Title": title})
        except OSError as error:
            raise files.write_error(f"--figure {path}: cannot be written: {error.strerror}", error) from error


def legend_labels(names: Sequence[str]) -> tuple[dict[str, str], int]:
    """Return name -> its lines in the legend, and the number of columns."""
    found = [
        (columns, {name: wrapped(name, inches, LEGEND_POINTS) for name in names})
        for columns, inches in _LEGEND_INCHES.items()
    ]
    columns, labels = next((item for item in found if not any("\n" in label for label in item[1].values())), found[-1])
    return labels, columns


def wrapped(text: str, inches: float, points: float, weight: str = "normal") -> str:
    """Return text in lines that are at most so wide; a wider text would push the panels aside."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    font, converter = FontProperties(family="DejaVu Sans", size=points, weight=weight), TextToPath()

    def measure(line: str) -> float:
        wide, _, _ = converter.get_text_width_height_descent(line, font, ismath=False)
        return float(wide) / converter.DPI

    return "\n".join(wrap(text, inches, measure))


def draw_foot(axes: Any, lines: Sequence[str]) -> None:
    axes.annotate(
        "\n".join(wrapped(line, TEXT_INCHES, 7.5) for line in lines),
        (1, 0),
        (0, -34),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=7.5,
        color="#666666",
    )


_TICK_STEPS: Final = (
    (0.5, (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)),
    (1.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)),
    (2.5, (1.0, 2.0, 5.0)),
)
"""Decades of a logarithmic axis -> its labels in a decade if the axis has fewer; at least two are always visible."""


def set_ticks(axes: Any) -> None:
    """Set plain numbers on the logarithmic y axis, with more of them in between if its range is small."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    decades = math.log10(high / low) if low > 0 and high > low else 1.0
    steps = next((steps for most, steps in _TICK_STEPS if decades < most), (1.0,))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=steps))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_number))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain_number(value: float, _: int) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if value >= 1000 else f"{value:g}"


def draw_titles(top: Any, title: str, subtitle: str, warning: str) -> None:
    warning = wrapped(warning, TEXT_INCHES, 9, "bold")
    above = 34 + 12 * warning.count("\n") if warning else 12
    lines = subtitle.count("\n")
    _above(top, title, above + 14 + 10 * lines, fontsize=TITLE_POINTS, fontweight="bold", color="#111111")
    _above(top, subtitle, above, fontsize=8, color="#666666")
    if warning:
        box = {"boxstyle": "round,pad=0.4", "facecolor": "#B00020", "edgecolor": "none"}
        _above(top, warning, 14, fontsize=9, fontweight="bold", color="white", bbox=box)


def _above(axes: Any, text: str, points: float, **style: Any) -> None:
    """Add a line of text above the axes, flush with their left edge."""
    axes.annotate(text, (0, 1), (0, points), xycoords="axes fraction", textcoords="offset points", va="bottom", **style)
