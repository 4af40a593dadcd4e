"""The table of a dataset, the paper's numbers beside ours, and the records that figures show."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_ldam.experiments import datasets
from keras_ldam.experiments.config import DATASETS, METHODS, Config
from keras_ldam.experiments.tables import published
from keras_ldam.experiments.tables.collection import OF_ONE_RUN, Result
from keras_ldam.losses import LOSSES
from keras_ldam.report import Run
from keras_ldam.report.tables import Row, Table, columns, seed_errors, spread, warned

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
    "la": "LA",
    "vs": "VS",
    "ldam_la": "LDAM-LA",
    "crt": "cRT",
    "lws": "LWS",
    "bbn": "BBN",
}
BEST_MARK = "†"


def method_title(method: str) -> str:
    """Returns a method's name as the paper writes it."""
    name, *changes = method.split("+")
    title = METHOD_TITLES.get(name, name)
    return f"{title} ({', '.join(changes)})" if changes else title


def group_title(column: tuple[str, float]) -> str:
    """Returns an imbalance and its ratio in words."""
    imbalance, ratio = column
    if imbalance == "none":
        return "data as they are"
    return f"{'long-tailed' if imbalance == 'longtail' else imbalance}, ratio {ratio:g}"


def declared(dataset: str) -> datasets.Declarations:
    """Returns what a dataset's file declares; nothing for a user's own, whose file is not run."""
    if dataset in DATASETS:
        return datasets.declared(dataset)
    return datasets.Declarations(load=lambda config: None, TITLE=dataset)


def records(results: Sequence[Result]) -> list[Run]:
    """Returns the records of runs on one dataset, with the errors after the last epoch."""
    paper = published.PAPER.get(results[0].dataset, {})
    known = {measure for errors in paper.values() for *_, measure in errors}
    known |= {measure for run in results for measure in run.results["last"]}
    measures = [pair for pair in declared(results[0].dataset).MEASURES if pair[0] in known]
    return [_record(run, measures, _by_group(paper.get(run.method, {}))) for run in results]


def _by_group(errors):
    return {
        (group_title((imbalance, ratio)), measure): error
        for (imbalance, ratio, measure), error in errors.items()
    }


def _record(run, measures, paper):
    results, split = run.results, run.results["split"]
    num_classes = len(results["last"]["per_class_error"])
    start = run.config.get("start_epoch", 0) if run.config.get("rule") in ("drs", "drw") else 0
    versions = ", ".join(
        f"{name} {version}" for name, version in results.get("versions", {}).items()
    )
    facts = {
        "hardware": results.get("hardware"),
        "versions": versions,
        "training time": f"{results['seconds']:,.0f} s" if "seconds" in results else "",
        "parameters": f"{results['parameters']:,}" if "parameters" in results else "",
    }
    return Run(
        title=method_title(run.method),
        class_names=run.class_names or tuple(map(str, range(num_classes))),
        errors=results["last"],
        split=split,
        seed=run.seed,
        group=group_title(run.column),
        counts=run.counts,
        measures=measures,
        history=[_history_row(row, split) for row in run.history],
        margins=results.get("margins", {}),
        diagnosis=run.diagnosis and run.diagnosis["splits"].get(split),
        warnings=run.diagnosis["splits"].get("train", {}).get("warnings", ())
        if run.diagnosis
        else (),
        demanded=demanded(run),
        start_epoch=start if start > 0 else None,
        published=paper,
        settings={name: value for name, value in run.config.items() if name not in OF_ONE_RUN},
        facts={name: text for name, text in facts.items() if text},
    )


def _history_row(row, split):
    names = {"loss": "loss", "error": f"{split}_mean_error"}
    return {name: row[column] for name, column in names.items() if column in row}


def demanded(run: Result) -> np.ndarray | None:
    """Returns the margins that a run's loss demands of each class; None for a loss without."""
    named = LOSSES.get(run.config.get("loss", ""))
    if named is None or not named.wants_cosines or not run.counts:
        return None
    settings: dict[str, Any] = {
        field.name: run.config.get(field.name, field.default)
        for field in dataclasses.fields(Config)
    }
    return np.asarray(named.make(run.counts, settings).margins) if settings["max_margin"] else None


def headline(results: Sequence[Result], *, only_ours: bool = False) -> Table:
    """Returns the table of a dataset, method by method: the paper's numbers, ours, and others'.

    Args:
        results: Runs on one dataset.
        only_ours: Whether to leave out methods and columns without a run, and others' numbers.
    """
    dataset = results[0].dataset
    known = declared(dataset)
    last = records(results)
    best = [
        dataclasses.replace(record, errors=run.results["best"])
        for record, run in zip(last, results, strict=True)
        if not run.evaluated_once
    ]
    given = {run.method: record.title for run, record in zip(results, last, strict=True)}
    usual = () if only_ours else map(group_title, known.COLUMNS)
    shown = columns(last, list(dict.fromkeys([*usual, *(run.group for run in last)])))
    paper = {
        method: texts
        for method, errors in published.PAPER.get(dataset, {}).items()
        if (method in given or not only_ours) and any(texts := _texts(errors, shown))
    }
    reruns = {} if only_ours else published.RERUNS.get(dataset, {})
    rank = {name: i for i, name in enumerate(METHODS)}
    methods = sorted(
        dict.fromkeys([*given, *paper]),
        key=lambda method: rank.get(method.split("+")[0], len(rank)),
    )
    whose = "ours, " if paper else ""
    rows, quoted = [], []
    for method in methods:
        title = method_title(method)
        if method in paper:
            rows.append(Row(title, "paper", paper[method], strong=False))
        for runs, source in ((last, "last epoch"), (best, f"best epoch {BEST_MARK}")):
            errors = [seed_errors(runs, title, column) for column in shown]
            if any(errors):
                texts = tuple(str(spread(seeds)) if seeds else "" for seeds in errors)
                rows.append(Row(title, whose + source, texts, strong=runs is last))
        for who, errors in reruns.get(method, {}).items():
            if any(texts := _texts(errors, shown)):
                rows.append(Row(title, who, texts, strong=False))
                quoted.append(who)
    notes = [*_notes(results, paper, dict.fromkeys(quoted)), *warned(last)]
    return Table(known.TITLE, shown, tuple(rows), tuple(notes))


def _texts(errors, shown):
    by_group = _by_group(errors)
    values = (by_group.get((column.group, column.measure)) for column in shown)
    return tuple("" if value is None else f"{value:.2f}" for value in values)


def _notes(results, paper, quoted):
    """Returns what is said below the table."""
    split = results[0].results["split"]
    yield (
        f"Errors in percent on the {split} split, mean ± standard deviation over n seeds; "
        "blank: not run, or not published."
    )
    if any("oracle_error" in run.results["last"] for run in results):
        yield (
            "At the best threshold: the mean error if the classes were separated where it is "
            f"smallest on the {split} split. AUC: the area under the ROC curve in percent. Both "
            "tell how well a model ranks, wherever it draws the line."
        )
    precisions = {run.config.get("precision", "float32") for run in results}
    for precision in sorted(precisions - {"float32"}):
        those = [run for run in results if run.config.get("precision") == precision]
        if len(precisions) == 1:
            yield f"Ours in {precision}."
        else:
            yield f"Includes runs in {precision}: {_titles(those)}."
    if others := [run for run in results if not _in_paper(run)]:
        yield f"Not in the paper: {_titles(others)}."
    if pairs := [run for run in results if run.config.get("rule") == "bilateral"]:
        yield f"Two images a step in the place of one, so twice the time: {_titles(pairs)}."
    if replicated := [run for run in results if run.replicated]:
        yield (
            "Includes runs over several replicas, each of which normalizes its part of a batch: "
            f"{_titles(replicated)}."
        )
    if several := [run for run in results if not run.evaluated_once]:
        rarest = max(run.config.get("evaluate_every", 1) for run in several)
        evaluated = f", of one epoch in {rarest} and the last" if rarest > 1 else ""
        yield (
            f"{BEST_MARK} The epoch with the smallest mean error on the {split} split itself"
            f"{evaluated}: chosen with the {split} labels in view, so not comparable with the last "
            "epoch."
        )
    else:
        yield f"The {split} split was read once in each run, after the last epoch."
    if paper:
        yield f"Paper: {published.PAPER_SOURCE}."
    for who in quoted:
        yield f"{who}: {published.RERUN_SOURCES[who]}."


def _in_paper(run):
    name = run.results["method"]
    return name not in METHODS or METHODS[name].in_paper


def _titles(runs):
    return ", ".join(dict.fromkeys(method_title(run.method) for run in runs))
