"""Tables of errors: their columns, cells and rows, and how they are written in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from keras_ldam.report.record import Run


class Column(NamedTuple):
    """A column: the group of runs it is about, the error it shows (see `Run.error`), its title."""

    group: str
    measure: str
    title: str


class Cell(NamedTuple):
    """Mean, standard deviation (None for one run) and number of runs, errors in percent."""

    mean: float
    deviation: float | None
    n: int

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread} (n={self.n})"


class Row(NamedTuple):
    """A row: its method, the source of its numbers, a text for each column (`""` for a blank), and
    whether it is printed in bold.
    """

    method: str
    source: str
    cells: tuple[str, ...]
    strong: bool


class Table(NamedTuple):
    """A table and the notes below it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def columns(runs: Sequence[Run], groups: Sequence[str] = ()) -> tuple[Column, ...]:
    """Returns the columns of a table of runs: their measures in each group.

    Args:
        runs: Runs on one dataset.
        groups: The groups; those of the runs by default.
    """
    groups = groups or list(dict.fromkeys(run.group for run in runs))
    measures = runs[0].measures or _usual_measures(runs)
    found = []
    for group in groups:
        for measure, title in measures:
            if len(measures) == 1 and group:
                title = group
            elif len(groups) > 1:
                title = f"{title}, {group}"
            found.append(Column(group, measure, title))
    return tuple(found)


def _usual_measures(runs: Sequence[Run]) -> list[tuple[str, str]]:
    names = runs[0].class_names
    if len(names) == 2:
        others = [(f"class {j}", f"error on {name}") for j, name in enumerate(names)]
    else:
        others = [
            (f"{size}_error", f"{size} classes")
            for size in ("many", "medium", "few")
            if any(f"{size}_error" in run.errors for run in runs)
        ]
    return [("mean_error", "balanced error"), *others]


def seed_errors(runs: Sequence[Run], title: str, column: Column) -> list[float]:
    """Returns the errors of the runs of a title in a column, one for each run that has it."""
    return [
        error
        for run in runs
        if run.title == title and run.group == column.group
        if (error := run.error(column.measure)) is not None
    ]


def spread(errors: Sequence[float]) -> Cell:
    """Returns mean, standard deviation (that of a sample, over n - 1) and number of errors."""
    deviation = statistics.stdev(errors) if len(errors) > 1 else None
    return Cell(statistics.fmean(errors), deviation, len(errors))


def plain(runs: Sequence[Run], title: str) -> Table:
    """Returns the table of single models: a row for each, without spread, and their warnings.

    Args:
        runs: Runs of different titles.
        title: Title of the table.
    """
    shown = columns(runs)
    rows = []
    for run in runs:
        errors = (run.error(column.measure) for column in shown)
        cells = tuple("" if error is None else f"{error:.2f}" for error in errors)
        rows.append(Row(run.title, "as given", cells, strong=True))
    notes = [f"Errors in percent on the {runs[0].split} split."]
    return Table(title, shown, tuple(rows), (*notes, *warned(runs)))


def warned(runs: Sequence[Run]) -> list[str]:
    """Returns a note for each warning of the runs."""
    found = []
    for run in runs:
        seed = "" if run.seed is None else f", seed {run.seed}"
        found += [f"Warning, {run.title}{seed}: {warning}" for warning in run.warnings]
    return found


def markdown(table: Table) -> str:
    """Returns the table in Markdown."""
    lines = [
        f"### {table.title}",
        "",
        "| approach | | " + " | ".join(_inline(column.title) for column in table.columns) + " |",
        "|---|---|" + "---|" * len(table.columns),
    ]
    above = None
    for row in table.rows:
        name = _inline(row.method) if row.method != above else ""
        above = row.method
        cells = (f"**{text}**" if row.strong and text else text for text in row.cells)
        lines.append(f"| {name} | {row.source} | " + " | ".join(cells) + " |")
    lines.append("")
    for note in table.notes:
        lines += [note, ""]
    return "\n".join(lines)


def _inline(text: str) -> str:
    # A class may have any name.
    return " ".join(text.split()).replace("|", "\\|")
