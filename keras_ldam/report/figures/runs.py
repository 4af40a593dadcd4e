"""Figures of runs as wholes: their errors in the end, and their curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from keras_ldam.experiments.tables import published
from keras_ldam.experiments.tables.collection import Run
from keras_ldam.report import tables
from keras_ldam.report.canvas import Canvas, assigned, by_label, legend_above, looks
from keras_ldam.report.figures.common import SPLIT_TITLES, number


def errors(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Error per method: each seed, mean and standard deviation, beside the paper's number."""
    table_columns = [
        column
        for column in tables.columns_of(runs)
        if any(run.column == (column.imbalance, column.ratio) for run in runs)
    ]
    if len(table_columns) > 4:
        table_columns = table_columns[:4]
    methods = list(dict.fromkeys(run.method for run in runs))
    name_of = {run.method: run.label or tables.method_title(run.method) for run in runs}
    look_of = assigned({name_of[method]: method for method in methods})
    paper_errors = published.PAPER.get(runs[0].dataset, {})
    rows = 1 if not canvas.narrow else len(table_columns)
    height = (0.75 + 0.27 * len(methods)) * rows + 0.45
    figure = canvas.figure(max(height, 1.9))
    panels = figure.subplots(
        rows, len(table_columns) // rows, sharex=True, sharey=not canvas.narrow, squeeze=False
    ).flatten()
    for axes, column in zip(panels, table_columns, strict=True):
        for place, method in enumerate(methods):
            colour, marker, _ = look_of[name_of[method]]
            cell = tables.cell(runs, method, column, tables.LAST)
            if cell is not None:
                seeds = tables.seed_errors(runs, method, column, tables.LAST)
                if len(seeds) > 1:
                    axes.plot(seeds, [place] * len(seeds), "|", color=colour, ms=9, alpha=0.7)
                axes.errorbar(
                    cell.mean, place, xerr=cell.deviation, fmt=marker, color=colour, capsize=3
                )
            paper = paper_errors.get(method, {}).get(
                (column.imbalance, column.ratio, column.measure)
            )
            if paper is not None:
                axes.plot(paper, place, "D", mfc="none", color=canvas.ink, ms=7, mew=1.0)
        axes.set_yticks(range(len(methods)), [name_of[method] for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
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
    quoted = any(method in paper_errors for method in methods)
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


def curves(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Training loss and balanced error by epoch, with the moment the deferred rule came on."""
    runs = [run for run in runs if run.history]
    if not runs:
        return None
    split = runs[0].results["split"]
    series = [
        ("training loss", "loss (log scale)", lambda row: row.get("loss")),
        (
            f"balanced error, {SPLIT_TITLES.get(split, split)} examples",
            "error (%)",
            _balanced_error(split),
        ),
    ]
    series = [
        (title, unit, value)
        for title, unit, value in series
        if any(value(row) is not None for run in runs for row in run.history)
    ]
    if not series:
        return None
    rows = len(series) if canvas.narrow else 1
    figure = canvas.figure(2.5 * rows + 0.6)
    panels = figure.subplots(rows, len(series) // rows, squeeze=False).flatten()
    given = looks(runs)
    switches: dict[int, list[str]] = {}
    for axes, (title, unit, value) in zip(panels, series, strict=True):
        for name, same in by_label(runs).items():
            colour, _, dashes = given[name]
            lines = [np.array([number(value(row)) for row in run.history]) for run in same]
            for line in lines if len(lines) > 1 else ():
                axes.plot(*_points(line), color=colour, lw=0.7, alpha=0.35)
            longest = max(map(len, lines))
            padded = [np.pad(line, (0, longest - len(line)), "edge") for line in lines]
            axes.plot(*_points(np.mean(padded, axis=0)), color=colour, ls=dashes, label=name)
            switch = _switch(same[0])
            if switch is not None and name not in switches.setdefault(switch, []):
                switches[switch].append(name)
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
        for switch, names in switches.items():
            axes.axvline(switch + 0.5, color=canvas.ink, lw=1, ls=(0, (2, 2)))
            axes.annotate(
                f"{names[0].split('-')[-1] if len(names) == 1 else 'deferred rule'} on",
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


def _balanced_error(split):
    def value(row):
        if f"{split}_mean_error" in row:
            return row[f"{split}_mean_error"]
        share = row.get("val_balanced_error", row.get("val_class_errors_balanced_error"))
        return None if share is None else 100 * share

    return value


def _points(line):
    """Epochs, from one, and their values; without the epochs that have none."""
    there = np.flatnonzero(~np.isnan(line))
    return there + 1, line[there]


def _switch(run):
    """How many epochs of a run had passed when its deferred rule came on; None for no such rule."""
    on = [row.get("reweighted", 0) > 0 for row in run.history]
    if any(on) and not on[0]:
        return on.index(True)
    config = run.results.get("config") or {}
    if config.get("rule") in ("drs", "drw") and config.get("start_epoch", -1) > 0:
        return config["start_epoch"]
    return None
