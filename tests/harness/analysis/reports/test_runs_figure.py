"""The figure of several runs: lines and bands, legible without colours, and what its notes state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from joulewatch_harness.analysis.reports.runs_figure import make_runs_figure, write_runs_figure
from joulewatch_harness.analysis.results.lines import Line, LinePoint, Value

SIZES = (1, 8, 64, 512)


def line(number: int, *, hardware: str = "", method: str = "counter", share: float | None = None) -> Line:
    label = f"vgg10/runtime/precision{number}"
    points = [
        LinePoint(
            batch_size=size,
            energy=Value(value=0.01 * number / size, low=0.009 * number / size, high=0.011 * number / size),
            throughput=Value(value=100.0 * number * size),
            driver_share=share,
        )
        for size in SIZES
    ]
    return Line(
        label=f"{label} ({method})" if method != "counter" else label,
        hardware=hardware,
        network="vgg10",
        run=f"run{number}",
        methods=frozenset({method}),
        accuracy_known=True,
        points=tuple(points),
    )


def style(drawn: Any) -> tuple[Any, ...]:
    """Return what distinguishes a line without colours."""
    return drawn.get_marker(), drawn.get_markerfacecolor() == "white", str(drawn.get_linestyle()), drawn._dash_pattern


def test_twelve_lines_are_distinct_without_colours() -> None:
    hardware = ("EPYC 7763", "A100", "U280")
    lines = [line(number, hardware=hardware[number % 3]) for number in range(1, 13)]
    energy, throughput = make_runs_figure(lines).axes
    for panel in (energy, throughput):
        assert len(panel.lines) == len({repr(style(drawn)) for drawn in panel.lines}) == 12


def test_the_style_is_that_of_the_hardware() -> None:
    lines = [line(1, hardware="EPYC"), line(2, hardware="EPYC"), line(3, hardware="A100")]
    energy, _ = make_runs_figure(lines).axes
    first, second, third = (drawn._dash_pattern for drawn in energy.lines)
    assert first == second != third


def test_bands_are_where_the_uncertainty_is_known() -> None:
    energy, throughput = make_runs_figure([line(1), line(2)]).axes
    bands = [[type(one).__name__ for one in panel.collections] for panel in (energy, throughput)]
    assert sum("FillBetween" in name or "Poly" in name for name in bands[0]) == 2
    assert bands[1] == []


def texts_of(path: Path) -> str:
    return " ".join(path.read_text("utf-8").split())


@pytest.mark.parametrize(
    ("main_device", "text"),
    [
        (True, "Energy of the CPU, the GPU or the FPGA that runs the network"),
        (False, "Energy: sum over all device sensors"),
    ],
)
def test_the_note_names_the_energy(tmp_path: Path, main_device: bool, text: str) -> None:
    write_runs_figure([line(1), line(2)], tmp_path / "figure.svg", main_device=main_device)
    assert text in texts_of(tmp_path / "figure.svg")


def test_methods_are_in_a_warning_and_in_the_legend(tmp_path: Path) -> None:
    write_runs_figure([line(1), line(2, method="emulated")], tmp_path / "figure.svg")
    text = texts_of(tmp_path / "figure.svg")
    assert "Some energies from an EMULATED machine" in text
    assert "vgg10/runtime/precision2 (emulated)" in text
    assert "runs run1, run2" in text


def test_a_long_warning_does_not_push_the_panels_aside() -> None:
    widths = []
    for methods in (("counter", "estimated"), ("estimated", "emulated")):
        figure = make_runs_figure([line(number, method=method) for number, method in enumerate(methods, 1)])
        figure.draw_without_rendering()
        widths.append(figure.axes[0].get_position().width)
    assert widths[1] == pytest.approx(widths[0], rel=0.02)


def test_the_share_of_the_driver_has_a_panel_if_there_is_one() -> None:
    figure = make_runs_figure([line(1), line(2, share=0.6)])
    assert len(figure.axes) == 3
    (drawn,) = figure.axes[2].lines
    assert list(drawn.get_ydata()) == [60.0] * len(SIZES)


def test_a_line_without_energies_is_drawn_with_its_throughput() -> None:
    points = tuple(LinePoint(batch_size=1, energy=None, throughput=Value(value=5.0)) for _ in range(1))
    empty = Line(label="x", hardware="", network="x", run="r", methods=frozenset(), accuracy_known=True, points=points)
    energy, throughput = make_runs_figure([empty]).axes
    assert [text.get_text() for text in energy.texts if text.get_text() == "no energy"] == ["no energy"]
    assert list(throughput.lines[0].get_ydata()) == [5.0]
