"""What `keras_ldam.adjust` adds to trained runs, on examples that its fit has not seen.

    python benchmarks/adjustment.py RUN_DIR … [--most 6000]

For each finished run folder the test split, at most so many examples of it, is halved class by
class. `adjust` is fitted on one half, by balanced accuracy and by negative log-likelihood, with the
counts of the training data; both are measured on the other half, before and after. Nothing is
chosen by the other half. Runs of one dataset and method, which must differ in their seed only, are
one row: means over seeds, and 95 % intervals of 500 bootstrap draws of the examples within their
classes, the same draw for all seeds. `adjustment.json` has every run as well, with what its own
cross-fitting on the first half said, and keeps what is not measured anew; docs/adjustment_table.py
makes the table of the guide of it.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_ldam  # noqa: E402
from keras_ldam import evaluation  # noqa: E402
from keras_ldam.adjustment import fitting  # noqa: E402
from keras_ldam.adjustment.criteria import Criterion, Decisions  # noqa: E402
from keras_ldam.experiments import datasets  # noqa: E402
from keras_ldam.experiments.run_folder import RunFolder  # noqa: E402
from keras_ldam.experiments.tables.collection import OF_ONE_RUN  # noqa: E402
from keras_ldam.hardware import versions  # noqa: E402

DRAWS = 500
CRITERIA = ("balanced_accuracy", "nll")
BATCH = 256


def scores_of(folder: RunFolder, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    """Returns s z, labels and counts of a run on part of its test split, and its config."""
    config, data = folder.read_config(), folder.read_data()
    datasets.declared(config.dataset)
    model = folder.load_model()
    test = datasets.load(config, vocabulary=data.get("vocabulary")).test
    parts = -(-len(test.labels) // most)
    part = fitting.folds(np.asarray(test.labels)[:, None], parts, seed=1)[0]
    scores, labels = evaluation.scores(model, test.take(np.flatnonzero(part)).batches(BATCH))
    settings = config.to_json()
    # Names: where these folders lie is a matter of the machine.
    settings |= {name: Path(settings[name]).name for name in ("data_dir", "stage_one")}
    return config.score_scale * scores, labels, np.array(data["counts"]), settings


def adjusted(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict:
    """Returns for each criterion the adjustment, and the logits of the unseen half."""
    first, second = fitting.folds(labels[:, None], 2, seed=0)
    inputs = keras.Input((scores.shape[1],))
    model = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
    found = {"labels": labels[second], "before": scores[second]}
    for criterion in CRITERIA:
        one = keras_ldam.adjust(
            model, (scores[first], labels[first]), criterion=criterion, scale=1.0, counts=counts
        )
        found[criterion] = one
        found[f"after {criterion}"] = keras.ops.convert_to_numpy(
            one.layer.logits(scores[second])
        ).astype(np.float64)
    return found


def value(criterion: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns balanced accuracy in percent, or the mean negative log-likelihood."""
    if criterion == "nll":
        return float(fitting.losses(logits[:, None], labels[:, None]).mean())
    guesses = logits.argmax(axis=1)[:, None]
    found = Decisions(labels[:, None], guesses, np.ones((len(labels), 1)), logits.shape[1])
    return 100 * float(Criterion(criterion).of(found)[0])


def row(runs: list[dict], criterion: str) -> dict:
    """Returns means over runs before and after, and their difference with its interval."""
    labels = runs[0]["labels"]

    def means(index: np.ndarray | slice) -> tuple[float, float]:
        pairs = [
            [value(criterion, run[key][index], labels[index])
             for key in ("before", f"after {criterion}")]
            for run in runs
        ]  # fmt: skip
        before, after = np.mean(pairs, axis=0)
        return float(before), float(after)

    before, after = means(slice(None))
    drawn = [means(index) for index in fitting.draws(labels[:, None], DRAWS, seed=2)]
    ends = np.quantile([b - a for a, b in drawn], [0.025, 0.975])
    return {
        "before": round(before, 4),
        "after": round(after, 4),
        "difference": [round(float(each), 4) for each in (after - before, *ends)],
        "kept": [bool(run[criterion].offsets.any()) for run in runs],
        "tau": [run[criterion].tau for run in runs],
        "temperature": [round(run[criterion].temperature, 4) for run in runs],
    }


def unlike(folders: list[RunFolder]) -> str:
    """Returns why some runs are no rows of the table; empty if they are."""
    first: dict[tuple, dict] = {}
    for folder in folders:
        config = folder.read_config().to_json()
        if config["validation_fraction"]:
            return f"{folder.path} was evaluated on held-out training examples"
        settings = {name: value for name, value in config.items() if name not in OF_ONE_RUN}
        other = first.setdefault((config["dataset"], config["method"]), settings)
        for name in (name for name, value in settings.items() if value != other[name]):
            return f"{folder.path} has {name}={settings[name]!r}, another run {other[name]!r}"
    return ""


def main() -> None:
    """Measures the runs that are named, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--most", type=int, default=6000)
    given = parser.parse_args()
    if refused := unlike([RunFolder(path) for path in given.runs]):
        parser.error(refused)
    groups, configs, own = collections.defaultdict(list), {}, []
    for path in sorted(given.runs):
        scores, labels, counts, config = scores_of(RunFolder(path), given.most)
        found = adjusted(scores, labels, counts)
        key = (config["dataset"], config["method"])
        groups[key].append(found)
        configs.setdefault(key, config)
        own.append(
            {
                "dataset": config["dataset"],
                "method": config["method"],
                "seed": config["seed"],
                "config": config,
                "versions": versions(),
                **{each: found[each].to_json() for each in CRITERIA},
            }
        )
        print(path, str(found["balanced_accuracy"]), sep="\n", file=sys.stderr, flush=True)
    rows = [
        {
            "dataset": dataset,
            "method": method,
            "epochs": configs[dataset, method]["epochs"],
            "seeds": len(runs),
            "examples": len(runs[0]["labels"]),
            **{each: row(runs, each) for each in CRITERIA},
        }
        for (dataset, method), runs in groups.items()
    ]
    path = HERE / "adjustment.json"
    if path.exists():  # What is not measured now stays.
        before = json.loads(path.read_text(encoding="utf-8"))
        for kept, new in ((before["rows"], rows), (before["runs"], own)):
            new[:0] = [each for each in kept if (each["dataset"], each["method"]) not in groups]
    written = {
        "command": "python benchmarks/adjustment.py RUN_DIR … --most " + str(given.most),
        "rows": rows,
        "runs": own,
    }
    path.write_text(json.dumps(written, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
