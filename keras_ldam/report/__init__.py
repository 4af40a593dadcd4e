"""Reports: runs become tables, figures, and one page that shows where the margins went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_ldam.experiments.tables import collection
from keras_ldam.experiments.tables.collection import Run, gather
from keras_ldam.files import write_whole
from keras_ldam.report import canvas, comparison, tables
from keras_ldam.report.page import GENERATOR, SECTIONS, focus, page

__all__ = ["check_figures", "compare", "gather", "to_diagnose", "write"]


def write(
    sources: Sequence[str | Path],
    *,
    results_dir: str | Path = "results",
    output_dir: str | Path | None = None,
    figures: Sequence[str] | None = None,
    only_ours: bool = False,
) -> str:
    """Reports on run folders and results files.

    Run folders are written into `results_dir/DATASET.json`, beside what it holds already. The
    table and the figure of errors are about all of that file and `sources`, the other figures
    about `sources`.

    Args:
        sources: Run folders, results files, or both.
        results_dir: Where the results files are.
        output_dir: Where figures and page go; None: `reports/DATASET`.
        figures: Names of the figures to draw, as PNG and without the page; None: page and all.
        only_ours: Whether the table that is returned leaves out methods and columns without a
            run, and other people's.

    Returns:
        The table, in Markdown.

    Raises:
        ValueError: for sources that cannot be read or do not belong together, a figure that is
            unknown or that the sources do not hold, or a folder with another page.
    """
    check_figures(figures)
    runs = gather(sources)
    dataset = runs[0].dataset
    folder = Path(output_dir) if output_dir else Path("reports") / dataset
    if figures is None:
        _check_ours(folder)
    results_file = Path(results_dir) / f"{dataset}.json"
    everything = runs
    if folders := [source for source in sources if Path(source).is_dir()]:
        merged = collection.merge(gather(folders), results_file)
        everything = collection.in_order({run.key: run for run in (*runs, *merged)}.values())
    for sentence in collection.unlike(everything):
        print(sentence)
    if figures is None:
        _draw(runs, everything, folder)
    else:
        _draw_some(figures, runs, everything, folder)
    return tables.markdown(tables.headline(everything, only_ours=only_ours))


def check_figures(names: Sequence[str] | None) -> None:
    """Raises `ValueError` for a name that no figure has."""
    for name in names or ():
        if name not in SECTIONS:
            raise ValueError(f"unknown figure {name!r}; known: {', '.join(SECTIONS)}.")


def compare(
    models: Mapping[str, keras.Model],
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    output_dir: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    histories: Mapping[str, Any] | None = None,
    scale: float | None = None,
    title: str = "Comparison",
) -> str:
    """Reports on Keras models of your own: the same page as for runs.

    Args:
        models: Models by the name that the page gives them. Each gives scores or probabilities
            `[batch, K]`.
        train: Training examples and labels. Examples are an array `[n, …]`, or a list or
            dictionary of arrays for a model of several inputs; labels are of shape `[n]`, `[n, 1]`
            or one-hot `[n, K]`.
        test: Test examples and labels, likewise.
        output_dir: Folder for `index.html` and the figures as PNG; made if it is not there. An
            earlier report in it is replaced, and so are figures of these names.
        class_names: Name of each class; numbers by default.
        histories: By the models' names, what `fit` returned; gives the training curves. The
            balanced error needs `keras_ldam.ClassErrors` among the metrics, and validation data.
        scale: s of softmax(s · cosines), for models that end in `CosineDense`; by default that of
            the loss that each is compiled with.
        title: Heading of the page.

    Returns:
        The table of errors, in Markdown.

    Raises:
        ValueError: for arrays that do not fit together, a class without a training example, a
            model that does not give K scores or gives cosines of unknown scale, or a folder with
            another page.

    Example:

    ```python
    from keras_ldam import report

    report.compare({"ERM": erm, "LDAM-DRW": ldam}, (x, y), (x_test, y_test), "my-report")
    ```
    """
    _check_ours(Path(output_dir))
    runs = comparison.runs_of(
        models,
        train,
        test,
        class_names=class_names,
        histories=histories,
        scale=scale,
        title=title,
    )
    _draw(runs, runs, Path(output_dir), title)
    return tables.markdown(tables.headline(runs))


def _draw(runs, everything, folder, title=None):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "index.html"
    again = file.exists()
    for section in SECTIONS.values():
        if not _png(section, runs, everything, folder) and again:
            (folder / f"{section.name}.png").unlink(missing_ok=True)  # An earlier report's.
    write_whole(file, lambda aside: aside.write_text(page(runs, everything, title)))
    print(f"wrote {file} and its figures as PNG")


def _check_ours(folder):
    """Raises where a page would take the place of one that is no report."""
    file = folder / "index.html"
    if file.exists() and GENERATOR not in file.read_text("utf-8", errors="replace"):
        raise ValueError(f"{file} is there and is no report of keras_ldam: choose another folder.")


def _draw_some(names, runs, everything, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not _png(SECTIONS[name], runs, everything, folder):
            raise ValueError(f"figure {name!r} is not in these results. {SECTIONS[name].needs}")
        print(f"wrote {folder / name}.png")


def _png(section, runs, everything, folder):
    about = everything if section.name == "errors" else focus(runs)
    return canvas.png(section.draw, about, folder / f"{section.name}.png")


def to_diagnose(sources: Sequence[str | Path]) -> list[Path]:
    """Run folders that figures of margins need to be evaluated: one seed of each method."""
    first: dict[tuple, tuple[Run, Path]] = {}
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
