"""What the ingredients of a stronger recipe add to the CPU time of a step of ResNet-32.

    TF_NUM_INTRAOP_THREADS=1 python benchmarks/ingredients.py

Writes `benchmarks/ingredients.json`. Steps train ResNet-32 on batches of 128 random images of 32x32
pixels, by the published recipe, on one thread a operation; the variants take turns. Batches with
augmentation and mixtures are made in NumPy beside the steps, and timed alone. All of it is CPU time
of the process, which other programs on the machine disturb less than the clock: medians, with the
smallest and the largest. The estimate of the statistics of averaged weights comes once for each
evaluation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
STEPS = {"published": {}, "sharpness": {"sharpness": 0.5}, "average": {"average": 0.999}}
RARE = {"mix_power": 2.0, "mix_probability": 0.5, "mix_majority": True}
BATCHES: dict[str, dict] = {
    "published": {},
    "autoaugment": {"augment": "autoaugment"},
    "cutout": {"cutout": 16},
    "autoaugment, cutout": {"augment": "autoaugment", "cutout": 16},
    "mixup": {"mix": "mixup", "mix_power": 0.0},
    "cutmix, rare partners": {"mix": "cutmix", **RARE},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=str(HERE / "ingredients.json"))
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()

    from keras_ldam import hardware
    from keras_ldam.experiments import feeding, recipes, training
    from keras_ldam.wrappers import averaging

    data = images()
    recipe = recipes.load_recipe("cifar10", "ldam_drw")

    def config(changes):
        return dataclasses.replace(recipe, **changes).resolve()

    plain = feeding.training_batches(config({}), data)
    x, y = plain[0]
    steps, models = {}, {}
    for name, changes in STEPS.items():
        models[name] = training.compiled_model(config(changes), data)
        steps[name] = lambda model=models[name]: model.train_on_batch(x, y)
    made = {
        name: feeding.training_batches(config(changes), data) for name, changes in BATCHES.items()
    }
    number = iter(range(10**6))
    batches = {
        name: lambda each=each: each[next(number) % len(each)] for name, each in made.items()
    }
    estimate = averaging.BatchNormEstimate(models["average"])
    results = {
        "command": "TF_NUM_INTRAOP_THREADS=1 python benchmarks/ingredients.py",
        "hardware": hardware.describe(),
        "versions": hardware.versions(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "batch": len(x),
        "step_ms": measured(steps, given.rounds),
        "batch_ms": measured(batches, 4 * given.rounds),
        "estimate_ms_a_batch": measured({"average": lambda: estimate([x])}, given.rounds),
    }
    Path(given.output).write_text(json.dumps(results, indent=1) + "\n")


def images():
    """Random images with the class counts of CIFAR-10, ratio 100."""
    from keras_ldam import long_tailed_counts
    from keras_ldam.experiments.datasets.data import Data, Split

    counts = long_tailed_counts(10, 5000, 100)
    pixels = np.random.default_rng(0).integers(0, 256, (counts.sum(), 32, 32, 3), dtype="uint8")
    train = Split(pixels, np.repeat(np.arange(10), counts))
    return Data("cifar10", tuple("abcdefghij"), train, train.take(np.arange(10)))


def measured(works: dict[str, Callable], rounds: int) -> dict[str, dict]:
    """CPU milliseconds of each work, in turns, after a round that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for count in range(rounds + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            if count:
                found[name].append(1e3 * (time.process_time() - start))
    return {
        name: {
            "median": round(statistics.median(times), 2),
            "smallest": round(min(times), 2),
            "largest": round(max(times), 2),
        }
        for name, times in found.items()
    }


if __name__ == "__main__":
    main()
