"""The figure of the bound that the margins come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from keras_ldam.report import theory
from keras_ldam.report.canvas import BLUE, GREY, ORANGE, RED, Canvas
from keras_ldam.report.record import Run


def trade_off(runs: Sequence[Run], canvas: Canvas) -> Figure:
    """Draws the bound for two classes against the share of the first's margin, and its minimum.

    The figure is the same for all runs: `runs` is not used.
    """
    rows = 2 if canvas.narrow else 1
    figure = canvas.figure(2.7 * rows)
    left, right = figure.subplots(rows, 2 // rows)
    share = np.linspace(0.02, 0.98, 400)
    pair = np.stack([share, 1 - share], axis=-1)
    for ratio, color, dashes in ((1, GREY, "-"), (10, ORANGE, "--"), (100, BLUE, "-.")):
        counts = [1000, 1000 // ratio]
        best = theory.best_margins(counts)
        smallest = theory.bound(best, counts)
        left.plot(
            share,
            theory.bound(pair, counts) / smallest,
            color=color,
            ls=dashes,
            label=f"n₁/n₂ = {ratio}",
        )
        left.plot(best[0], 1, "o", color=color)
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
        found = [theory.minimized([1000 * ratio, 1000], test_prior=prior) for ratio in tried]
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
