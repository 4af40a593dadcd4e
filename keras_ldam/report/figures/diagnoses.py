"""Figures of diagnosed runs: confusions and reliability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_ldam.report.canvas import Canvas, by_label, looks
from keras_ldam.report.figures.common import FEW_CLASSES, short
from keras_ldam.report.record import Run


def diagnosed(runs: Sequence[Run]) -> dict[str, tuple[Run, Mapping[str, Any]]]:
    """Returns the first diagnosed run of each name in figures, with its diagnosis."""
    known = [run for run in runs if run.diagnosis and run.counts is not None]
    return {name: (same[0], same[0].diagnosis or {}) for name, same in by_label(known).items()}


def confused(runs: Sequence[Run]) -> dict[str, tuple[Run, Mapping[str, Any]]]:
    """Returns those of `diagnosed` whose confusions have room: of more than three the outer two."""
    found = list(diagnosed(runs).items())
    return dict(found if len(found) <= 3 else [found[0], found[-1]])


def confusion(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Draws which classes are taken for which: rows are labels, columns guesses, from the most
    frequent class to the rarest, as shares of the row.
    """
    chosen = list(confused(runs).items())
    if not chosen:
        return None
    grouped = any(diagnosis["confusion"] is None for _, (_, diagnosis) in chosen)
    rows = len(chosen) if canvas.narrow else 1
    columns = len(chosen) // rows
    side = canvas.width / columns
    figure = canvas.figure(3.35 * rows + 0.8 if canvas.narrow else min(side + 0.4, 4.2))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, (run, diagnosis)) in zip(panels, chosen, strict=True):
        if grouped:
            cells, names = (
                np.array(diagnosis["group_confusion"], np.float64),
                ["many", "medium", "few"],
            )
            held = cells.sum(axis=1) + cells.sum(axis=0) > 0
            cells, names = (
                cells[np.ix_(held, held)],
                [n for n, h in zip(names, held, strict=True) if h],
            )
        else:
            order = np.argsort(-np.asarray(run.counts), kind="stable")
            cells = np.array(diagnosis["confusion"], np.float64)[np.ix_(order, order)]
            names = [short(run.class_names, j, 9) for j in order]
        with np.errstate(invalid="ignore"):
            shares = 100 * cells / cells.sum(axis=1, keepdims=True)
        colors = LinearSegmentedColormap.from_list("share", ["#0072b200", "#0072b2ff"])
        few = len(cells) <= FEW_CLASSES
        # Among many classes a share of 2 % is much: the square root of shares brings it out.
        scale = PowerNorm(1 if few else 0.5, 0, 100)
        image = axes.imshow(
            shares, cmap=colors, norm=scale, aspect="equal", interpolation="nearest"
        )
        axes.grid(visible=False)
        axes.spines[:].set_visible(True)
        if few:
            axes.set_xticks(range(len(cells)), names, fontsize=8)
            axes.set_yticks(range(len(cells)), names, fontsize=8)
            if max(map(len, names)) > 2:
                axes.tick_params(axis="x", rotation=60 if len(cells) > 3 else 0)
            for i, row in enumerate(shares):
                for j, share in enumerate(row):
                    if share >= 0.5:
                        ink = "white" if share > 55 else canvas.ink
                        axes.text(
                            j, i, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=7.5
                        )
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_title(name)
        axes.set_xlabel("predicted" if few else "predicted, most frequent class first")
        axes.set_ylabel("label" if few else "label, most frequent class first")
    bar = figure.colorbar(
        image,
        ax=list(panels),
        location="bottom" if canvas.narrow else "right",
        shrink=0.8,
        label="share of the label's examples (%)",
    )
    bar.outline.set_edgecolor(canvas.ink)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    return figure


FEWEST_GUESSES = 10
"""Bins with fewer guesses have a faint point in the reliability diagram."""


def reliability(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Draws how often guesses of a given confidence are right."""
    found = diagnosed(runs)
    if not found:
        return None
    figure = canvas.figure(3.6 if not canvas.narrow else 5.0)
    if canvas.narrow:
        axes, below = figure.subplots(2, 1, height_ratios=(3, 2))
    else:
        axes, below = figure.subplots(1, 2)
    given = looks([run for run, _ in found.values()])
    axes.plot([0, 100], [0, 100], color=canvas.ink, lw=0.9, ls=(0, (2, 2)))
    for place, (name, (_, diagnosis)) in enumerate(found.items()):
        color, marker, dashes = given[name]
        bins = diagnosis["reliability"]
        many = [i for i, n in enumerate(bins["count"]) if n >= FEWEST_GUESSES]
        few = [i for i, n in enumerate(bins["count"]) if 0 < n < FEWEST_GUESSES]
        for chosen, look in (
            (many, {"ls": dashes, "label": f"{name} (ECE {100 * bins['ece']:.1f} %)"}),
            (few, {"ls": "", "mfc": "none", "alpha": 0.5, "ms": 4}),
        ):
            axes.plot(
                [100 * bins["confidence"][i] for i in chosen],
                [100 * bins["accuracy"][i] for i in chosen],
                marker=marker,
                color=color,
                clip_on=not chosen,  # Nothing, not clipped, would take up the whole figure.
                **look,
            )
        count = np.array(bins["count"])
        edges = np.linspace(0, 100, len(count) + 1)
        width = (edges[1] - edges[0]) * 0.84 / len(found)
        below.bar(
            (edges[:-1] + edges[1:]) / 2 + (place - (len(found) - 1) / 2) * width,
            100 * count / count.sum(),
            width,
            color=color,
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)
    axes.set_ylabel("of these right (%)")
    axes.set_xlabel("confidence of the guess (%)")
    below.set_xlim(0, 100)
    below.set_xlabel("confidence of the guess (%)")
    below.set_ylabel("share of guesses (%)")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=1 if canvas.narrow else 3)
    return figure
