"""Tables: each method's errors beside the paper's and other people's runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from keras_ldam.experiments.config import METHODS
from keras_ldam.experiments.tables import published
from keras_ldam.experiments.tables.collection import Run

METHOD_TITLES = {
    "erm": "ERM",
    "rs": "RS",
    "rw": "RW",
    "cb_rs": "CB RS",
    "cb_rw": "CB RW",
    "ce_drs": "CE-DRS",
    "ce_drw": "CE-DRW",
    "focal": "Focal",
    "cb_focal": "CB Focal",
    "m": "M",
    "m_drw": "M-DRW",
    "hg_drs": "HG-DRS",
    "ldam": "LDAM",
    "ldam_rs": "LDAM-RS",
    "ldam_rw": "LDAM-RW",
    "ldam_drs": "LDAM-DRS",
    "ldam_drw": "LDAM-DRW",
    "ldam_hg_drs": "LDAM-HG-DRS",
}
DATASET_TITLES = {
    "digits": "Long-tailed digits",
    "imdb": "Imbalanced IMDB",
    "cifar10": "Imbalanced CIFAR-10",
    "cifar100": "Imbalanced CIFAR-100",
    "inaturalist2018": "iNaturalist 2018",
}
LAST, BEST = "last", "best"
BEST_MARK = "†"


class Column(NamedTuple):
    """A column of a table: which runs it is about, and what of them it shows."""

    imbalance: str
    ratio: float
    measure: str
    title: str


class Cell(NamedTuple):
    """Mean, standard deviation (None for one run) and number of runs, errors in percent."""

    mean: float
    deviation: float | None
    n: int

    def __str__(self):
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread} (n={self.n})"


class Row(NamedTuple):
    """A row: the method, whose numbers they are, a text for each column ("" for blank), and
    whether it is what the table is about: ours, at the last epoch.
    """

    method: str
    source: str
    cells: tuple[str, ...]
    strong: bool


class Table(NamedTuple):
    """A table and what has to be said below it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def method_title(method: str) -> str:
    """A method's name as the paper writes it."""
    name, *changes = method.split("+")
    title = METHOD_TITLES.get(name, name)
    return f"{title} ({', '.join(changes)})" if changes else title


def columns_of(runs: Sequence[Run]) -> tuple[Column, ...]:
    """The columns that the table of these runs' dataset has."""
    dataset, names = runs[0].dataset, runs[0].class_names
    held = list(dict.fromkeys(run.column for run in runs))
    if dataset in ("cifar10", "cifar100"):
        usual = [("longtail", 100), ("longtail", 10), ("step", 100), ("step", 10)]
        held = [*usual, *(column for column in held if column not in usual)]
        return tuple(Column(*column, "mean_error", profile_title(column)) for column in held)
    measures = {
        "inaturalist2018": [("error", "top-1"), ("top5_error", "top-5")],
        "imdb": [
            ("class 1", "error on positive"),
            ("class 0", "error on negative"),
            ("mean_error", "mean error"),
        ],
    }.get(dataset)
    if measures is None:
        measures = [("mean_error", "balanced error")]
        if len(names) == 2:
            measures += [(f"class {j}", f"error on {name}") for j, name in enumerate(names)]
        else:
            measures += [
                (f"{group}_error", f"{group} classes")
                for group in ("many", "medium", "few")
                if any(f"{group}_error" in run.results["last"] for run in runs)
            ]
    several = len(held) > 1
    return tuple(
        Column(*column, measure, f"{title}, {profile_title(column)}" if several else title)
        for column in held
        for measure, title in measures
    )


def profile_title(column: tuple[str, float]) -> str:
    """A column's imbalance in words."""
    imbalance, ratio = column
    if imbalance == "none":
        return "data as they are"
    return f"{'long-tailed' if imbalance == 'longtail' else imbalance}, ratio {ratio:g}"


def cell(runs: Sequence[Run], method: str, column: Column, which: str) -> Cell | None:
    """One cell of ours.

    Args:
        runs: Runs of one dataset.
        method: A run's `method`.
        column: Which column.
        which: `"last"` for the last epoch; `"best"` for the epoch that was best on the split the
            errors are of.

    Returns:
        None if there is no such run. The deviation is that of a sample (n - 1).
    """
    errors = seed_errors(runs, method, column, which)
    if not errors:
        return None
    return spread(errors)


def spread(errors: Sequence[float]) -> Cell:
    """Mean, standard deviation and number of some errors."""
    deviation = statistics.stdev(errors) if len(errors) > 1 else None
    return Cell(statistics.fmean(errors), deviation, len(errors))


def seed_errors(runs: Sequence[Run], method: str, column: Column, which: str) -> list[float]:
    """The errors that a cell is the mean of, one for each run."""
    return [
        error
        for run in runs
        if run.method == method and run.column == (column.imbalance, column.ratio)
        if run.results.get(which)
        if (error := _measure(run.results[which], column.measure)) is not None
    ]


def _measure(errors, measure):
    if measure.startswith("class "):
        return errors["per_class_error"][int(measure.removeprefix("class "))]
    return errors.get(measure)


def headline(runs: Sequence[Run], *, only_ours: bool = False) -> Table:
    """The table of a dataset: the paper's numbers, ours, and other people's, method by method.

    Args:
        runs: Runs of one dataset.
        only_ours: Whether to leave out methods and columns without a run, and other people's.
    """
    dataset = runs[0].dataset
    columns = columns_of(runs)
    paper = published.PAPER.get(dataset, {})
    reruns = published.RERUNS.get(dataset, {})
    ours = {run.method for run in runs}
    if only_ours:
        held = {run.column for run in runs}
        columns = tuple(c for c in columns if (c.imbalance, c.ratio) in held)
        paper = {method: errors for method, errors in paper.items() if method in ours}
        reruns = {}
    paper = {m: texts for m, errors in paper.items() if any(texts := _published(errors, columns))}
    labels = {run.method: run.label for run in runs}
    rank = {name: i for i, name in enumerate(METHODS)}
    given = list(dict.fromkeys(run.method for run in runs))
    methods = sorted(
        [*given, *(method for method in paper if method not in ours)],
        key=lambda method: rank.get(method.split("+")[0], len(rank)),
    )
    own = all(run.label for run in runs)  # Models as they were handed over, of no known seed.
    whose = "ours, " if paper else ""
    rows, quoted, best = [], [], False
    for method in methods:
        title = labels.get(method) or method_title(method)
        if method in paper:
            rows.append(Row(title, "paper", paper[method], False))
        if method in ours:
            for which, source in (
                (LAST, "as given" if own else "last epoch"),
                (BEST, f"best epoch {BEST_MARK}"),
            ):
                cells = [cell(runs, method, column, which) for column in columns]
                if any(cells):
                    texts = tuple(
                        "" if c is None else f"{c.mean:.2f}" if own else str(c) for c in cells
                    )
                    rows.append(Row(title, whose + source, texts, which == LAST))
                    best = best or which == BEST
        for who, errors in reruns.get(method, {}).items():
            texts = _published(errors, columns)
            if any(texts):
                rows.append(Row(title, who, texts, False))
                quoted.append(who)
    split = runs[0].results["split"]
    notes = [
        f"Errors in percent on the {split} split."
        if own
        else f"Errors in percent on the {split} split, mean ± standard deviation over n seeds; "
        "blank: not run, or not published."
    ]
    precisions = {_setting(run, "precision", "float32") for run in runs}
    for precision in sorted(precisions - {"float32"}):
        those = dict.fromkeys(
            method_title(run.method) for run in runs if _setting(run, "precision", "") == precision
        )
        if len(precisions) == 1:
            notes.append(f"Ours in {precision}.")
        else:
            notes.append(f"Some or all of ours in {precision}: {', '.join(those)}.")
    if replicated := dict.fromkeys(method_title(run.method) for run in runs if run.replicated):
        notes.append(
            f"Some or all of ours over several replicas, with batch normalisation by each one's "
            f"part of a batch: {', '.join(replicated)}."
        )
    if best:
        rarest = max(_setting(run, "evaluate_every", 1) for run in runs)
        evaluated = f", of one epoch in {rarest} and the last" if rarest > 1 else ""
        notes.append(
            f"{BEST_MARK} The epoch with the smallest mean error on the {split} split itself"
            f"{evaluated}: chosen with the {split} labels in view, so not comparable with the last "
            "epoch."
        )
    if paper:
        notes.append(f"Paper: {published.PAPER_SOURCE}.")
    for who in dict.fromkeys(quoted):
        notes.append(f"{who}: {published.RERUN_SOURCES[who]}.")
    return Table(DATASET_TITLES.get(dataset, dataset), columns, tuple(rows), tuple(notes))


def _setting(run, name, default):
    return (run.results.get("config") or {}).get(name, default)


def _published(errors, columns):
    values = (errors.get((c.imbalance, c.ratio, c.measure)) for c in columns)
    return tuple("" if value is None else f"{value:.2f}" for value in values)


def markdown(table: Table) -> str:
    """The table in Markdown."""
    lines = [
        f"### {table.title}",
        "",
        "| approach | | " + " | ".join(column.title for column in table.columns) + " |",
        "|---|---|" + "---|" * len(table.columns),
    ]
    above = None
    for row in table.rows:
        name = row.method if row.method != above else ""
        above = row.method
        cells = (f"**{text}**" if row.strong and text else text for text in row.cells)
        lines.append(f"| {name} | {row.source} | " + " | ".join(cells) + " |")
    lines.append("")
    for note in table.notes:
        lines += [note, ""]
    return "\n".join(lines)
