"""One self-contained HTML page: no script, no other file, readable on a phone and on paper."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from keras_ldam.report import figures, tables
from keras_ldam.report.canvas import by_label, key, svg
from keras_ldam.report.record import Run

_WIDE, _NARROW = 8.8, 3.7


class Section(NamedTuple):
    """A figure of the page: its name, heading, how to read it, the function that draws it, and what
    to say if that finds nothing to draw.
    """

    name: str
    heading: str
    text: str
    draw: Callable[..., Figure | None]
    needs: str = ""


SECTIONS = {
    section.name: section
    for section in (
        Section(
            "errors",
            "Errors",
            "Each method's error; with several seeds, each of them with mean and standard "
            "deviation; and the paper's number where it has one. Left is better.",
            figures.errors,
        ),
        Section(
            "margins",
            "Where the margins went",
            "The margin of an example is its label's score minus the best other score: above 0 it "
            "is right, and the more so the higher. The dashed line is what the loss demands: the "
            "fewer training examples, the larger. Scores of a head without normalization are "
            "divided by the length of the example's features and of the longest class vector, "
            "which changes no decision and makes them comparable with cosines.",
            figures.margins,
            "No run here has margins: they come with the evaluation of a model.",
        ),
        Section(
            "class_errors",
            "Error class by class",
            "From the most frequent class to the rarest.",
            figures.class_errors,
            "No run here has class counts.",
        ),
        Section(
            "groups",
            "Many, medium, few",
            "The mean error over the classes with many, medium and few training examples.",
            figures.groups,
            "All classes are in one group here.",
        ),
        Section(
            "curves",
            "Training",
            "Loss and balanced error, epoch by epoch. The values of different losses do not "
            "compare; their course does. The dotted line marks where the deferred rule came on.",
            figures.curves,
            "No run here has a training history.",
        ),
        Section(
            "confusion",
            "What is taken for what",
            "Each row shows what becomes of a class's examples, from the most frequent class to "
            "the rarest, and sums to 100 %. What leaves the diagonal of the rare classes is what "
            "the frequent ones take from them.",
            figures.confusion,
            "No run here has confusions: they come with the evaluation of a model.",
        ),
        Section(
            "reliability",
            "Can the probabilities be believed?",
            "Guesses of a given confidence, and how many of them are right: on the dotted line "
            "both agree. ECE is the mean distance from it. Faint points stand for fewer than "
            f"{figures.FEWEST_GUESSES} guesses.",
            figures.reliability,
            "No run here has reliability: it comes with the evaluation of a model.",
        ),
        Section(
            "trade_off",
            "Why the fourth root of the count",
            "For two classes the bound on the balanced error is 1/(γ₁√n₁) + 1/(γ₂√n₂), and the two "
            "margins share the room β between the classes. Left: dots mark the least bound. Right: "
            "it lies where γ ∝ n^(-1/4) says (lines), and where a search finds it (dots). If the "
            "class frequencies p at test time are known, that becomes γ ∝ (p/n)^(1/4). This figure "
            "is calculated, and the same for all runs.",
            figures.trade_off,
        ),
    )
}
"""The figures by name, in the order of the page."""

GENERATOR = '<meta name="generator" content="keras_ldam">'
"""Is in every page, and tells a report from other pages."""

_FOCUS = ("erm", "ldam_drw", "ldam", "ce_drw", "rw")
_AT_MOST = 4


def shown(section: Section, runs: Sequence[Run], everything: Sequence[Run]) -> Sequence[Run]:
    """Returns the runs that a figure is about.

    That of errors is about everything. The others overlay runs: those of one group, and of so few
    titles that they can be told apart.
    """
    if section.name == "errors":
        return everything
    runs = [run for run in runs if run.group == runs[0].group]
    titles = list(dict.fromkeys(run.title for run in runs))
    if len(titles) > _AT_MOST:
        rank = {name: i for i, name in enumerate(_FOCUS)}
        titles = sorted(titles, key=lambda title: rank.get(key(title), len(rank)))[:_AT_MOST]
    return [run for run in runs if run.title in titles]


def page(runs: Sequence[Run], table: tables.Table, everything: Sequence[Run]) -> str:
    """Returns the page as HTML.

    Args:
        runs: Runs that the figures are about.
        table: The table, whose title is the page's.
        everything: Runs that the figure of errors is about.
    """
    group = [run for run in runs if run.group == runs[0].group]
    several = len({run.group for run in everything}) > 1
    summary = _summary(group, several)
    parts = [f"<header><h1>{escape(table.title)}</h1>{summary}</header>", _table(table)]
    number = 0
    for section in SECTIONS.values():
        about = shown(section, runs, everything)
        wide = svg(section.draw, about, f"{section.name}-w", _WIDE)
        if wide is None:
            parts.append(_missing(section))
            continue
        number += 1
        narrow = svg(section.draw, about, f"{section.name}-n", _NARROW)
        who = escape(_who(section, about) + _others(section, about, group))
        caption = f"<b>Figure {number}.</b> {escape(section.text)} {who}"
        parts.append(
            f'<section id="{section.name}"><h2>{escape(section.heading)}</h2><figure>'
            f'<div class="wide" role="img" aria-label="{escape(section.heading)}">{wide}</div>'
            f'<div class="narrow" role="img" aria-label="{escape(section.heading)}">{narrow}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
            f"{_classes(about) if section.name == 'class_errors' else ''}</section>"
        )
    parts.append(_settings(group))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'{GENERATOR}<link rel="icon" href="data:,">'
        f"<title>{escape(table.title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _summary(runs: Sequence[Run], several: bool) -> str:
    """What is first said: the data, and the errors, of one group of several."""
    first = runs[0]
    sentences = []
    if first.counts is not None:
        counts = np.asarray(first.counts)
        most, fewest = int(counts.max()), int(counts.min())
        sentences.append(
            f"{int(counts.sum()):,} training examples in {len(counts):,} classes, from {most:,} "
            f"down to {fewest:,} a class (ratio {most / fewest:,.3g})."
        )
    cards = []
    for name, same in by_label(runs).items():
        cell = tables.spread([run.errors["mean_error"] for run in same])
        spread = "" if cell.deviation is None else f"<small> ± {cell.deviation:.2f}</small>"
        paper = same[0].published.get((first.group, "mean_error"))
        beside = "" if paper is None else f"; paper: {paper:.2f} %"
        cards.append(
            f"<div><dt>{escape(name)}</dt><dd>{cell.mean:.2f} %{spread}</dd>"
            f"<dd><small>{_seeds(same)}{beside}</small></dd></div>"
        )
    group = f", {first.group} (as in Figure 2 and after)" if several else ""
    sentences.append(f"Balanced error on the {first.split} split{group}:")
    return f'<p>{escape(" ".join(sentences))}</p><dl class="cards">{"".join(cards)}</dl>'


def _seeds(runs: Sequence[Run]) -> str:
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    if not seeds:
        return "one model"
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    whole = seeds == list(range(seeds[0], seeds[-1] + 1))
    shown = f"{seeds[0]}–{seeds[-1]}" if whole else ", ".join(map(str, seeds))
    return f"seeds {shown}, n = {len(seeds)}"


def _others(section: Section, about: Sequence[Run], group: Sequence[Run]) -> str:
    """Returns what a caption says of the methods that a figure leaves out."""
    drawn = _DRAWN.get(section.name, list)(about)
    left = len({run.title for run in group} - {run.title for run in drawn})
    if section.name in ("errors", "trade_off") or not left:
        return ""
    return f" {left} more {'method is' if left == 1 else 'methods are'} in the table."


_DRAWN: dict[str, Callable[[Sequence[Run]], list[Run]]] = {
    "margins": figures.with_margins,
    "confusion": lambda runs: [run for run, _ in figures.confused(runs).values()],
    "reliability": lambda runs: [run for run, _ in figures.diagnosed(runs).values()],
    "curves": figures.with_history,
    "class_errors": lambda runs: [run for run in runs if run.counts is not None],
}
"""The runs that a figure draws, of those that it is about."""


def _who(section: Section, runs: Sequence[Run]) -> str:
    """Returns what a caption adds: how classes are drawn, whose runs they are, their seeds."""
    if section.name == "trade_off":
        return ""
    evaluated = section.name in ("margins", "confusion", "reliability")
    runs = _DRAWN.get(section.name, list)(runs)
    together = by_label(runs)
    whose = "; ".join(f"{name}: {_seeds(same)}" for name, same in together.items())
    sentences = [f"{whose}."]
    num_classes = len(runs[0].class_names)
    crowded, huge = num_classes > figures.FEW_CLASSES, num_classes > figures.MOST_POINTS
    if section.name == "margins":
        sentences.insert(
            0,
            "The line is the mean of the classes' smallest margins over classes of similar counts, "
            "the band their interquartile range."
            if huge
            else "A point is the smallest margin of a class, the line their mean over classes of "
            "similar counts."
            if crowded
            else "Filled marks are the smallest margin of a class, the dash its 5 % quantile, "
            "hollow marks its median.",
        )
    if section.name == "class_errors" and huge:
        sentences.insert(
            0,
            "The line is the mean over classes of similar counts, the band their interquartile "
            "range.",
        )
    elif section.name == "class_errors" and crowded:
        sentences.insert(0, "A point is a class, the line their mean over similar counts.")
    elif section.name in ("class_errors", "groups") and len(together) < len(runs):
        sentences.append("Bars: standard deviation over seeds.")
    found = runs[0].diagnosis
    if found and evaluated:
        sentences.append(f"{found['n']:,} {runs[0].split} examples.")
    if found and section.name == "confusion":
        if found["confusion"] is None:
            sentences.insert(
                0,
                "Classes are grouped by their training examples; on the diagonal a guess stays "
                "in its group, right or wrong.",
            )
        sentences.append(_most_confused(runs[-1], (runs[-1].diagnosis or found)["most_confused"]))
    return " ".join(sentences).strip()


def _most_confused(run: Run, most: Sequence[tuple[int, int, int]]) -> str:
    if not most:
        return ""
    names = run.class_names
    pairs = ", ".join(f"{names[label]} as {names[guess]} ({n}×)" for label, guess, n in most[:5])
    return f"Most frequent mistakes of {run.title}: {pairs}."


_EACH, _WORST = 5, 10
"""Classes that the table of classes shows: so many of the most frequent ones and of the rarest, and
so many of the worst."""


def _classes(runs: Sequence[Run]) -> str:
    """Some of many classes, and what the error is at quantiles over all of them."""
    runs = [run for run in runs if run.counts is not None]
    counts, names = np.asarray(runs[0].counts), runs[0].class_names
    if len(names) <= figures.FEW_CLASSES:
        return ""
    together = by_label(runs)
    errors = {name: figures.mean_errors(same) for name, same in together.items()}
    last, worst = list(errors.items())[-1]
    worst = np.where(np.isnan(worst), -1.0, worst)
    chosen = {
        "most frequent": _largest(_EACH, counts),
        f"largest error of {last}": _largest(_WORST, worst, counts),
        "rarest": _largest(_EACH, -counts)[::-1],
    }
    rows = []
    for what, classes in chosen.items():
        for j in classes:
            cells = (f"<td>{_percent(error[j])}</td>" for error in errors.values())
            rows.append(
                f"<tr><th scope=row>{escape(names[j])}</th><td>{escape(what)}</td>"
                f"<td>{counts[j]:,}</td>{''.join(cells)}</tr>"
            )
    for q, what in ((0.05, "5 % quantile"), (0.5, "median"), (0.95, "95 % quantile")):
        cells = (f"<td>{_percent(_quantile(error, q))}</td>" for error in errors.values())
        rows.append(
            f"<tr><th scope=row>all classes</th><td>{what}</td>"
            f"<td>{_quantile(counts, q):,.0f}</td>{''.join(cells)}</tr>"
        )
    heads = ("class", "", "training examples", *(f"error of {name}" for name in errors))
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in heads)
    return (
        f"<p>Of the {len(names):,} classes the table shows the {_EACH} most frequent ones, the "
        f"{_EACH} rarest, and the {_WORST} with the largest error, of equal ones the most "
        "frequent; and below them quantiles over all classes. Errors in percent.</p>"
        f'<div class="scroll" tabindex="0"><table class="classes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _largest(n: int, values: np.ndarray, then: np.ndarray | None = None) -> np.ndarray:
    """The places of the n largest values, of equal ones those with the largest `then`, in order."""
    if len(values) > n:
        edge = np.partition(values, -n)[-n]
        above, tied = np.flatnonzero(values > edge), np.flatnonzero(values == edge)
        left = n - len(above)
        tied = tied[:left] if then is None else tied[_largest(left, then[tied])]
        places = np.concatenate([above, tied])
    else:
        places = np.arange(len(values))
    second = np.zeros(len(places)) if then is None else -then[places]
    return places[np.lexsort((places, second, -values[places]))]


def _quantile(values: np.ndarray, q: float) -> float:
    return float(np.nanquantile(values, q)) if np.isfinite(values).any() else math.nan


def _percent(error: float) -> str:
    return f"{error:.2f}" if math.isfinite(error) else ""


def _missing(section: Section) -> str:
    return (
        f'<section id="{section.name}"><h2>{escape(section.heading)}</h2>'
        f'<p class="missing">Not shown. {escape(section.needs)}</p></section>'
    )


def _table(table: tables.Table) -> str:
    head = "".join(f"<th scope=col>{escape(column.title)}</th>" for column in table.columns)
    rows, above = [], None
    for row in table.rows:
        first = row.method != above
        above = row.method
        kind = "ours" if row.strong else "quoted"
        cells = "".join(f"<td>{_no_break(text)}</td>" for text in row.cells)
        rows.append(
            f'<tr class="{kind}{" first" if first else ""}">'
            f"<th scope=row>{escape(row.method) if first else ''}</th>"
            f"<td>{escape(row.source)}</td>{cells}</tr>"
        )
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    quoted = any(row.source == "paper" for row in table.rows)
    return (
        f'<section id="table"><h2>{"Beside the paper" if quoted else "Numbers"}</h2>'
        '<div class="scroll" tabindex="0"><table><thead><tr><th scope=col>method</th><th></th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<div class="notes">{notes}</div></section>'
    )


def _no_break(text: str) -> str:
    # "6.70 ± 1.56 (n=2)": the number is not broken, n may go below it.
    match = re.fullmatch(r"([^()]*?) (\(n=\d+\))", text)
    if match is None:
        return escape(text)
    return f"<span>{escape(match[1])}</span> <small>{escape(match[2])}</small>"


def _settings(runs: Sequence[Run]) -> str:
    named = {name: same[0] for name, same in by_label(runs).items()}
    facts = "".join(
        f"<p><b>{escape(name)}</b> "
        f"{escape('; '.join(f'{fact}: {value}' for fact, value in run.facts.items()))}.</p>"
        for name, run in named.items()
        if run.facts
    )
    fields = list(dict.fromkeys(field for run in named.values() for field in run.settings))
    if not fields and not facts:
        return ""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in named)
    body = []
    for field in fields:
        values = [run.settings.get(field) for run in named.values()]
        differs = any(value != values[0] for value in values)
        cells = "".join(f"<td>{escape(_value(value))}</td>" for value in values)
        body.append(
            f'<tr class="{"ours" if differs else "quoted"}"><th scope=row>{escape(field)}</th>'
            f"{cells}</tr>"
        )
    table = (
        f'<div class="scroll" tabindex="0"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        if fields
        else ""
    )
    return (
        '<section id="settings"><h2>What was run</h2>'
        f'<div class="notes">{facts}</div>'
        "<details><summary>All settings; those that differ are bold</summary>"
        f"{table}</details></section>"
    )


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


_STYLE = """
:root { --paper: #ffffff; --ink: #1b1b1f; --soft: #5b5b66; --line: #d9d9e0; --card: #f4f4f7; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16171b; --ink: #e8e8ec; --soft: #a5a5b1; --line: #37383f; --card: #212329; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p { margin: .5rem 0; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; }
.cards div { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; }
.cards dt { color: var(--soft); font-size: .9rem; }
.cards dd { margin: 0; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.cards small { font-size: .85rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: .25rem .6rem; text-align: right; vertical-align: baseline; }
th:first-child, #table td:nth-child(2), #table th:nth-child(2) { text-align: left; }
.classes td:nth-child(2) { text-align: left; color: var(--soft); white-space: nowrap; }
thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; }
tr.first > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; white-space: nowrap; }
tr.ours td { font-weight: 600; }
tr.quoted td { color: var(--soft); }
td span, #table td:nth-child(2) { white-space: nowrap; }
td small { font-weight: 400; color: var(--soft); white-space: nowrap; }
#settings td, #settings th { text-align: left; font-weight: inherit; }
#settings tr.ours { font-weight: 600; }
.notes, figcaption { color: var(--soft); font-size: .88rem; }
.notes p { margin: .3rem 0; overflow-wrap: anywhere; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { margin-top: .5rem; }
figcaption b { color: var(--ink); }
.narrow { display: none; max-width: 30rem; margin: 0 auto; }
.missing { color: var(--soft); font-style: italic; }
summary { cursor: pointer; margin: .75rem 0; }
@media (max-width: 640px) { .wide { display: none; } .narrow { display: block; } }
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --line: #ccc; --card: #f4f4f7; }
  body { font-size: 10pt; }
  .wide { display: block; } .narrow { display: none; }
  .scroll { overflow: visible; }
  figure, tr, .cards div { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
