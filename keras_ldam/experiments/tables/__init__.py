"""Reports on runs: the tables of the paper with ours beside them, results files, and the page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from keras_ldam import report
from keras_ldam.experiments.tables import collection
from keras_ldam.experiments.tables.collection import Result, gather
from keras_ldam.experiments.tables.paper import headline, records
from keras_ldam.report import check_figures
from keras_ldam.report.tables import markdown

__all__ = ["check_figures", "gather", "headline", "markdown", "to_diagnose", "write"]


def write(
    sources: Sequence[str | Path],
    *,
    results_dir: str | Path = "results",
    output_dir: str | Path | None = None,
    figures: Sequence[str] | None = None,
    only_ours: bool = False,
) -> str:
    """Reports on run folders and results files.

    Run folders are merged into `results_dir/DATASET.json`. The table and the figure of errors are
    about all of that file and `sources`, the other figures about `sources`. Nothing is written
    before everything has been checked and drawn.

    Args:
        sources: Run folders, results files, or both.
        results_dir: Folder of the results files.
        output_dir: Folder of figures and page; `reports/DATASET` by default.
        figures: Names of the figures to draw, as PNG and without the page; none, the default: page
            and all figures.
        only_ours: Whether the returned table leaves out methods and columns without a run, and
            others' numbers.

    Returns:
        The table, in Markdown.

    Raises:
        ValueError: for sources that cannot be read, hold impossible values or do not belong
            together, a figure that is unknown or that the sources do not hold, or a folder with
            another page.
    """
    check_figures(figures)
    runs = gather(sources)
    dataset = runs[0].dataset
    folder = Path(output_dir) if output_dir else Path("reports") / dataset
    if not figures:
        report.check_folder(folder)
    results_file = Path(results_dir) / f"{dataset}.json"
    everything = runs
    ours = gather(folders) if (folders := [each for each in sources if Path(each).is_dir()]) else []
    if ours:
        merged, *_ = collection.merge(ours, results_file)
        everything = collection.in_order({run.key: run for run in (*runs, *merged)}.values())
    for sentence in collection.unlike(everything):
        print(sentence, file=sys.stderr)
    files = report.draw(
        records(runs), headline(everything), everything=records(everything), figures=figures
    )
    table = markdown(headline(everything, only_ours=only_ours))
    if ours:
        collection.keep(ours, results_file)
    report.save(files, folder)
    return table


def to_diagnose(sources: Sequence[str | Path]) -> list[Path]:
    """Returns the run folders to evaluate for the figures of margins: one seed of each method."""
    first: dict[tuple, tuple[Result, Path]] = {}
    for path in map(Path, sources):
        if path.is_dir():
            run = collection.read_folder(path)
            held = first.get(run.key[:-1])
            if held is None or run.seed < held[0].seed:
                first[run.key[:-1]] = run, path
    return [
        path
        for run, path in first.values()
        if run.diagnosis is None and (path / "model.keras").exists()
    ]
