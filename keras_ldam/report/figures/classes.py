"""Figures of classes: errors and margins against the number of training examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from keras_ldam import counts as class_counts
from keras_ldam.report.canvas import Canvas, by_label, legend_above, looks
from keras_ldam.report.figures.common import (
    FEW_CLASSES,
    MOST_POINTS,
    SPLIT_TITLES,
    number,
    short,
)
from keras_ldam.report.record import Run


def mean_errors(runs: Sequence[Run]) -> np.ndarray:
    """Returns the error of each class, the mean over runs, of shape `(num_classes,)`."""
    if len(runs) == 1:
        return runs[0].per_class
    return np.asarray(sum(run.per_class for run in runs) / len(runs))


def class_errors(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Draws the error of each class against its training examples, runs overlaid."""
    runs = [run for run in runs if run.counts is not None]
    if not runs:
        return None
    counts = np.asarray(runs[0].counts)
    figure = canvas.figure(3.0 if not canvas.narrow else 3.2)
    axes = figure.subplots()
    given = looks(runs)
    x = _class_axis(axes, runs[0], canvas)
    similar = _similar(x)
    for name, same in by_label(runs).items():
        color, marker, dashes = given[name]
        mean = mean_errors(same)
        if len(counts) <= FEW_CLASSES:
            order = np.argsort(-counts, kind="stable")
            errors = np.array([run.per_class for run in same])
            deviation = errors.std(axis=0, ddof=1) if len(same) > 1 else None
            axes.errorbar(
                x[order],
                mean[order],
                None if deviation is None else deviation[order],
                color=color,
                marker=marker,
                ls=dashes,
                capsize=2,
                elinewidth=0.8,
                label=name,
            )
        else:
            _draw_classes(axes, x, mean, similar, color, marker, ls=dashes, label=name)
    axes.set_ylabel("error (%)")
    axes.set_ylim(bottom=min(-2.0, axes.get_ylim()[0]))
    legend_above(figure, axes, canvas, len(given))
    return figure


def with_margins(runs: Sequence[Run]) -> list[Run]:
    """Returns the first run of each name in figures whose margins are known."""
    known = [run for run in runs if run.counts is not None and run.margins]
    return [same[0] for same in by_label(known).values()]


def margins(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Draws the margin of each class against its training examples, and what the loss demands."""
    runs = with_margins(runs)
    if not runs:
        return None
    counts = np.asarray(runs[0].counts)
    splits = [split for split in runs[0].margins if split in SPLIT_TITLES]
    rows = len(splits) if canvas.narrow else 1
    figure = canvas.figure(2.9 * rows + 0.7)
    panels = figure.subplots(rows, len(splits) // rows, squeeze=False).flatten()
    given = looks(runs)
    few = len(counts) <= FEW_CLASSES
    units = {values["unit"] for run in runs for values in run.margins.values()}
    for axes, split in zip(panels, splits, strict=True):
        x = _class_axis(axes, runs[0], canvas, beside=len(splits) // rows)
        order, similar = np.argsort(-counts, kind="stable"), _similar(x)
        for place, (name, (run,)) in enumerate(by_label(runs).items()):
            color, marker, _ = given[name]
            values = run.margins.get(split)
            if values is None:
                continue
            low, q05, q50 = (
                np.array(values[key], dtype=np.float64) for key in ("min", "q05", "q50")
            )
            if few:
                at = x + (place - (len(runs) - 1) / 2) * 0.16
                axes.vlines(at, low, q50, color=color, lw=1.2)
                axes.plot(at, q05, "_", color=color, ms=7, mew=1.6)
                axes.plot(at, q50, marker, color=color, mfc="none", ms=4.5)
                axes.plot(at, low, marker, color=color, label=name)
            else:
                _draw_classes(axes, x, low, similar, color, marker, label=name)
        order = _some(order)
        for i, (demanded, text) in enumerate(_demanded(runs)):
            dashes = (4, 2) if i == 0 else (1, 1.5)
            axes.plot(
                x[order], demanded[order], color=canvas.ink, ls=(0, dashes), lw=1.3, label=text
            )
        axes.axhline(0, color=canvas.ink, lw=0.8)
        axes.set_title(f"{SPLIT_TITLES[split]} examples")
        axes.set_ylabel(f"margin γ ({_unit_title(units)})")
    if few:  # How to read a mark, in the ink of the page.
        panels[0].plot([], [], "s", color=canvas.ink, label="smallest")
        panels[0].plot([], [], "_", color=canvas.ink, ms=7, mew=1.6, label="5 % quantile")
        panels[0].plot([], [], "s", color=canvas.ink, mfc="none", ms=4.5, label="median")
    legend_above(figure, panels[0], canvas, 6)
    return figure


def _demanded(runs: Sequence[Run]) -> list[tuple[np.ndarray, str]]:
    """Returns the margins that the runs' losses demand, each once, and what they are called."""
    found: dict[bytes, tuple[np.ndarray, str]] = {}
    for run in runs:
        if run.demanded is None:
            continue
        demanded = np.asarray(run.demanded)
        constant = demanded * np.asarray(run.counts) ** 0.25
        if np.allclose(constant, constant[0], rtol=1e-3):
            text = f"Δ = C/⁴√n, C = {constant[0]:.2f}"
        else:
            uniform = np.allclose(demanded, demanded[0], rtol=1e-3)
            text = "Δ, the same for all" if uniform else "Δ, as the loss demands"
        found.setdefault(np.round(demanded, 6).tobytes(), (demanded, text))
    return list(found.values())


def _unit_title(units: set[str]) -> str:
    cosines = {"cosine", "normalized score", "normalised score"}  # The last in older results.
    if units <= cosines:
        return "cosine units"
    if units <= {*cosines, "score"}:
        return "score units"
    return ", ".join(sorted(units))


def _class_axis(axes: Axes, run: Run, canvas: Canvas, beside: int = 1) -> np.ndarray:
    """Prepares the axis of classes; returns the place of each class on it, in class order.

    `beside` is the number of panels that share the width.
    """
    counts = np.asarray(run.counts)
    between = (counts > counts.min()) & (counts < counts.max())
    if len(counts) > FEW_CLASSES and between.any():
        axes.set_xscale("log")
        axes.invert_xaxis()
        marked = (1, 2, 5) if counts.max() < 10**4 * counts.min() else (1,)
        axes.xaxis.set_major_locator(LogLocator(10, marked, numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("training examples of the class (log scale)")
        return counts.astype(float)
    order = np.argsort(-counts, kind="stable")
    places = np.empty(len(counts))
    places[order] = np.arange(len(counts))
    if len(counts) <= FEW_CLASSES:
        longest = 7 if canvas.narrow else 12
        names = [short(run.class_names, j, longest) for j in order]
        axes.set_xticks(
            range(len(counts)),
            [f"{name}\n{counts[j]:,}" for name, j in zip(names, order, strict=True)],
            fontsize=7 if len(counts) > 6 else 9,
        )
        if max(map(len, names)) * len(names) > (40 if canvas.narrow else 110 // beside):
            axes.tick_params(axis="x", rotation=60)
        axes.set_xlim(-0.6, len(counts) - 0.4)
        axes.set_xlabel("class, and its training examples")
    else:
        axes.set_xlabel("class, by training examples")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return places


def _similar(x: np.ndarray) -> list[np.ndarray]:
    """Returns groups of classes that are side by side on their axis.

    They have equally many classes; of very many, equally wide ranges of counts: the few most
    frequent classes would all be in one group.
    """
    order = np.argsort(x, kind="stable")
    if len(x) <= MOST_POINTS or x.min() < 1:  # Places in an order begin at 0.
        return np.array_split(order, min(12, len(order)))
    edges = np.geomspace(x.min(), x.max(), 25)[1:-1]
    return [group for group in np.split(order, np.searchsorted(x[order], edges)) if len(group)]


def _draw_classes(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    similar: Sequence[np.ndarray],
    color: str,
    marker: str,
    **line: Any,
) -> None:
    """Draws a point for each class, or of very many the interquartile range, and means."""
    similar = [group for group in similar if np.isfinite(y[group]).any()]
    at = [x[group].mean() for group in similar]
    if len(x) > MOST_POINTS:
        low, high = np.transpose([np.nanquantile(y[group], [0.25, 0.75]) for group in similar])
        axes.fill_between(at, low, high, color=color, alpha=0.12, lw=0)
    else:  # Thousands as one picture, to keep pages small.
        crowded = len(x) > 500
        look: dict[str, Any] = {
            "ms": 3,
            "mew": 0,
            "alpha": 0.1 if crowded else 0.45,
            "rasterized": crowded,
        }
        axes.plot(x, y, marker, color=color, **look)
    axes.plot(at, [np.nanmean(y[group]) for group in similar], color=color, **line)


def _some(order: np.ndarray) -> np.ndarray:
    """Returns as many of very many classes as make a line."""
    if len(order) <= MOST_POINTS:
        return order
    steps = (np.geomspace(1, len(order), 200) - 1, np.linspace(0, len(order) - 1, 200))
    return order[np.unique(np.concatenate(steps).astype(np.int64))]


def groups(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Draws the error over the classes with many, medium and few training examples."""
    names = [
        name
        for name in ("many", "medium", "few")
        if any(f"{name}_error" in run.errors for run in runs)
    ]
    if len(names) < 2:
        return None
    sizes = {}
    if runs[0].counts is not None:
        sizes = {k: len(v) for k, v in class_counts.shot_groups(runs[0].counts).items()}
    figure = canvas.figure(2.8)
    axes = figure.subplots()
    given, together = looks(runs), by_label(runs)
    width = 0.8 / len(together)
    for place, (label, same) in enumerate(together.items()):
        color, _, _ = given[label]
        errors = np.array(
            [[number(run.errors.get(f"{name}_error")) for name in names] for run in same]
        )
        at = np.arange(len(names)) + (place - (len(together) - 1) / 2) * width
        deviation = errors.std(axis=0, ddof=1) if len(same) > 1 else None
        mean = errors.mean(axis=0)
        axes.bar(at, mean, width * 0.92, color=color, label=label)
        if deviation is not None:
            axes.errorbar(at, mean, deviation, fmt="none", ecolor=canvas.ink, capsize=3, lw=1)
        above = mean + (0 if deviation is None else deviation)
        for where, top, value in zip(at, above, mean, strict=True):
            if np.isfinite(value):
                axes.annotate(
                    f"{value:.1f}",
                    (where, top),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8 if len(together) < 4 else 6.5,
                )
    rule = {"many": "> 100", "medium": "20–100", "few": "< 20"}
    axes.set_xticks(
        range(len(names)),
        [
            f"{name} ({rule[name]} examples)" if not canvas.narrow else f"{name}\n({rule[name]})"
            for name in names
        ],
    )
    if sizes:
        listed = ", ".join(f"{sizes[name]:,} {name}" for name in names)
        axes.set_xlabel(f"classes: {listed}")
    axes.set_ylabel("mean error (%)")
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)
    axes.set_ylim(bottom=0)
    legend_above(figure, axes, canvas, len(given))
    return figure
