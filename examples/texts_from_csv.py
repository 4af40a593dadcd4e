"""
Title: Texts from a CSV file
Description: A file of texts with rare labels, from the file to class errors by two methods.
Accelerator: None
"""

"""
## Introduction

A CSV file has a column of texts and a column of labels, and some labels are rare. `--dataset text`
takes such a file as it is: it finds the columns, measures the counts, and trains on the texts. This
example trains two methods and looks at the rare classes.

The texts are real and nothing is downloaded: they are the docstrings of SciPy's functions, and the
label is the subpackage of the function. This is a naturally long-tailed dataset: 342 texts are from
`special`, 14 from `io`.
"""

import contextlib
import csv
import importlib
import inspect
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np

from keras_ldam import hardware
from keras_ldam.experiments import training
from keras_ldam.experiments.recipes import load_recipe

SMOKE = bool(os.environ.get("SMOKE"))  # Set by the tests: one short run.
SEEDS = 1 if SMOKE else 3
METHODS = {"without": "erm", "with LDAM-DRW": "ldam_drw"}
PACKAGES = (
    "special stats signal linalg ndimage optimize interpolate sparse fft integrate spatial io"
)

"""
## The file

The first sentences of each function, without the names of packages, which would give the label
away. Each seed divides every class into two halves, and says so in the column `split`.
"""


def described(package):
    """What the functions of a sub-package say of themselves."""
    module = importlib.import_module(f"scipy.{package}")
    for name in sorted(module.__all__):
        paragraphs = (inspect.getdoc(getattr(module, name)) or "").split("\n\n")
        told = [text for text in paragraphs if f"{name}(" not in text][:2]
        if told and not inspect.ismodule(getattr(module, name)):
            yield " ".join(re.sub(r"(scipy|numpy|np)(\.\w+)+", " ", " ".join(told)).split())


def write_file(path, texts, seed):
    generator = np.random.default_rng(seed)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for label, found in texts.items():
            for place, index in enumerate(generator.permutation(len(found))):
                part = "train" if 2 * place < len(found) else "test"
                writer.writerow([found[index], label, part])


texts = {package: list(dict.fromkeys(described(package))) for package in PACKAGES.split()}
texts = {package: [text for text in found if text] for package, found in texts.items()}
print("texts:", ", ".join(f"{package} {len(found)}" for package, found in texts.items()), "\n")

"""
## Training

The same as `bin/train --dataset text --data_dir texts.csv --method ldam_drw --epochs 30 …`: the
recipe is `configs/text.py`, and the texts are few and short, so the batches and the network are
smaller.
"""


def errors(method, path, seed):
    config = replace(
        load_recipe("text", method),
        data_dir=str(path),
        seed=seed,
        epochs=2 if SMOKE else 30,
        steps_per_epoch=2 if SMOKE else 0,
        batch_size=16,
        max_tokens=8 if SMOKE else 40,
        units=4 if SMOKE else 32,
        evaluate_every=100,
    ).resolve()
    with contextlib.redirect_stdout(sys.stderr):  # The table alone is printed.
        results = training.train(config, path.parent / f"{method}-{seed}", progress=False)
    by_class = np.array(results["last"]["per_class_error"])
    return by_class.mean(), by_class[np.array(results["counts"]) < 30].mean()


"""
## Results

The mean error over all classes, and over those with fewer than 30 training texts.
"""

print("| | error, all classes | error, rare classes |")
print("|---|---|---|")
with tempfile.TemporaryDirectory() as folder:
    for way, method in list(METHODS.items())[-1:] if SMOKE else METHODS.items():
        found = []
        for seed in range(SEEDS):
            path = Path(folder) / f"texts{seed}.csv"
            write_file(path, texts, seed)
            found.append(errors(method, path, seed))
        cells = [
            f"{mean:.1f} ± {deviation:.1f}"
            for mean, deviation in zip(
                np.mean(found, axis=0), np.std(found, axis=0, ddof=SEEDS > 1), strict=True
            )
        ]
        print(f"| {way} | {' | '.join(cells)} |")
print(f"\nPercent of the test halves, n = {SEEDS} seeds; {hardware.made_with()}.")

"""
## What came of it

In these texts most labels are given away by a word or two, and the rare classes have some twenty
test texts: the two methods differ by less than the seeds do.

## From here

`bin/export --run_dir RUN --output exports/where` writes a model that takes raw texts, and
`bin/predict --model exports/where 'Fit a spline to data.'` asks it.
"""
