"""What figures are drawn on: a page that sets the text color, narrow or wide, or white paper.

The colors are those of Okabe and Ito (2008), which color-blind readers can tell apart; markers and
dashes tell methods apart without color.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from keras_ldam.report.record import Run

INK = "#1b1b1f"
_PAGE_INK = "#010203"
"""Stands for the page's own text color in an SVG, and is replaced by it."""

BLUE, SKY, GREEN, ORANGE = "#0072b2", "#56b4e9", "#009e73", "#e69f00"
RED, PURPLE, GREY = "#d55e00", "#cc79a7", "#8c8c8c"
_LOOKS = {
    "erm": (RED, "o", "-"),
    "ldam_drw": (BLUE, "s", "-"),
    "ldam": (SKY, "^", "--"),
    "ce_drw": (ORANGE, "D", "--"),
    "rw": (PURPLE, "v", "-."),
    "rs": (GREEN, "P", "-."),
    "cb_rw": (PURPLE, "<", "-."),
    "cb_rs": (GREEN, ">", "-."),
    "m_drw": (GREEN, "X", ":"),
    "ldam_rw": (ORANGE, "p", ":"),
    "focal": (GREY, "h", ":"),
}
_SPARE = [(GREY, "*", ":"), (ORANGE, "d", ":"), (PURPLE, "H", "--"), (SKY, "8", ":")]


@dataclasses.dataclass(frozen=True)
class Canvas:
    """What a figure is drawn on.

    Args:
        width: Inches. Below 5 panels stand under each other and legends above them.
        ink: Color of text and lines.
    """

    width: float = 8.0
    ink: str = INK

    @property
    def narrow(self) -> bool:
        """Whether there is room for one panel only."""
        return self.width < 5

    def figure(self, height: float) -> Figure:
        """Returns an empty figure of this width and a height in inches."""
        figure = Figure(figsize=(self.width, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.patch.set_alpha(0)
        return figure

    @contextlib.contextmanager
    def style(self) -> Iterator[None]:
        """Sets Matplotlib's settings for this canvas, inside the `with` block only."""
        ink = self.ink
        settings: Any = {
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
            "grid.color": GREY,
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
            "text.parse_math": False,  # A name may hold dollar signs.
        }
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            # A class may have a name in any script; browsers have fonts for it.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            yield


def png(draw: Callable[..., Figure | None], runs: Sequence[Run]) -> bytes | None:
    """Draws a figure as a PNG file on white; returns None if there is nothing to draw."""
    canvas = Canvas()
    with canvas.style():
        figure = draw(runs, canvas)
        if figure is None:
            return None
        figure.patch.set(alpha=1, color="white")
        figure.set_dpi(160)
        file = io.BytesIO()
        # `savefig` would draw it twice, once for its layout alone.
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def svg(
    draw: Callable[..., Figure | None], runs: Sequence[Run], name: str, width: float
) -> str | None:
    """Draws a figure as an `<svg>` element that takes the text color of the page around it.

    Args:
        draw: One of the functions of `keras_ldam.report.figures`.
        runs: What it shows.
        name: Prefix of every id, so that several figures can be in one page.
        width: Inches.

    Returns:
        The element, or None if there is nothing to draw.
    """
    canvas = Canvas(width, _PAGE_INK)
    with canvas.style():
        matplotlib.rcParams["svg.hashsalt"] = name
        figure = draw(runs, canvas)
        if figure is None:
            return None
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(_PAGE_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    # The page's style decides the size.
    return re.sub(r'^<svg([^>]*?) (?:width|height)="[^"]*"', r"<svg\1", text).strip()


def looks(runs: Sequence[Run]) -> dict[str, tuple[str, str, str]]:
    """Returns color, marker and dashes for each name in `by_label(runs)`."""
    return assigned({name: same[0].title for name, same in by_label(runs).items()})


def assigned(titles: Mapping[str, str]) -> dict[str, tuple[str, str, str]]:
    """Returns color, marker and dashes for each name, given its title; well-known methods keep
    their own.
    """
    given: dict[str, tuple[str, str, str]] = {}
    for name, title in titles.items():
        own = _LOOKS.get(key(title))
        if own is not None and own not in given.values():
            given[name] = own
    looks = [*_LOOKS.values(), *_SPARE]
    for name in titles:
        if name not in given:
            given[name] = next((look for look in looks if look not in given.values()), looks[0])
    return given


def key(title: str) -> str:
    """Returns a title in lower case with underscores: `"LDAM-DRW"` as `"ldam_drw"`."""
    return re.sub(r"[^a-z]+", "_", title.lower())


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs that are seeds of one thing together, by their name in figures."""
    several = len({run.group for run in runs}) > 1
    together: dict[str, list[Run]] = {}
    for run in runs:
        name = f"{run.title}, {run.group}" if several else run.title
        together.setdefault(name, []).append(run)
    return together


def legend_above(figure: Figure, axes: Axes, canvas: Canvas, count: int) -> None:
    """Puts a legend of `count` entries above all panels."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(count, 2 if canvas.narrow else 6))
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)
