"""Gathers finished runs, and keeps the results file of a dataset.

    {"dataset": "imdb", "class_names": ["negative", "positive"],
     "runs": [{"method": "ldam_drw", "seed": 0, "last": {"per_class_error": [...], "mean_error": …},
               "best": {…, "epoch": …}, "counts": [...], "config": {…}, "seconds": …,
               "versions": {…}, "hardware": …}, …]}

Errors are in percent. A run is told from another by its method, seed and column (imbalance and its
ratio); the same run anew takes the place of the old. One with another config does not: a result
must not be lost to a trial.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from keras_ldam.experiments.config import METHODS
from keras_ldam.experiments.run_folder import PLACE_FIELDS, RunFolder
from keras_ldam.files import write_json

_KEPT = ("method", "seed", "split", "last", "best", "counts", "parameters", "seconds")
_ALSO_KEPT = ("replicas", "config", "versions", "hardware", "margins")


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, from its folder or from a results file.

    Args:
        results: What the results file holds of it.
        dataset: Name of the dataset.
        class_names: Name of each class.
        history: Rows of the training history, one for each epoch; empty where not known.
        diagnosis: What `diagnosis.json` holds, or None.
        label: Its name in figures; None for the method's.
    """

    results: dict
    dataset: str
    class_names: tuple[str, ...]
    history: tuple[dict, ...] = ()
    diagnosis: dict | None = None
    label: str | None = None

    @property
    def method(self) -> str:
        """The method's name, with loss and rule where the config changed them."""
        name, config = self.results["method"], self.results.get("config") or {}
        usual = METHODS.get(name)
        if self.label is not None or usual is None or not config:
            return name
        changed = [
            config[field]
            for field, value in zip(("loss", "rule"), usual, strict=True)
            if config.get(field) not in (None, "", value)
        ]
        return "+".join([name, *changed])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.results["seed"]

    @property
    def column(self) -> tuple[str, float]:
        """The imbalance and its ratio; `("none", 0)` for data as they come."""
        config = self.results.get("config") or {}
        imbalance = config.get("imbalance", "none")
        if imbalance == "none" or self.dataset == "inaturalist2018":
            return "none", 0
        ratio = float(config["imbalance_ratio"])
        # IMDB has two classes, for which both profiles are the same.
        return "longtail" if self.dataset == "imdb" else imbalance, ratio

    @property
    def key(self) -> tuple:
        """What tells this run from others of its dataset."""
        return (self.method, *self.column, self.seed)

    @property
    def held_out(self) -> bool:
        """Whether its errors are those on a part of the training examples."""
        config = self.results.get("config")
        if not config:
            return self.results["split"] != "test"
        return config.get("validation_fraction", 0) > 0

    @property
    def cut_short(self) -> bool:
        """Whether its epochs were, to try things out."""
        return (self.results.get("config") or {}).get("steps_per_epoch", 0) > 0

    @property
    def replicated(self) -> bool:
        """Whether it was computed, at least for a time, by several replicas."""
        config = self.results.get("config") or {}
        several = config.get("strategy", "none") != "none"
        return max(self.results.get("replicas", [1 + several])) > 1

    @property
    def counts(self) -> list[int] | None:
        """Training examples per class."""
        return self.results.get("counts")


def gather(sources: Sequence[str | Path]) -> list[Run]:
    """Reads runs from run folders and results files, all of one dataset.

    Args:
        sources: Run folders that `bin/train` has made, results files, or both. A run that several
            sources hold is taken from the last.

    Returns:
        The runs, by method, column and seed.

    Raises:
        ValueError: without a source, for one that cannot be read, for different datasets or
            splits in one comparison, or for two runs of one method and seed with different
            settings.
    """
    if not sources:
        raise ValueError("nothing to report on: name run folders, or a results file.")
    runs: dict[tuple, Run] = {}
    for source in map(Path, sources):
        found = read_file(source) if source.is_file() else [read_folder(source)]
        for run in found:
            first = next(iter(runs.values()), run)
            if run.dataset != first.dataset:
                raise ValueError(
                    f"{source} is about {run.dataset} and an earlier run about {first.dataset}: "
                    "compare runs of one dataset."
                )
            if run.class_names and first.class_names and run.class_names != first.class_names:
                raise ValueError(
                    f"{source} has not the classes of an earlier run: compare runs of one dataset."
                )
            if _evaluated(run) != _evaluated(first):
                raise ValueError(
                    f"{source} was evaluated on {_evaluated(run)} and an earlier run on "
                    f"{_evaluated(first)}: they do not compare."
                )
            other = _difference(run, runs.get(run.key, run))
            if other is not None:
                raise ValueError(
                    f"{source} holds {run.method}, seed {run.seed}, with {other[0]}={other[1]!r}, "
                    f"and an earlier source with {other[2]!r}: leave one of them out."
                )
            runs[run.key] = run
    if not runs:
        raise ValueError(f"nothing to report on: {', '.join(map(str, sources))} holds no run.")
    return in_order(runs.values())


def _evaluated(run):
    if run.held_out:
        return "held-out training examples"
    return f"its {run.results.get('split')} split"


def in_order(runs: Iterable[Run]) -> list[Run]:
    """Runs in the order of tables: by column, by method as `METHODS` lists them, by seed."""
    rank = {name: i for i, name in enumerate(METHODS)}
    return sorted(
        runs,
        key=lambda run: (
            run.column[0],
            -run.column[1],
            rank.get(run.results["method"], len(rank)),
            run.method,
            run.seed,
        ),
    )


def read_folder(path: str | Path) -> Run:
    """Reads one run folder; raises `ValueError` if its run has not ended or is damaged."""
    folder = RunFolder(path)
    results = folder.read_results()
    kept = _checked(results, folder.results_file)
    diagnosis = folder.read_diagnosis() if folder.diagnosis_file.exists() else None
    if diagnosis is not None:
        kept["margins"] = {
            split: values["margins"] for split, values in diagnosis["splits"].items()
        }
    return Run(
        kept,
        results["dataset"],
        tuple(results.get("class_names", ())),
        history=tuple(folder.read_history()),
        diagnosis=diagnosis,
    )


def read_file(path: str | Path) -> list[Run]:
    """Reads a results file; raises `ValueError` if it is not one."""
    path = Path(path)
    try:
        content = json.loads(path.read_text())
        dataset, runs = content.get("dataset", path.stem), content["runs"]
        names = tuple(content.get("class_names", ()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(
            f'{path} is not a results file: it must be JSON with a list "runs".'
        ) from None
    return [Run(_checked(results, path), dataset, names) for results in runs]


def _checked(results, path):
    try:
        kept = {name: results[name] for name in _KEPT if name in results}
        kept |= {name: results[name] for name in _ALSO_KEPT if name in results}
        kept["method"], kept["seed"]
        float(kept["last"]["mean_error"])
        float(kept["best"]["mean_error"])
        kept.setdefault("split", "test")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a run's results: it lacks {error}.") from None
    return kept


def merge(runs: Sequence[Run], path: str | Path) -> list[Run]:
    """Writes runs into a results file, beside those that are there already.

    Args:
        runs: Runs of one dataset, as `gather` gives them. Those on held-out training examples are
            not written, as the file is for results; nor are those with `steps_per_epoch`, and those
            that would replace a run with another config. What is not written is said.
        path: The results file; made, with its folder, if it is not there.

    Returns:
        What there is to show: all runs that the file holds, those given in place of theirs, with
        their histories; on held-out examples those given alone.

    Raises:
        ValueError: if the file exists and is not a results file of this dataset, these classes
            and this split.
    """
    path = Path(path)
    if runs and runs[0].held_out:
        print(f"{path}: runs on held-out examples are not written into it.", file=sys.stderr)
        return in_order(runs)
    held = read_file(path) if path.exists() else []
    if held and runs and held[0].dataset != runs[0].dataset:
        raise ValueError(
            f"{path} holds results of {held[0].dataset}; these runs are of {runs[0].dataset}."
        )
    if held and runs and _about(held[0]) != _about(runs[0]):
        raise ValueError(
            f"{path} holds results on other classes, or on another split, than these runs' "
            f"{len(runs[0].class_names)} classes and {_evaluated(runs[0])}: choose another "
            "--results_dir."
        )
    shown = {run.key: run for run in held}
    written = dict(shown)
    for run in runs:
        reason = _why_not_written(run, shown.get(run.key, run))
        shown[run.key] = run
        if reason is None:
            written[run.key] = run
        else:
            print(
                f"{path}: {run.method}, seed {run.seed}, is shown and not written: {reason}.",
                file=sys.stderr,
            )
    results = [run.results for run in in_order(written.values())]
    content = {
        "dataset": runs[0].dataset,
        "class_names": list(runs[0].class_names),
        "runs": results,
    }
    if results and not (path.exists() and json.loads(path.read_text()) == content):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    return in_order(shown.values())


def _why_not_written(run, held):
    """Why a run is not written in place of one of the same name; None where it is."""
    if run.cut_short:
        return "--steps_per_epoch has cut it short"
    other = _difference(run, held)
    if other is None:
        return None
    return (
        f"the file has it with {other[0]}={other[2]!r}, this run has {other[1]!r}; take the old "
        "one out to have the new, or choose another --results_dir"
    )


def _difference(run, other):
    """The first setting in which two runs of one name differ, with its values; or None.

    On several replicas batch normalisation is by each one's part of a batch, so that matters,
    though a run may go on on other devices.
    """
    ours, theirs = (each.results.get("config") or {} for each in (run, other))
    for name in ours:
        matters = name not in (*PLACE_FIELDS, "evaluate_every")
        if matters and name in theirs and ours[name] != theirs[name]:
            return name, ours[name], theirs[name]
    if run.replicated != other.replicated:
        return "several replicas", run.replicated, other.replicated
    if run.counts and other.counts and list(run.counts) != list(other.counts):
        return "training examples", sum(run.counts), sum(other.counts)
    return None


def _about(run):
    return run.class_names, _evaluated(run)


def unlike(runs: Sequence[Run]) -> list[str]:
    """Says where runs that differ in their seed only, by their names, differ in more."""
    sentences, first = [], {}
    for run in runs:
        config = {
            name: value
            for name, value in (run.results.get("config") or {}).items()
            if name not in ("seed", "data_dir")
        }
        other = first.setdefault(run.key[:-1], (run, config))
        for name in config:
            if name in other[1] and config[name] != other[1][name]:
                sentences.append(
                    f"{run.method}: seed {run.seed} has {name}={config[name]!r}, seed "
                    f"{other[0].seed} has {other[1][name]!r}; their mean mixes two settings."
                )
                break
    return sentences
