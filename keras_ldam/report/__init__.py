"""Reports: runs become tables, figures, and one page that shows where the margins went."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ldam import extras
from keras_ldam.files import write_whole

with extras.needed("report", by="a report"):
    from keras_ldam.report import canvas, comparison, tables
    from keras_ldam.report.page import GENERATOR, SECTIONS, page, shown
    from keras_ldam.report.record import Run

__all__ = ["Run", "check_figures", "check_folder", "compare", "compare_guesses", "draw", "save"]


def compare(
    models: Mapping[str, keras.Model],
    train: Any,
    test: Any,
    output_dir: str | Path,
    *,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    histories: Mapping[str, Any] | None = None,
    scale: float | None = None,
    title: str = "Comparison",
) -> str:
    """Compares Keras models: writes a page with table and figures, and returns the table.

    Args:
        models: Models by their names on the page. Each gives scores or probabilities of shape
            `(batch, num_classes)`, or `(batch, height, width, num_classes)` with a label for each
            pixel, which then is an example.
        train: Training examples and labels: a pair `(examples, labels)`, or a dataset that gives
            batches of such pairs, such as a `tf.data.Dataset` or a `keras.utils.PyDataset`. In a
            pair the examples are an array of shape `(n, …)`, a list of texts, or a list or
            dictionary of arrays for a model of several inputs. Labels have the shape `(n,)`,
            `(n, 1)` or, one-hot, `(n, num_classes)`, or for pixels `(n, height, width)`; those that
            a loss ignores, its `ignore_class`, count nowhere. Sample weights in a dataset are
            ignored.
        test: Test examples and labels, likewise.
        output_dir: Folder for `index.html` and the figures as PNG; created if it does not exist.
            An earlier report in it is replaced, and so are figures of the same names.
        class_names: Name of each class, in class order or by class; numbers by default.
        histories: What `fit` returned, by the models' names, for the training curves. The balanced
            error needs `keras_ldam.ClassErrors` among the metrics, and validation data.
        scale: s of softmax(s · cosines), for models that end in `CosineDense`; by default that of
            the loss that each is compiled with.
        title: Heading of the page.

    Returns:
        The table of errors, in Markdown.

    Raises:
        ValueError: for examples and labels that do not fit together, a class without a training
            example, a model that does not give one output of num_classes scores or gives cosines
            of unknown scale, or a folder with another page.

    Example:

    ```python
    from keras_ldam import report

    report.compare({"ERM": erm, "LDAM-DRW": ldam}, (x, y), (x_test, y_test), "my-report")
    ```
    """
    check_folder(output_dir)
    runs = comparison.runs_of(
        models, train, test, class_names=class_names, histories=histories, scale=scale
    )
    return _write(runs, output_dir, title)


def compare_guesses(
    guesses: Mapping[str, Any],
    labels: Any,
    counts: Sequence[int] | np.ndarray,
    output_dir: str | Path,
    *,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    histories: Mapping[str, Any] | None = None,
    title: str = "Comparison",
) -> str:
    """Compares models by what they guess: a page of errors for very many classes.

    `compare` needs all scores of each example. Here the best classes are enough, as of
    `keras_ldam.ChunkedTraining.best`, and counts of ten million classes. There are no margins,
    confusions or reliability.

    Args:
        guesses: Guesses for the test examples by the names of the models on the page: classes,
            `(n,)`, or the k best ones, best first, `(n, k)`.
        labels: Class of each test example, `(n,)`.
        counts: Training examples per class, `(num_classes,)`.
        output_dir: Folder for the page; see `compare`.
        class_names: Name of each class; numbers by default.
        histories: See `compare`.
        title: Heading of the page.

    Returns:
        The table of errors, in Markdown.

    Raises:
        ValueError: for guesses, labels and counts that do not fit together, or a folder with
            another page.

    Example:

    ```python
    _, classes = trained.best(x_test, 5)
    report.compare_guesses({"LDAM-DRW": classes}, y_test, counts, "my-report")
    ```
    """
    check_folder(output_dir)
    runs = comparison.runs_of_guesses(
        guesses, labels, counts, class_names=class_names, histories=histories
    )
    return _write(runs, output_dir, title)


def _write(runs: Sequence[Run], output_dir: str | Path, title: str) -> str:
    table = tables.plain(runs, title)
    save(draw(runs, table), output_dir)
    return tables.markdown(table)


def check_figures(names: Sequence[str] | None) -> None:
    """Raises `ValueError` for a name that no figure has."""
    for name in names or ():
        if name not in SECTIONS:
            raise ValueError(f"unknown figure {name!r}; known: {', '.join(SECTIONS)}.")


def check_folder(output_dir: str | Path) -> None:
    """Raises `ValueError` if the folder holds a page that is not a report."""
    file = Path(output_dir) / "index.html"
    if file.exists() and GENERATOR not in file.read_text("utf-8", errors="replace"):
        raise ValueError(f"{file} exists and is not a report of keras_ldam: choose another folder.")


def draw(
    runs: Sequence[Run],
    table: tables.Table,
    *,
    everything: Sequence[Run] | None = None,
    figures: Sequence[str] | None = None,
) -> dict[str, bytes]:
    """Draws the files of a report, and writes nothing.

    Args:
        runs: Runs that the figures are about.
        table: The table, whose title is the page's.
        everything: Runs that the figure of errors is about; `runs` by default.
        figures: Names of the figures to draw, without the page; none, the default: page and all
            figures.

    Returns:
        The contents of the files by their names.

    Raises:
        ValueError: for an unknown figure, or one that the runs do not hold.
    """
    check_figures(figures)
    everything = runs if everything is None else everything
    files = {}
    for name in figures or SECTIONS:
        section = SECTIONS[name]
        picture = canvas.png(section.draw, shown(section, runs, everything))
        if picture is not None:
            files[f"{name}.png"] = picture
        elif figures:
            raise ValueError(f"figure {name!r} is not in these results. {section.needs}")
    if not figures:
        files["index.html"] = page(runs, table, everything).encode()
    return files


def save(files: Mapping[str, bytes], output_dir: str | Path) -> None:
    """Writes what `draw` returned into a folder, which is created if it does not exist.

    A page replaces an earlier report, whose other figures are removed.

    Raises:
        ValueError: if the folder holds a page that is not a report.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if "index.html" in files:
        check_folder(folder)
        if (folder / "index.html").exists():
            for name in SECTIONS:
                if f"{name}.png" not in files:
                    (folder / f"{name}.png").unlink(missing_ok=True)
    for name, content in files.items():
        write_whole(folder / name, functools.partial(Path.write_bytes, data=content))
    print(f"wrote {', '.join(files)} to {folder}")
