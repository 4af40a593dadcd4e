"""What each ingredient of a stronger recipe is worth on long-tailed CIFAR, on validation images.

    python benchmarks/ablation.py --data_dir DIR --folder runs/ablation
    python benchmarks/ablation.py --data_dir DIR --folder runs/ablation --rows "sam_0.5;sam_0.8"

Each row trains LDAM-DRW once, or the method that it names, by the published recipe with the changes
that `ROWS` lists, shortened to 60 epochs, and is judged by its last epoch on training images: those
that the long tail leaves out and, so that the most frequent class has some too, a twentieth of
those that it keeps. No test image is used. `--recipe fast` makes the changes to that recipe, whose
cosine and weight decay are those of most rows already. The same command resumes; several processes
with other `--rows` may share a folder, one a core. After each row the program adds every finished
run of the folder on this dataset to `results/tuning/DATASET_ablation.json`, and the rows that
failed with their reason; what is there is not trained again. With `--steps_per_epoch`, a trial, it
writes FOLDER/ablation.json instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

BASE = {"decay": "cosine", "weight_decay": 5e-4}
RARE = {"mix": "cutmix", "mix_power": 2.0, "mix_probability": 0.5, "mix_majority": True}
POLICY = {"augment": "autoaugment", "cutout": 16}
STRONG = {**BASE, **POLICY, "max_margin": 0.1}
ROWS: dict[str, dict] = {
    "unchanged": {},
    "cosine": {"decay": "cosine"},
    "cosine, decay 5e-4": BASE,
    "mixup": {**BASE, "mix": "mixup", "mix_power": 0.0},
    "mixup, balanced partners": {**BASE, "mix": "mixup", "mix_power": 1.0},
    "cutmix": {**BASE, "mix": "cutmix", "mix_power": 0.0, "mix_probability": 0.5},
    "cutmix, rare partners": {**BASE, **RARE},
    "autoaugment": {**BASE, "augment": "autoaugment"},
    "cutout": {**BASE, "cutout": 16},
    "autoaugment, cutout": {**BASE, **POLICY},
    "autoaugment, cutout 8": {**BASE, **POLICY, "cutout": 8},
    "autoaugment, cutout, decay 2e-4": {**BASE, **POLICY, "weight_decay": 2e-4},
    "autoaugment, cutout, margin 0.1": STRONG,
    "autoaugment, margin 0.1": {**STRONG, "cutout": 0},
    "autoaugment, cutout 8, margin 0.1": {**STRONG, "cutout": 8},
    "autoaugment, cutout 8, margin 0.05": {**STRONG, "cutout": 8, "max_margin": 0.05},
    "autoaugment, cutout 8, margin 0.1, batch 64": {**STRONG, "cutout": 8, "batch_size": 64},
    "autoaugment, cutout 8, margin 0.1, sampling": {**STRONG, "cutout": 8, "method": "ldam_drs"},
    "autoaugment, cutout, margin 0.1, batch 64": {**STRONG, "batch_size": 64},
    "autoaugment, cutout, margin 0.1, logit adjustment": {**STRONG, "method": "ldam_la"},
    "autoaugment, cutout, margin 0.1, mixup": {**STRONG, "mix": "mixup", "mix_power": 0.0},
    "autoaugment, cutout, margin 0.1, sam_0.5": {**STRONG, "sharpness": 0.5},
    "autoaugment, cutmix, rare partners": {**BASE, **RARE, "augment": "autoaugment"},
    "average 0.999": {**BASE, "average": 0.999},
    "sam_0.2": {**BASE, "sharpness": 0.2},
    "sam_0.5": {**BASE, "sharpness": 0.5},
    "sam_0.8": {**BASE, "sharpness": 0.8},
    "cutmix, rare partners, sam_0.5": {**BASE, **RARE, "sharpness": 0.5},
    "autoaugment, cutout, sam_0.5": {**BASE, **POLICY, "sharpness": 0.5},
    "mixup, sam_0.5": {**BASE, "mix": "mixup", "mix_power": 0.0, "sharpness": 0.5},
}
"""Changes of a recipe, one ingredient at a time, then some that may add up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--recipe", default="", help="the recipe that is changed")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--folder", default="runs/ablation")
    parser.add_argument("--rows", default=";".join(ROWS), help="names of ROWS, between semicolons")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--steps_per_epoch", type=int, default=0, help="for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="float32")
    given = parser.parse_args()
    rows = given.rows.split(";")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"unknown row {unknown[0]!r}; known: {'; '.join(ROWS)}")

    from keras_ldam import files
    from keras_ldam.experiments import training

    folder = Path(given.folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = HERE.parent / "results" / "tuning" / f"{given.dataset}_ablation.json"
    kept = folder / "ablation.json" if given.steps_per_epoch else kept
    done = [subject(run) for run in read(kept)]
    for row in rows:
        if (row, *(getattr(given, name) for name in SAME)) in done:
            continue
        told = "-".join(str(each) for each in (row, *(getattr(given, name) for name in SAME)))
        name = "".join(c if c.isalnum() or c in ".-" else "_" for c in told)
        failure = folder / f"{name}.failed.json"
        try:
            training.train(config(row, given), folder / name)
            failure.unlink(missing_ok=True)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            print(f"{row}: {error}", file=sys.stderr, flush=True)
            settings = {name: getattr(given, name) for name in SAME}
            files.write_json(failure, {"row": row, **settings, "reason": str(error)})
        files.write_json(kept, summary(folder, kept, given))
    print(json.dumps(read(kept), indent=1))


SAME = ("dataset", "recipe", "seed", "epochs", "steps_per_epoch", "precision")
"""What tells two runs of a row apart."""

OF_FILE = ("dataset", "steps_per_epoch")
"""What the runs of a results file have in common."""


def read(kept: Path) -> list[dict]:
    """The runs that a results file holds; none if there is no such file."""
    return json.loads(kept.read_text())["runs"] if kept.exists() else []


def subject(run: dict) -> tuple:
    """What tells a run from all others."""
    return (run["row"], *(run[name] for name in SAME))


def config(row: str, given: argparse.Namespace):
    """The config of a row: the published recipe, its changes, and what is the same for all."""
    from keras_ldam.experiments import recipes

    same = {
        "data_dir": given.data_dir,
        "seed": given.seed,
        "epochs": given.epochs,
        "steps_per_epoch": given.steps_per_epoch,
        "evaluate_every": given.epochs,
        "validation_fraction": 0.05,
        "left_out": True,
        "precision": given.precision,
    }
    recipe = recipes.load_recipe(given.dataset, "ldam_drw", given.recipe)
    return dataclasses.replace(recipe, **same, **ROWS[row]).resolve()


def summary(folder: Path, kept: Path, given: argparse.Namespace) -> dict:
    """What the finished runs of a folder found, and those kept before, best first; what failed."""
    from keras_ldam import hardware
    from keras_ldam.experiments import recipes

    runs, others = [], []
    for file in sorted(folder.glob("*/results.json")):
        results = json.loads(file.read_text())
        of_run = results["config"]
        if any(of_run[name] != getattr(given, name) for name in OF_FILE):
            continue
        recipe = recipes.load_recipe(given.dataset, "ldam_drw", of_run["recipe"])
        changed = changes(recipe, {key: of_run[key] for row in ROWS.values() for key in row})
        runs.append(
            {
                "row": next((r for r in ROWS if changed == changes(recipe, ROWS[r])), ""),
                "changes": changed,
                "mean_error": results["last"]["mean_error"],
                "per_class_error": results["last"]["per_class_error"],
                **{name: of_run[name] for name in SAME},
                "seconds": results["seconds"],
                "versions": results["versions"],
                "hardware": results["hardware"],
            }
        )
    found = [subject(run) for run in runs]
    runs += [run for run in read(kept) if subject(run) not in found]
    for file in sorted(folder.glob("*.failed.json")):
        failed = json.loads(file.read_text())
        if all(failed.get(name) == getattr(given, name) for name in OF_FILE):
            others.append(failed)
    return {
        "command": shlex.join(["python", "benchmarks/ablation.py", *sys.argv[1:]]),
        "judged_by": "last epoch, held-out training images and those the long tail leaves out",
        "hardware": hardware.describe(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "runs": sorted(runs, key=lambda run: run["mean_error"]),
        "failed": others,
    }


def changes(recipe, options: dict) -> dict:
    """The options that differ from those of the recipe."""
    return {key: value for key, value in options.items() if value != getattr(recipe, key)}


if __name__ == "__main__":
    main()
