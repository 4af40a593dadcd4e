"""The recipe for tables of one's own, against scikit-learn's gradient boosting with class weights.

    pip install river
    KERAS_BACKEND=jax python benchmarks/table.py

Writes `benchmarks/table.json`, and `benchmarks/README.md` from it and its like (see `readme.py`).

Two real imbalanced tables lie in the package river (BSD-3-Clause; the data are UCI's, CC BY 4.0):
Statlog Shuttle, nine numbers, 7 % anomalies; and Solar Flare, ten categories, with four classes: no
flare of class C in a region, one, two, or more. Only the files are read, river is not imported.

Each seed divides a table anew, four fifths of each class for training, and seeds the training. Ours
is `bin/train --dataset table` with `configs/table.py` as it is, by three methods; on Shuttle, whose
rows are many, with 6 epochs, as that file advises. The others are
`HistGradientBoostingClassifier` as it is, and with `class_weight="balanced"`; they get categories
as such. Nothing is tuned for them, and of ours the batch size alone, on validation rows of Solar
Flare. Errors are those of `argmax`; the average precision, the mean of that of each class against
the others, depends on no threshold.

Also measured: the anonymous memory that loading a table of 100,000 and of 400,000 rows leaves, and
what Keras' `FeatureSpace` does with a table of six columns and one missing number.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import readme

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
SEEDS = 3
EPOCHS = {"shuttle": 6}
METHODS = ("erm", "ce_drw", "ldam_drw")
MEMORY = """
import sys
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import table

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024

before = anonymous()
data = table.load(Config(dataset="table", imbalance="none", data_dir=sys.argv[1]).resolve())
print(round(anonymous() - before, 1))
"""
FEATURE_SPACE = """
import json
import keras, numpy as np, tensorflow as tf

columns = {f"x{i}": np.random.default_rng(i).normal(size=3000).astype("float32") for i in range(5)}
columns["c"] = np.array(["a", "b"] * 1500)
columns["x0"][3] = np.nan
passes = 0

def read():
    global passes
    passes += 1
    for start in range(0, 3000, 1000):
        yield {name: values[start : start + 1000] for name, values in columns.items()}

spec = {n: tf.TensorSpec((None,), tf.string if n == "c" else tf.float32) for n in columns}
kinds = {n: "string_categorical" if n == "c" else "float_normalized" for n in columns}
space = keras.utils.FeatureSpace(kinds, output_mode="dict")
space.adapt(tf.data.Dataset.from_generator(read, output_signature=spec))
encoded = space({name: tf.constant(values) for name, values in columns.items()})
unknown = float(np.isnan(encoded["x0"]).mean())
print(json.dumps({"columns": 6, "passes_of_adapt": passes, "nan_share_of_that_column": unknown}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=str(HERE / "table.json"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    from keras_ldam import hardware

    tables = {"shuttle": shuttle(), "solar_flare": solar_flare()}
    results = {
        "command": "KERAS_BACKEND=jax python benchmarks/table.py",
        "hardware": hardware.describe(),
        "versions": {**hardware.versions(), **{n: version(n) for n in ("river", "scikit-learn")}},
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "seeds": given.seeds,
        "memory_mb": {rows: memory(rows) for rows in (100_000, 400_000)},
        "feature_space": json.loads(program(FEATURE_SPACE, KERAS_BACKEND="tensorflow")),
        "tables": {},
    }
    for name, (rows, label) in tables.items():
        found: dict[str, list] = {}
        for seed in range(given.seeds):
            for way, measured in compared(rows, label, seed, EPOCHS.get(name)):
                found.setdefault(way, []).append(measured)
                print(name, seed, way, measured, flush=True)
        counts = np.unique([row[label] for row in rows], return_counts=True)
        results["tables"][name] = {
            "rows": len(rows),
            "columns": len(rows[0]) - 1,
            "counts": dict(zip(*(part.tolist() for part in counts), strict=True)),
            "found": found,
        }
    Path(given.output).write_text(json.dumps(results, indent=1) + "\n")
    if given.output == parser.get_default("output"):
        readme.write()


def river() -> Path:
    """The folder of the package's data files."""
    found = importlib.util.find_spec("river")
    if found is None:
        raise SystemExit("table: the tables are those of the package river: pip install river.")
    return Path(found.submodule_search_locations[0]) / "datasets"


def shuttle() -> tuple[list[dict[str, str]], str]:
    with gzip.open(river() / "shuttle.csv.gz", "rt") as file:
        return list(csv.DictReader(file)), "anomaly"


def solar_flare() -> tuple[list[dict[str, str]], str]:
    with zipfile.ZipFile(river() / "solar-flare.csv.zip") as archive:
        text = archive.read(archive.namelist()[0]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    for row in rows:
        row["flares"] = str(min(3, int(row.pop("c-class-flares"))))
        for other in ("m-class-flares", "x-class-flares"):  # Other things to predict.
            del row[other]
    return rows, "flares"


def compared(rows, label, seed, epochs=None):
    """Yields each way's measures on the same test rows."""
    from sklearn.model_selection import train_test_split

    labels = np.array([int(row[label]) for row in rows])
    train, test = train_test_split(
        np.arange(len(rows)), test_size=0.2, stratify=labels, random_state=seed
    )
    names = [name for name in rows[0] if name != label]
    categories = [name for name in names if len({row[name] for row in rows}) <= 10]
    yield from boosted(rows, labels, names, categories, train, test, seed)
    with tempfile.TemporaryDirectory() as folder:
        part = np.full(len(rows), "train", object)
        part[test] = "test"
        with open(Path(folder) / "rows.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*names, label, "split"])
            for row, where in zip(rows, part, strict=True):
                writer.writerow([*(row[name] for name in names), row[label], where])
        for method in METHODS:
            yield f"ours, {method}", ours(Path(folder), method, label, categories, seed, epochs)


def ours(folder, method, label, categories, seed, epochs):
    import dataclasses

    from keras_ldam import evaluation
    from keras_ldam.experiments import datasets, training
    from keras_ldam.experiments.recipes import load_recipe
    from keras_ldam.experiments.run_folder import RunFolder

    recipe = load_recipe("table", method)
    config = dataclasses.replace(
        recipe,
        epochs=epochs or recipe.epochs,
        data_dir=str(folder / "rows.csv"),
        label_column=label,
        category_columns=",".join(categories),
        seed=seed,
        evaluate_every=1000,
    ).resolve()
    begins = time.process_time()
    training.train(config, folder / method, progress=False)
    seconds = time.process_time() - begins
    data = datasets.load(config)
    model = RunFolder(folder / method).load_model()
    scores, labels = evaluation.scores(model, data.test.batches(1000))
    return measures(labels, scores, seconds)


def boosted(rows, labels, names, categories, train, test, seed):
    from sklearn.ensemble import HistGradientBoostingClassifier

    columns = []
    for name in names:
        values = [row[name] for row in rows]
        known = {value: code for code, value in enumerate(sorted(set(values)))}
        columns.append([known[v] for v in values] if name in categories else map(float, values))
    x = np.array([list(column) for column in columns]).T
    for weight in (None, "balanced"):
        model = HistGradientBoostingClassifier(
            class_weight=weight,
            categorical_features=[name in categories for name in names],
            random_state=seed,
        )
        begins = time.process_time()
        model.fit(x[train], labels[train])
        seconds = time.process_time() - begins
        scores = np.log(np.maximum(model.predict_proba(x[test]), 1e-30))
        way = "gradient boosting" + (", balanced" if weight else "")
        yield way, measures(labels[test], scores, seconds)


def measures(labels, scores, seconds):
    """Errors by class, their mean, and the mean average precision, in percent."""
    from sklearn.metrics import average_precision_score

    guesses, classes = scores.argmax(axis=1), np.arange(scores.shape[1])
    errors = [100 * float(np.mean(guesses[labels == label] != label)) for label in classes]
    rivals = [np.delete(scores, label, axis=1).max(axis=1) for label in classes]
    precisions = [
        average_precision_score(labels == label, scores[:, label] - rivals[label])
        for label in classes
    ]
    return {
        "per_class_error": [round(error, 3) for error in errors],
        "mean_error": round(float(np.mean(errors)), 3),
        "average_precision": round(100 * float(np.mean(precisions)), 3),
        "cpu_seconds": round(seconds, 1),
    }


def memory(rows: int) -> float:
    """Megabytes that loading a table of so many rows leaves in the memory, beside its file's."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with open(path, "w") as file:
            file.write(",".join(f"x{i}" for i in range(8)) + ",city,label\n")
            for _ in range(rows // 10_000):
                cells = np.round(rng.normal(size=(10_000, 8)), 5).astype(str)
                ends = zip(rng.integers(0, 500, 10_000), rng.random(10_000) < 0.02, strict=True)
                for row, (city, label) in zip(cells, ends, strict=True):
                    file.write(f"{','.join(row)},city{city},{int(label)}\n")
        return float(program(MEMORY, str(path), KERAS_BACKEND="jax").splitlines()[-1])


def program(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    main()
