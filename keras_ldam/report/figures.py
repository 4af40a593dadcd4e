"""Figures of runs, for a page (SVG, wide and narrow) and for print (PNG).

Each function takes runs and a `Canvas` and returns a Matplotlib figure, or None where the runs do
not hold what it shows. Colours are those of Okabe and Ito (2008), which colour-blind readers tell
apart; markers and dashes tell the methods apart without colour.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from keras_ldam.report import tables
from keras_ldam.report.collection import Run

INK = "#1b1b1f"
_PAGE_INK = "#010203"
"""Stands for the page's own text colour in an SVG, and is replaced by it."""

_BLUE, _SKY, _GREEN, _ORANGE = "#0072b2", "#56b4e9", "#009e73", "#e69f00"
_RED, _PURPLE, _GREY = "#d55e00", "#cc79a7", "#8c8c8c"
_LOOKS = {
    "erm": (_RED, "o", "-"),
    "ldam_drw": (_BLUE, "s", "-"),
    "ldam": (_SKY, "^", "--"),
    "ce_drw": (_ORANGE, "D", "--"),
    "rw": (_PURPLE, "v", "-."),
    "rs": (_GREEN, "P", "-."),
    "cb_rw": (_PURPLE, "<", "-."),
    "cb_rs": (_GREEN, ">", "-."),
    "m_drw": (_GREEN, "X", ":"),
    "ldam_rw": (_ORANGE, "p", ":"),
    "focal": (_GREY, "h", ":"),
}
_SPARE = [(_GREY, "*", ":"), (_ORANGE, "d", ":"), (_PURPLE, "H", "--"), (_SKY, "8", ":")]
_SPLIT_TITLES = {"train": "training", "test": "test", "validation": "validation"}


@dataclasses.dataclass(frozen=True)
class Canvas:
    """What a figure is drawn on.

    Args:
        width: Inches. Below 5 panels stand under each other and legends above them.
        ink: Colour of text and lines.
    """

    width: float = 8.0
    ink: str = INK

    @property
    def narrow(self) -> bool:
        """Whether there is room for one panel only."""
        return self.width < 5

    def figure(self, height: float) -> Figure:
        """An empty figure of this width; `height` in inches."""
        figure = Figure(figsize=(self.width, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.patch.set_alpha(0)
        return figure

    @contextlib.contextmanager
    def style(self):
        """Matplotlib's settings for this canvas, and only inside."""
        ink = self.ink
        settings = {
            "font.size": 9,
            "font.family": "sans-serif",
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9,
            "axes.edgecolor": ink,
            "axes.labelcolor": ink,
            "axes.titlecolor": ink,
            "axes.facecolor": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": _GREY,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "xtick.color": ink,
            "ytick.color": ink,
            "text.color": ink,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "lines.linewidth": 1.6,
            "lines.markersize": 5.5,
            "svg.fonttype": "none",
            "axes.unicode_minus": True,
        }
        with matplotlib.rc_context(settings):
            yield


def png(draw: Callable, runs: Sequence[Run], path) -> bool:
    """Draws a figure into a PNG file on white; returns False if there is nothing to draw."""
    canvas = Canvas()
    with canvas.style():
        figure = draw(runs, canvas)
        if figure is None:
            return False
        figure.patch.set_alpha(1)
        figure.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return True


def svg(draw: Callable, runs: Sequence[Run], name: str, width: float) -> str | None:
    """Draws a figure as an `<svg>` element that takes the text colour of the page around it.

    Args:
        draw: One of this module's figures.
        runs: What it shows.
        name: Goes before every id, so that several figures can stand in one page.
        width: Inches.
    """
    canvas = Canvas(width, _PAGE_INK)
    with canvas.style():
        matplotlib.rcParams["svg.hashsalt"] = name
        figure = draw(runs, canvas)
        if figure is None:
            return None
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_PAGE_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    # The page's style decides the size.
    return re.sub(r'^<svg([^>]*?) (?:width|height)="[^"]*"', r"<svg\1", text).strip()


def look(method: str) -> tuple[str, str, str]:
    """Colour, marker and dashes of a method: the same in every figure."""
    if method in _LOOKS:
        return _LOOKS[method]
    return _SPARE[sum(map(ord, method)) % len(_SPARE)]


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that are seeds of one thing together, under the name that figures give it."""
    columns = {run.column for run in runs}
    together: dict[str, list[Run]] = {}
    for run in runs:
        name = run.label or tables.method_title(run.method)
        if len(columns) > 1:
            name += f", {tables.profile_title(run.column)}"
        together.setdefault(name, []).append(run)
    return together


def _legend_above(figure, axes, canvas, count):
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(count, 2 if canvas.narrow else 5))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


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
    published = tables.published.PAPER.get(runs[0].dataset, {})
    rows = 1 if not canvas.narrow else len(table_columns)
    height = (0.75 + 0.27 * len(methods)) * rows + 0.45
    figure = canvas.figure(max(height, 1.9))
    panels = figure.subplots(
        rows, len(table_columns) // rows, sharey=not canvas.narrow, squeeze=False
    ).flatten()
    for axes, column in zip(panels, table_columns, strict=True):
        for place, method in enumerate(methods):
            colour, marker, _ = look(method)
            cell = tables.cell(runs, method, column, tables.LAST)
            if cell is not None:
                seeds = tables.seed_errors(runs, method, column, tables.LAST)
                axes.plot(seeds, [place] * len(seeds), "|", color=colour, ms=9, alpha=0.7)
                axes.errorbar(
                    cell.mean, place, xerr=cell.deviation, fmt=marker, color=colour, capsize=3
                )
            paper = published.get(method, {}).get((column.imbalance, column.ratio, column.measure))
            if paper is not None:
                axes.plot(paper, place, "D", mfc="none", color=canvas.ink, ms=7, mew=1.0)
        axes.set_yticks(range(len(methods)), [tables.method_title(m) for m in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(column.title)
        axes.set_xlabel("error (%)")
    axes = panels[0]
    axes.errorbar([], [], xerr=[], fmt="o", color=canvas.ink, capsize=3, label="mean ± sd")
    axes.plot([], [], "|", color=canvas.ink, ms=9, label="one seed")
    if any(method in published for method in methods):
        axes.plot([], [], "D", mfc="none", color=canvas.ink, ms=7, label="paper")
    _legend_above(figure, axes, canvas, 3)
    return figure


def caption(runs: Sequence[Run]) -> str:
    """Who is in a figure: methods with their seeds, counts and test examples."""
    parts = []
    for name, same in by_label(runs).items():
        seeds = sorted({run.seed for run in same})
        shown = f"seed {seeds[0]}" if len(seeds) == 1 else "seeds " + ", ".join(map(str, seeds))
        parts.append(f"{name}: {shown}")
    return "; ".join(parts)
