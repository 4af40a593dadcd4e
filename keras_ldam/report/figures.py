"""Figures of runs. Each takes runs and a `Canvas`, and returns a Matplotlib figure, or None where
the runs do not hold what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from keras_ldam import counts as class_counts
from keras_ldam.report import published, tables, theory
from keras_ldam.report.canvas import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    Canvas,
    assigned,
    by_label,
    legend_above,
    looks,
)
from keras_ldam.report.collection import Run

_SPLIT_TITLES = {"train": "training", "test": "test", "validation": "validation"}

# ----------------------------------------------------------------------------- errors


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
    right = max(1.0, axes.get_xlim()[1])  # One axis for all panels, from zero.
    axes.set_xlim(-0.02 * right, right)
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


# ----------------------------------------------------------------------------- training


def curves(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Training loss and balanced error by epoch, with the moment the deferred rule came on."""
    runs = [run for run in runs if run.history]
    if not runs:
        return None
    split = runs[0].results["split"]
    series = [
        ("training loss", "loss (log scale)", lambda row: row.get("loss")),
        (
            f"balanced error, {_SPLIT_TITLES.get(split, split)} examples",
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
            lines = [np.array([_number(value(row)) for row in run.history]) for run in same]
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


def _number(value):
    return math.nan if value is None else value


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


# ----------------------------------------------------------------------------- class by class

FEW_CLASSES = 12
"""Up to this many classes stand side by side under their names."""


def class_errors(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Error of each class against its number of training examples, methods overlaid."""
    runs = [run for run in runs if run.counts]
    if not runs:
        return None
    counts = np.array(runs[0].counts)
    figure = canvas.figure(3.0 if not canvas.narrow else 3.2)
    axes = figure.subplots()
    given = looks(runs)
    x = _class_axis(axes, runs[0], canvas)
    order = np.argsort(-counts, kind="stable")
    for name, same in by_label(runs).items():
        colour, marker, dashes = given[name]
        errors = np.array(
            [[_number(e) for e in run.results["last"]["per_class_error"]] for run in same]
        )
        mean = errors.mean(axis=0)
        if len(counts) <= FEW_CLASSES:
            deviation = errors.std(axis=0, ddof=1) if len(same) > 1 else None
            axes.errorbar(
                x[order],
                mean[order],
                None if deviation is None else deviation[order],
                color=colour,
                marker=marker,
                ls=dashes,
                capsize=2,
                elinewidth=0.8,
                label=name,
            )
        else:
            axes.plot(x, mean, marker, color=colour, **_cloud(counts))
            axes.plot(*_running(x, mean), color=colour, ls=dashes, label=name)
    axes.set_ylabel("error (%)")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set_ylim(-2, None)
    legend_above(figure, axes, canvas, len(given))
    return figure


def margins(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Achieved margin of each class against its training examples, with C n^(-1/4) beside it."""
    runs = [run for run in runs if run.counts and run.results.get("margins")]
    runs = [same[0] for same in by_label(runs).values()]
    if not runs:
        return None
    counts = np.array(runs[0].counts)
    splits = [split for split in runs[0].results["margins"] if split in _SPLIT_TITLES]
    rows = len(splits) if canvas.narrow else 1
    figure = canvas.figure(2.9 * rows + 0.7)
    panels = figure.subplots(rows, len(splits) // rows, squeeze=False).flatten()
    given = looks(runs)
    few = len(counts) <= FEW_CLASSES
    units = {run.results["margins"][splits[0]]["unit"] for run in runs}
    for axes, split in zip(panels, splits, strict=True):
        x = _class_axis(axes, runs[0], canvas)
        order = np.argsort(-counts, kind="stable")
        for place, (name, (run,)) in enumerate(by_label(runs).items()):
            colour, marker, _ = given[name]
            values = run.results["margins"].get(split)
            if values is None:
                continue
            low, q05, q50 = (
                np.array([_number(v) for v in values[key]]) for key in ("min", "q05", "q50")
            )
            if few:
                at = x + (place - (len(runs) - 1) / 2) * 0.16
                axes.vlines(at, low, q50, color=colour, lw=1.2)
                axes.plot(at, q05, "_", color=colour, ms=7, mew=1.6)
                axes.plot(at, q50, marker, color=colour, mfc="none", ms=4.5)
                axes.plot(at, low, marker, color=colour, label=name)
            else:
                axes.plot(x, low, marker, color=colour, **_cloud(counts))
                axes.plot(*_running(x, low), color=colour, label=name)
        for needed, text in _required(runs):
            axes.plot(x[order], needed[order], color=canvas.ink, ls=(0, (4, 2)), lw=1.3, label=text)
        axes.axhline(0, color=canvas.ink, lw=0.8)
        axes.set_title(f"{_SPLIT_TITLES[split]} examples")
        axes.set_ylabel(f"margin γ ({_unit_title(units)})")
    if few:  # How to read a mark, in the ink of the page.
        panels[0].plot([], [], "s", color=canvas.ink, label="smallest")
        panels[0].plot([], [], "_", color=canvas.ink, ms=7, mew=1.6, label="5 % quantile")
        panels[0].plot([], [], "s", color=canvas.ink, mfc="none", ms=4.5, label="median")
    legend_above(figure, panels[0], canvas, 6)
    return figure


def _required(runs):
    """The margins Δ `[K]` that the runs' losses ask for, and what they are called; each once."""
    found = {}
    for run in runs:
        config = run.results.get("config") or {}
        exponent = config.get("exponent", 0.0 if config.get("loss") == "uniform_margin" else 0.25)
        needed = run.results.get("required")  # A user's own loss; ours follow from the config.
        if needed is None and config.get("loss") in ("ldam", "ldam_hinge", "uniform_margin"):
            needed = class_counts.margins(run.counts, config["max_margin"], exponent=exponent)
        if needed is None:
            continue
        constant = np.asarray(needed) * np.asarray(run.counts) ** 0.25
        if np.allclose(constant, constant[0], rtol=1e-3):
            text = f"Δ = C/⁴√n, C = {constant[0]:.2f}"
        else:
            text = "Δ, the same for all" if exponent == 0 else "Δ, as the loss asks"
        found.setdefault(tuple(np.round(needed, 6)), text)
    return [(np.array(needed), text) for needed, text in found.items()]


def _unit_title(units):
    if units <= {"cosine", "normalised score"}:
        return "cosine units"
    if units <= {"cosine", "normalised score", "score"}:
        return "score units"
    return ", ".join(sorted(units))


def _class_axis(axes, run, canvas):
    """Prepares the axis of classes; returns each class's place on it, in class order."""
    counts = np.array(run.counts)
    if len(counts) > FEW_CLASSES and len(np.unique(counts)) > 2:
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("training examples of the class (log scale)")
        return counts.astype(float)
    order = np.argsort(-counts, kind="stable")
    places = np.empty(len(counts))
    places[order] = np.arange(len(counts))
    if len(counts) <= FEW_CLASSES:
        longest = 7 if canvas.narrow else 12
        names = [_short(run.class_names, j, longest) for j in order]
        axes.set_xticks(
            range(len(counts)),
            [f"{name}\n{counts[j]:,}" for name, j in zip(names, order, strict=True)],
            fontsize=7 if len(counts) > 6 else 9,
        )
        if max(map(len, names)) * len(names) > (40 if canvas.narrow else 110):
            axes.tick_params(axis="x", rotation=60)
        axes.set_xlim(-0.6, len(counts) - 0.4)
        axes.set_xlabel("class, and its training examples")
    else:
        axes.set_xlabel("class, by training examples")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return places


def _short(names, j, longest):
    name = str(names[j]) if j < len(names) else str(j)
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _cloud(counts):
    """How a point for each class is drawn; thousands as one picture, to keep pages small."""
    crowded = len(counts) > 500
    return {"ms": 3, "mew": 0, "alpha": 0.1 if crowded else 0.45, "rasterized": crowded}


def _running(x, y, pieces=12):
    """Means over classes of like count: a line through a cloud."""
    order = np.argsort(x, kind="stable")
    groups = np.array_split(order, min(pieces, len(order)))
    groups = [group for group in groups if np.isfinite(y[group]).any()]
    return [x[g].mean() for g in groups], [np.nanmean(y[g]) for g in groups]


def groups(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Error over the classes with many, medium and few training examples."""
    names = [
        name
        for name in ("many", "medium", "few")
        if any(f"{name}_error" in run.results["last"] for run in runs)
    ]
    if len(names) < 2:
        return None
    sizes = {}
    if runs[0].counts:
        sizes = {k: len(v) for k, v in class_counts.shot_groups(runs[0].counts).items()}
    figure = canvas.figure(2.8)
    axes = figure.subplots()
    given, together = looks(runs), by_label(runs)
    width = 0.8 / len(together)
    for place, (label, same) in enumerate(together.items()):
        colour, _, _ = given[label]
        errors = np.array(
            [[_number(run.results["last"].get(f"{name}_error")) for name in names] for run in same]
        )
        at = np.arange(len(names)) + (place - (len(together) - 1) / 2) * width
        deviation = errors.std(axis=0, ddof=1) if len(same) > 1 else None
        mean = errors.mean(axis=0)
        axes.bar(at, mean, width * 0.92, color=colour, label=label)
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


# ----------------------------------------------------------------------------- diagnoses


def diagnosed(runs: Sequence[Run]) -> list[Run]:
    """Of each label the first run that has been diagnosed."""
    return [run for run, _ in _diagnosed(runs).values()]


def _diagnosed(runs):
    found = {}
    for name, same in by_label(runs).items():
        for run in same:
            split = ((run.diagnosis or {}).get("splits") or {}).get(run.results["split"])
            if split is not None:
                found[name] = run, split
                break
    return found


def confusion(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """Which classes are taken for which: rows are labels, columns guesses, as shares of the row.

    From the most frequent class to the rarest.
    """
    found = _diagnosed(runs)
    if not found:
        return None
    chosen = list(found.items())
    if len(chosen) > 3:
        chosen = [chosen[0], chosen[-1]]
    grouped = any(split["confusion"] is None for _, (_, split) in chosen)
    rows = len(chosen) if canvas.narrow else 1
    columns = len(chosen) // rows
    side = canvas.width / columns
    figure = canvas.figure(3.35 * rows + 0.8 if canvas.narrow else min(side + 0.4, 4.2))
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, (run, split)) in zip(panels, chosen, strict=True):
        if grouped:
            cells, names = np.array(split["group_confusion"], float), ["many", "medium", "few"]
            held = cells.sum(axis=1) + cells.sum(axis=0) > 0
            cells, names = (
                cells[np.ix_(held, held)],
                [n for n, h in zip(names, held, strict=True) if h],
            )
        else:
            order = np.argsort(-np.array(run.counts), kind="stable")
            cells = np.array(split["confusion"], float)[np.ix_(order, order)]
            names = [_short(run.class_names, j, 9) for j in order]
        with np.errstate(invalid="ignore"):
            shares = 100 * cells / cells.sum(axis=1, keepdims=True)
        colours = LinearSegmentedColormap.from_list("share", ["#0072b200", "#0072b2ff"])
        few = len(cells) <= FEW_CLASSES
        # Among many classes a share of 2 % is much: the square root of shares brings it out.
        scale = PowerNorm(1 if few else 0.5, 0, 100)
        image = axes.imshow(
            shares, cmap=colours, norm=scale, aspect="equal", interpolation="nearest"
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
    bar.solids.set_rasterized(True)
    return figure


FEWEST_GUESSES = 10
"""A bin with fewer guesses has a faint point only in the reliability diagram."""


def reliability(runs: Sequence[Run], canvas: Canvas) -> Figure | None:
    """How often guesses of a given confidence are right."""
    found = _diagnosed(runs)
    if not found:
        return None
    figure = canvas.figure(3.6 if not canvas.narrow else 5.0)
    if canvas.narrow:
        axes, below = figure.subplots(2, 1, height_ratios=(3, 2))
    else:
        axes, below = figure.subplots(1, 2)
    given = looks([run for run, _ in found.values()])
    axes.plot([0, 100], [0, 100], color=canvas.ink, lw=0.9, ls=(0, (2, 2)))
    for place, (name, (_, split)) in enumerate(found.items()):
        colour, marker, dashes = given[name]
        bins = split["reliability"]
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
                color=colour,
                clip_on=False,
                **look,
            )
        count = np.array(bins["count"])
        edges = np.linspace(0, 100, len(count) + 1)
        width = (edges[1] - edges[0]) * 0.84 / len(found)
        below.bar(
            (edges[:-1] + edges[1:]) / 2 + (place - (len(found) - 1) / 2) * width,
            100 * count / count.sum(),
            width,
            color=colour,
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


# ----------------------------------------------------------------------------- theory


def trade_off(runs: Sequence[Run], canvas: Canvas) -> Figure:
    """The bound for two classes against the share of the first's margin; and where it is smallest.

    The same for all runs: `runs` is not looked at.
    """
    rows = 2 if canvas.narrow else 1
    figure = canvas.figure(2.7 * rows)
    left, right = figure.subplots(rows, 2 // rows)
    share = np.linspace(0.02, 0.98, 400)
    pair = np.stack([share, 1 - share], axis=-1)
    for ratio, colour, dashes in ((1, GREY, "-"), (10, ORANGE, "--"), (100, BLUE, "-.")):
        counts = [1000, 1000 // ratio]
        best = theory.best_margins(counts)
        smallest = theory.bound(best, counts)
        left.plot(
            share,
            theory.bound(pair, counts) / smallest,
            color=colour,
            ls=dashes,
            label=f"n₁/n₂ = {ratio}",
        )
        left.plot(best[0], 1, "o", color=colour)
    left.legend(loc="upper center")
    left.set_ylim(0.9, 6)
    left.set_xlim(0, 1)
    left.set_xlabel("share of the frequent class, γ₁/β")
    left.set_ylabel("bound / its minimum")
    left.set_title("The bound, γ₁ + γ₂ = β")
    ratios = np.geomspace(1, 1000, 60)
    tried = [1, 3, 10, 30, 100, 300, 1000]
    for prior, text, dashes in (
        ((1, 1), "test classes alike", "-"),
        ((10, 1), "first class 10× as frequent", "--"),
    ):
        # What matters is the ratio of the counts; a thousand of the rarer makes it a whole number.
        closed = [
            theory.best_margins([round(1000 * ratio), 1000], test_prior=prior)[0]
            for ratio in ratios
        ]
        right.plot(ratios, closed, color=canvas.ink, ls=dashes, label=text)
        found = [theory.minimised([1000 * ratio, 1000], test_prior=prior) for ratio in tried]
        right.plot(tried, found, "o", color=RED)
    right.plot([], [], "o", color=RED, label="numerical minimum")
    right.set_xscale("log")
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.set_ylim(0, 0.99)
    right.set_xlabel("imbalance n₁/n₂ (log scale)")
    right.set_ylabel("best γ₁/β")
    right.set_title("Where it is smallest")
    right.legend()
    return figure
