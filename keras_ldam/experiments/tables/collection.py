"""Gathers finished runs, and keeps the results file of a dataset.

    {"dataset": "imdb", "class_names": ["negative", "positive"],
     "runs": [{"method": "ldam_drw", "seed": 0, "last": {"per_class_error": [...], "mean_error": …},
               "best": {…, "epoch": …}, "counts": [...], "config": {…}, "seconds": …,
               "versions": {…}, "hardware": …}, …]}

Errors are in percent. A run is identified by its method, its seed and its column (imbalance and
ratio); the same run anew replaces the old one. One with another config does not, nor does it stand
beside other seeds: a result must not be lost to a trial, nor mixed with it.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from keras_ldam import counts as class_counts
from keras_ldam import files
from keras_ldam.experiments.config import METHODS, Config
from keras_ldam.experiments.run_folder import PLACE_FIELDS, RunFolder, is_moved
from keras_ldam.experiments.tables import forms

_KEPT = ("method", "seed", "split", "last", "best", "counts", "parameters", "seconds")
_KEPT += ("replicas", "config", "versions", "hardware", "margins")


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a finished run, from its folder or from a results file.

    Args:
        results: What the results file holds of it.
        dataset: Name of the dataset.
        class_names: Name of each class; empty if unknown.
        history: Rows of the training history, one for each epoch; empty if unknown.
        diagnosis: What `diagnosis.json` holds; None if unknown.
    """

    results: dict[str, Any]
    dataset: str
    class_names: tuple[str, ...]
    history: tuple[dict[str, float], ...] = ()
    diagnosis: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The run's config; empty if unknown."""
        config = self.results.get("config", {})
        if "weights" in config and config.get("network") == "resnet50":
            # Before `weights` became `pretrained` this meant the dataset's own network, whichever.
            return {**config, "network": ""}
        return config

    @property
    def method(self) -> str:
        """The method's name, with the loss and rule that the config changed, and its recipe."""
        name = self.results["method"]
        usual = METHODS[name]._asdict() if name in METHODS else {}
        changed = [
            self.config[field]
            for field in ("loss", "rule")
            if field in usual and self.config.get(field) not in (None, "", usual[field])
        ]
        if self.config.get("recipe"):
            changed.append(f"recipe {self.config['recipe']}")
        return "+".join([name, *changed])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.results["seed"]

    @property
    def evaluated_once(self) -> bool:
        """Whether the run was evaluated after its last epoch alone, as second stages are."""
        method = METHODS.get(self.results["method"])
        every, epochs = self.config.get("evaluate_every", 1), self.config.get("epochs", math.inf)
        return every >= epochs or (method is not None and bool(method.second_stage))

    @property
    def column(self) -> tuple[str, float]:
        """The imbalance and its ratio; `("none", 0)` for the data as they are."""
        imbalance = self.config.get("imbalance", "none")
        if imbalance == "none":
            return "none", 0
        if len(self.results["last"]["per_class_error"]) == 2:
            imbalance = "longtail"  # For two classes both profiles are the same.
        return imbalance, float(self.config.get("imbalance_ratio", 1))

    @property
    def key(self) -> tuple:
        """What distinguishes this run from others on its dataset."""
        return (self.method, *self.column, self.seed)

    @property
    def held_out(self) -> bool:
        """Whether its errors are those on a part of the training examples."""
        if not self.config:
            return self.results["split"] != "test"
        return self.config.get("validation_fraction", 0) > 0

    @property
    def cut_short(self) -> bool:
        """Whether its epochs were cut short, for a trial."""
        return self.config.get("steps_per_epoch", 0) > 0

    @property
    def replicated(self) -> bool:
        """Whether it was computed, at least for a time, by several replicas."""
        several = self.config.get("strategy", "none") != "none"
        return max(self.results.get("replicas") or [1 + several]) > 1

    @property
    def counts(self) -> list[int] | None:
        """Training examples per class."""
        return self.results.get("counts")

    @property
    def split(self) -> str:
        """What its errors are measured on."""
        if not self.held_out:
            return f"its {self.results['split']} split"
        part = [
            f"{name} {self.config[name]}"
            for name in ("validation_fraction", "validation_fold", "left_out")
            if self.config.get(name)
        ]
        return "held-out training examples" + (f" ({', '.join(part)})" if part else "")


def gather(sources: Sequence[str | Path]) -> list[Result]:
    """Reads runs from run folders and results files, all on one dataset.

    Args:
        sources: Run folders of `bin/train`, results files, or both. A run that several sources hold
            is taken from the last.

    Returns:
        The runs, by column, method and seed.

    Raises:
        ValueError: without a source, for one that cannot be read or holds impossible values,
            for different datasets, training examples or splits in one comparison, or for two runs
            of one method and seed with different settings.
    """
    if not sources:
        raise ValueError("nothing to report on: name run folders, or a results file.")
    runs: dict[tuple, Result] = {}
    found: list[Result] = []
    for source in map(Path, sources):
        for run in read_file(source) if source.is_file() else [read_folder(source)]:
            first = next(iter(runs.values()), run)
            if run.dataset != first.dataset:
                raise ValueError(
                    f"{source} is about {run.dataset} and an earlier run about {first.dataset}: "
                    "compare runs on one dataset."
                )
            if run.class_names and first.class_names and run.class_names != first.class_names:
                raise ValueError(
                    f"{source} has other classes than an earlier run: compare runs on one dataset."
                )
            if run.split != first.split:
                raise ValueError(
                    f"{source} was evaluated on {run.split} and an earlier run on {first.split}: "
                    "they do not compare."
                )
            other = _difference(run, runs.get(run.key, run))
            if other is not None:
                raise ValueError(
                    f"{source} holds {run.method}, seed {run.seed}, with {other[0]}={other[1]!r}, "
                    f"and an earlier source with {other[2]!r}: leave one of them out."
                )
            runs[run.key] = run
            found.append(run)
    if not runs:
        raise ValueError(f"nothing to report on: {', '.join(map(str, sources))} holds no run.")
    _check_examples(found)
    return in_order(runs.values())


def in_order(runs: Iterable[Result]) -> list[Result]:
    """Returns runs in the order of tables: by column, by method as in `METHODS`, by seed."""
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


def read_folder(path: str | Path) -> Result:
    """Reads a run folder.

    Raises:
        ValueError: if its run has not ended, or a file is damaged or holds impossible values.
    """
    folder = RunFolder(path)
    results = folder.read_results()
    forms.check_results(results, folder.results_file)
    kept = _kept(results)
    diagnosis = None
    if folder.diagnosis_file.exists():
        diagnosis = folder.read_diagnosis()
        classes = len(results["last"]["per_class_error"])
        forms.check_diagnosis(diagnosis, classes, folder.diagnosis_file)
        kept["margins"] = {
            split: values["margins"] for split, values in diagnosis["splits"].items()
        }
    return Result(
        kept,
        results["dataset"],
        tuple(results.get("class_names", ())),
        history=tuple(folder.read_history()),
        diagnosis=diagnosis,
    )


def read_file(path: str | Path) -> list[Result]:
    """Reads a results file; raises `ValueError` if it is not one or holds impossible values."""
    path = Path(path)
    content = files.read_json(path)
    forms.check_content(content, path)
    dataset, names = content.get("dataset", path.stem), tuple(content.get("class_names", ()))
    runs = []
    for i, results in enumerate(content["runs"]):
        forms.check_results(results, path, f"runs[{i}]", num_classes=len(names) or None)
        runs.append(Result(_kept(results), dataset, names))
    return runs


def _kept(results):
    kept = {name: results[name] for name in _KEPT if name in results}
    kept.setdefault("split", "test")
    if "data_dir" in kept.get("config", {}):  # As in `Config.to_public_json`.
        name = Path(kept["config"]["data_dir"]).name
        kept["config"] = {**kept["config"], "data_dir": name}
    return kept


def merge(
    runs: Sequence[Result], path: str | Path
) -> tuple[list[Result], dict[str, Any] | None, list[str]]:
    """Merges runs with those of a results file; writes nothing.

    Args:
        runs: Runs on one dataset, as `gather` returns them. Those on held-out training examples are
            not to be written, as the file is for results; nor are those with `steps_per_epoch`, and
            those that would replace a run with another config, or stand beside its other seeds.
        path: The results file, which need not exist.

    Returns:
        All runs to show: those of the file, and those given in place of theirs, with their
        histories; on held-out examples those given alone. What the file is to hold; None if it
        stays as it is. And sentences about what is not written.

    Raises:
        ValueError: if the file exists and is not a results file of this dataset, these classes,
            these training examples and this split.
    """
    path = Path(path)
    if runs[0].held_out:
        said = [f"{path}: runs on held-out examples are not written into it."]
        return in_order(runs), None, said
    held = read_file(path) if path.exists() else []
    if held and held[0].dataset != runs[0].dataset:
        raise ValueError(
            f"{path} holds results on {held[0].dataset}; these runs are on {runs[0].dataset}."
        )
    if held and (held[0].class_names, held[0].split) != (runs[0].class_names, runs[0].split):
        raise ValueError(
            f"{path} holds results on other classes, or on another split, than these runs' "
            f"{len(runs[0].class_names)} classes and {runs[0].split}: choose another --results_dir."
        )
    _check_examples([*held, *runs])
    shown = {run.key: run for run in held}
    written, said = dict(shown), []
    for run in runs:
        reason = _why_not_written(run, written)
        shown[run.key] = run
        if reason is None:
            written[run.key] = run
        else:
            name = f"{run.method}, seed {run.seed}"
            said.append(f"{path}: {name}, is shown and not written: {reason}.")
    content = {
        "dataset": runs[0].dataset,
        "class_names": list(runs[0].class_names),
        "runs": [run.results for run in in_order(written.values())],
    }
    unchanged = not written or (path.exists() and files.read_json(path) == content)
    return in_order(shown.values()), None if unchanged else content, said


def keep(runs: Sequence[Result], path: str | Path) -> None:
    """Writes runs into a results file, beside those that it holds by now, as `merge` does.

    What is not written is said, and so is a place that is read-only.
    """
    path = Path(path)
    try:
        if merge(runs, path)[1] is not None:  # Otherwise no folder is made.
            path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(path.parent):
            _, content, said = merge(runs, path)
            print(*said, sep="\n", end="\n" if said else "", file=sys.stderr)
            if content is not None:
                files.write_json(path, content)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        print(f"{path} does not keep these runs: {error.strerror}.", file=sys.stderr)


def _why_not_written(run, held):
    """Returns why a run is not written beside those that a file holds, by key; None if it is."""
    if run.cut_short:
        return "--steps_per_epoch has cut it short"
    other = _difference(run, held.get(run.key, run))
    if other is not None:
        return (
            f"the file has it with {other[0]}={other[2]!r}, this run has {other[1]!r}; remove the "
            "old one to have the new, or choose another --results_dir"
        )
    for key, one in held.items():
        other = _difference(run, one, but=OF_ONE_RUN)
        if key[:-1] == run.key[:-1] and other is not None:
            return (
                f"the file has seed {one.seed} with {other[0]}={other[2]!r}, this run has "
                f"{other[1]!r}, and their mean would mix two settings; choose another --results_dir"
            )
    return None


OF_ONE_RUN = ("seed", "data_dir", "stage_one")
"""Fields of a config in which runs of one setting differ."""


def _difference(run, other, *, but=()):
    """Returns the first setting in which two runs differ, with its values; or None.

    On several replicas batch normalization is over each one's part of a batch, so that matters,
    though a run may resume on other devices.
    """
    for name, value, theirs in _unequal(run, other):
        if name not in (*PLACE_FIELDS, "evaluate_every", *but):
            return name, value, theirs
    if run.replicated != other.replicated:
        return "several replicas", run.replicated, other.replicated
    return None


def _unequal(run, other):
    """The settings in which two configs differ, with their values; none if one is unknown.

    A config that was written before a setting existed has its default.
    """
    if not run.config or not other.config:
        return
    before = {**run.config, **other.config, **Config().to_json()}
    for name in {**run.config, **other.config}:
        value, theirs = (each.config.get(name, before[name]) for each in (run, other))
        if value != theirs and not (name == "dataset" and is_moved(value, theirs)):
            yield name, value, theirs


def _check_examples(runs):
    """Raises `ValueError` for runs of one column on different numbers of training examples.

    These do not depend on the seed: such runs are on different files of the same classes.
    """
    first: dict[tuple, Result] = {}
    for run in runs:
        if not run.counts:
            continue
        part = run.config.get("validation_fraction", 0)
        other = first.setdefault((run.column, part), run)
        if list(run.counts) != list(other.counts):
            ours, theirs = (class_counts.shown(each.counts) for each in (run, other))
            raise ValueError(
                f"{run.method}, seed {run.seed}, was trained on {ours} examples of the classes, "
                f"and {other.method}, seed {other.seed}, on {theirs}: compare runs on the same "
                "data."
            )


def unlike(runs: Sequence[Result]) -> list[str]:
    """Returns a sentence for runs of one name whose settings differ in more than the seed."""
    sentences, first = [], {}
    for run in runs:
        other = first.setdefault(run.key[:-1], run)
        unequal = _difference(run, other, but=OF_ONE_RUN)
        if unequal is not None:
            name, value, theirs = unequal
            sentences.append(
                f"{run.method}: seed {run.seed} has {name}={value!r}, seed {other.seed} has "
                f"{theirs!r}; their mean mixes two settings."
            )
    return sentences
