"""Figures of whole runs: their errors, and their training curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from keras_ldam.report import tables
from keras_ldam.report.canvas import Canvas, assigned, by_label, legend_above, looks
from keras_ldam.report.figures.common import SPLIT_TITLES, number
from keras_ldam.report.record import Run

_RIGHT_IS_BETTER = ("auc", "balanced_accuracy")


def errors(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Draws the errors of each title: seeds, mean and standard deviation, beside the paper's.

    Of a table's columns those of errors, and so many of them that there is room.
    """
    columns = [each for each in tables.columns(runs) if each.measure not in _RIGHT_IS_BETTER][:4]
    published = {run.title: run.published for run in runs}
    look_of = assigned({title: title for title in published})
    rows = 1 if not canvas.narrow else len(columns)
    height = (0.75 + 0.27 * len(published)) * rows + 0.45
    figure = canvas.figure(max(height, 1.9))
    panels = figure.subplots(
        rows, len(columns) // rows, sharex=True, sharey=not canvas.narrow, squeeze=False
    ).flatten()
    for axes, column in zip(panels, columns, strict=True):
        for place, (title, papers) in enumerate(published.items()):
            color, marker, _ = look_of[title]
            seeds = tables.seed_errors(runs, title, column)
            if seeds:
                cell = tables.spread(seeds)
                if len(seeds) > 1:
                    axes.plot(seeds, [place] * len(seeds), "|", color=color, ms=9, alpha=0.7)
                axes.errorbar(
                    cell.mean, place, xerr=cell.deviation, fmt=marker, color=color, capsize=3
                )
            paper = papers.get((column.group, column.measure))
            if paper is not None:
                axes.plot(paper, place, "D", mfc="none", color=canvas.ink, ms=7, mew=1.0)
        axes.set_yticks(range(len(published)), list(published))
        axes.set_ylim(len(published) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(column.title)
        axes.set_xlabel("error (%)")
    axes = panels[0]
    left, right = axes.get_xlim()  # One axis for all panels …
    right = max(1.0, right)
    if left < right / 2:  # … from zero, unless half of it would be empty.
        left = -0.02 * right
    axes.set_xlim(left, right)
    several = len({run.seed for run in runs}) > 1
    quoted = any(published.values())
    if several:
        axes.errorbar([], [], xerr=[], fmt="o", color=canvas.ink, capsize=3, label="mean ± sd")
        axes.plot([], [], "|", color=canvas.ink, ms=9, label="one seed")
    elif quoted:
        axes.plot([], [], "o", color=canvas.ink, label="one seed")
    if quoted:
        axes.plot([], [], "D", mfc="none", color=canvas.ink, ms=7, label="paper")
    if several or quoted:
        legend_above(figure, axes, canvas, 3)
    return figure


def with_history(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs whose training history is known."""
    return [run for run in runs if run.history]


def curves(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Draws training loss and balanced error by epoch, and when the deferred rule came on."""
    runs = with_history(runs)
    if not runs:
        return None
    split = runs[0].split
    series = [
        ("training loss", "loss (log scale)", "loss"),
        (f"balanced error, {SPLIT_TITLES.get(split, split)} examples", "error (%)", "error"),
    ]
    series = [
        (title, unit, column)
        for title, unit, column in series
        if any(np.isfinite(_line(run, column)).any() for run in runs)
    ]
    if not series:
        return None
    rows = len(series) if canvas.narrow else 1
    figure = canvas.figure(2.5 * rows + 0.6)
    panels = figure.subplots(rows, len(series) // rows, squeeze=False).flatten()
    given = looks(runs)
    switches: dict[int, list[str]] = {}
    for axes, (title, unit, column) in zip(panels, series, strict=True):
        for name, same in by_label(runs).items():
            color, _, dashes = given[name]
            lines = [_line(run, column) for run in same]
            for line in lines if len(lines) > 1 else ():
                axes.plot(*_points(line), color=color, lw=0.7, alpha=0.35)
            longest = max(map(len, lines))
            padded = [np.pad(line, (0, longest - len(line)), "edge") for line in lines]
            axes.plot(*_points(np.mean(padded, axis=0)), color=color, ls=dashes, label=name)
            switch = same[0].start_epoch
            if switch is not None and same[0].title not in switches.setdefault(switch, []):
                switches[switch].append(same[0].title)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if unit == "loss (log scale)":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
    for axes in panels:
        for switch, titles in switches.items():
            rule = titles[0].rpartition("-")[2] if len(titles) == 1 else ""
            axes.axvline(switch + 0.5, color=canvas.ink, lw=1, ls=(0, (2, 2)))
            axes.annotate(
                f"{rule if rule in ('DRS', 'DRW') else 'deferred rule'} on",
                (switch + 0.5, 0.97),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 0),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=8,
            )
    legend_above(figure, panels[0], canvas, len(given))
    return figure


def _line(run: Run, column: str) -> np.ndarray:
    """Returns the values of a column by epoch, NaN where there is none that can be drawn."""
    values = np.array([number(row.get(column)) for row in run.history])
    values[~np.isfinite(values) | ((values <= 0) & (column == "loss"))] = np.nan
    return values


def _points(line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the epochs that have a value, from one, and their values."""
    known = np.flatnonzero(~np.isnan(line))
    return known + 1, line[known]
