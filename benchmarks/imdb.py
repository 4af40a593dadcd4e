"""Chooses the recipe of imbalanced IMDB on folds of its training reviews, then trains its table.

    python benchmarks/imdb.py            # goes on where it was cut off, until all is trained
    python benchmarks/imdb.py --show     # what there is so far; trains nothing

The same list for every method, so the same effort. Each fifth of the kept training reviews is a
fold, which is held out and evaluated in place of the test split; two of the five folds are used:

1. `TEXTS`, what is read and how it is perturbed, for three methods with five epochs. The one with
   the smallest mean error, over methods and folds, is that of all rows.
2. `MARGINS`, those of the paper and those that the library has by default, for LDAM-DRW with three
   and with five epochs. The better ones are those of all rows with margins.
3. `SCHEDULES`, training lengths, for every row. Each row takes its best.
4. The table: five seeds, all kept training reviews, and the test split, which each run reads once,
   after its last epoch.
5. The same lengths, and then the table, for ERM and LDAM-DRW on `bilstm_ngrams`.

Only the mean error of the last epoch decides. The area under the ROC curve and the error at the
best threshold are kept beside it: they tell whether the boundary or the ranking is at fault.

Every run is one of `bin/train`, in a folder of its own below `--runs`. Several processes may share
that folder: a run belongs to the first that begins it. `results/tuning/imdb_folds.json` keeps
every run on folds, and `results/imdb_projection.json` the table's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TEXTS = {
    "landed": {},
    "projection": {"projection": 64},
    "projection, 400 words": {"projection": 64, "max_tokens": 400},
    "projection, 400 words, 0.5": {"projection": 64, "max_tokens": 400, "adversarial": 0.5},
    "projection, 400 words, 1": {"projection": 64, "max_tokens": 400, "adversarial": 1.0},
}
"""What is read, and the length of the perturbation of its word vectors."""

MARGINS = {
    "whole, scale 30": {},
    "gradual, scale 15": {"gradual": True, "scale": 15.0},
}
"""Whether margins grow with what is learned, and the inverse temperature."""

SCHEDULES = {
    "2 epochs": {"epochs": 2, "drop_at": 0.5},
    "3 epochs": {"epochs": 3, "drop_at": 1 / 3},
    "5 epochs": {"epochs": 5, "drop_at": 0.6},
}
LONGEST = "5 epochs"
LONG = ("3 epochs", LONGEST)
TRIED = ("ldam_drw", "ce_drw", "rs")
ROWS = ("erm", "rs", "rw", "ldam_drw", "ldam", "ce_drw", "ldam_rw", "ldam_rs", "ldam_drs")
NGRAMS = {"network": "bilstm_ngrams"}
NGRAM_ROWS = ("erm", "ldam_drw")
SEEDS = range(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default=str(ROOT / "runs" / "imdb_folds"))
    parser.add_argument("--folds", type=int, default=2, help="how many of the five folds")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--stage", type=int, default=5, help="the last stage to do")
    given = parser.parse_args()
    command = f"python benchmarks/imdb.py --folds {given.folds}"
    work = Work(Path(given.runs), command, trains=not given.show)
    folds = range(given.folds)
    try:
        text = work.texts(folds)
        if given.stage > 1:
            margins = work.margins(text, folds)
        if given.stage > 2:
            work.schedules(text, margins, folds, ROWS, given.stage > 3)
        if given.stage > 4:
            work.schedules({**text, **NGRAMS}, margins, folds, NGRAM_ROWS, True)
    except MissingError as missing:
        print(f"imdb: {missing}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        work.write()


class MissingError(Exception):
    """Runs on which a choice depends are not complete."""


class Work:
    """Runs, by the settings that tell them apart.

    Args:
        folder: Where their folders are.
        command: What the results are made by.
        trains: Whether to train what is missing.
    """

    def __init__(self, folder: Path, command: str, *, trains: bool):
        self.folder, self.command, self.trains = folder, command, trains

    def texts(self, folds: range) -> dict:
        """Returns the text settings with the smallest mean error."""
        wanted = [
            {"method": method, **SCHEDULES[LONGEST], **text, **held(fold)}
            for fold in folds
            for text in reversed(TEXTS.values())
            for method in TRIED
        ]
        self.train(wanted)
        means = {
            name: statistics.mean(
                self.mean_error({"method": method, **SCHEDULES[LONGEST], **text, **held(fold)})
                for method in TRIED
                for fold in folds
            )
            for name, text in TEXTS.items()
        }
        chosen = min(means, key=means.get)
        print(f"texts: {chosen}; mean errors {means}", flush=True)
        return TEXTS[chosen]

    def margins(self, text: dict, folds: range) -> dict:
        """Returns the settings of the margins with the smallest mean error of LDAM-DRW."""
        wanted = {
            name: [
                {"method": "ldam_drw", **SCHEDULES[schedule], **text, **margins, **held(fold)}
                for fold in folds
                for schedule in LONG
            ]
            for name, margins in MARGINS.items()
        }
        self.train(settings for each in wanted.values() for settings in each)
        means = {name: statistics.mean(map(self.mean_error, each)) for name, each in wanted.items()}
        chosen = min(means, key=means.get)
        print(f"margins: {chosen}; mean errors {means}", flush=True)
        return MARGINS[chosen]

    def schedules(
        self, text: dict, margins: dict, folds: range, rows: tuple[str, ...], table: bool
    ) -> None:
        """Chooses each row's schedule, and trains the table with it."""

        def wanted(method: str, schedule: dict, fold: int) -> dict:
            own = margins if method.startswith("ldam") else {}
            return {"method": method, **schedule, **text, **own, **held(fold)}

        self.train(
            wanted(method, schedule, fold)
            for fold in folds
            for schedule in SCHEDULES.values()
            for method in rows
        )
        chosen = {}
        for method in rows:
            means = {
                name: statistics.mean(
                    self.mean_error(wanted(method, schedule, fold)) for fold in folds
                )
                for name, schedule in SCHEDULES.items()
            }
            chosen[method] = SCHEDULES[min(means, key=means.get)]
            print(f"{method}: {means}", flush=True)
        if table:
            final = [
                {**unheld(wanted(method, chosen[method], 0)), "seed": seed, **once(chosen[method])}
                for seed in SEEDS
                for method in rows
            ]
            self.train(final)

    def train(self, wanted) -> None:
        """Trains what is missing; a failure is said and kept, and the others go on."""
        for settings in wanted:
            if not self.trains or self.results(settings) is not None:
                continue
            flags = [f"--{name}={value}" for name, value in settings.items()]
            command = [sys.executable, str(ROOT / "bin" / "train"), "--dataset=imdb", *flags]
            place = self.place(settings)
            print(f"{place.name}: {' '.join(command[1:])}", flush=True)
            subprocess.run([*command, "--noprogress", f"--run_dir={place}"], check=False)
            self.write()

    def place(self, settings: dict) -> Path:
        """The folder of a run."""
        parts = [settings["method"], str(settings.get("seed", 0))]
        parts += [
            f"{k}-{v:.3g}" if isinstance(v, float) else f"{k}-{v}"
            for k, v in settings.items()
            if k not in ("method", "seed", "validation_fraction", "evaluate_every")
        ]
        return self.folder / "_".join(parts)

    def results(self, settings: dict) -> dict | None:
        """The results of a run, if it is complete."""
        try:
            return json.loads((self.place(settings) / "results.json").read_text())
        except FileNotFoundError:
            return None

    def mean_error(self, settings: dict) -> float:
        """The mean error of a run's last epoch."""
        results = self.results(settings)
        if results is None:
            raise MissingError(f"{self.place(settings).name} is not complete.")
        return results["last"]["mean_error"]

    def write(self) -> None:
        """Keeps all complete runs, and prints a line for each setting."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("*/results.json")]
        kept = ("method", "seed", "split", "last", "best", "counts", "parameters", "seconds")
        kept += ("config", "versions", "hardware")
        for name, split in (("tuning/imdb_folds", "validation"), ("imdb_projection", "test")):
            runs = [run for run in found if run["split"] == split]
            if not runs:
                continue
            runs.sort(key=lambda run: (key(run), run["seed"], run["config"]["validation_fold"]))
            path = ROOT / "results" / f"{name}.json"
            content = {
                "dataset": "imdb",
                "class_names": runs[0]["class_names"],
                "command": self.command,
                "runs": [{name: run[name] for name in kept} for run in runs],
            }
            path.write_text(json.dumps(content, indent=1) + "\n")
            show(split, runs)


def held(fold: int) -> dict:
    """The settings that hold out a fold."""
    return {"validation_fraction": 0.2, "validation_fold": fold}


def unheld(settings: dict) -> dict:
    """The settings without those that hold out a fold."""
    return {name: value for name, value in settings.items() if name not in held(0)}


def once(schedule: dict) -> dict:
    """The settings that evaluate the last epoch alone."""
    return {"evaluate_every": schedule["epochs"]}


def key(run: dict) -> tuple:
    """What a run is about, apart from its seed and fold."""
    c = run["config"]
    return (
        c["network"] or "bilstm",
        c["projection"],
        c["max_tokens"],
        c["adversarial"],
        c.get("gradual", False),
        c["scale"],
        run["method"],
        c["epochs"],
        c["drop_at"],
    )


def show(split: str, runs: list[dict]) -> None:
    """Prints the mean of each setting, and its standard error."""
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(json.dumps(key(run)), []).append(run["last"])
    print(
        f"{split}: network, projection, words, epsilon, gradual, scale, method, epochs, drop: "
        "mean error, best threshold, AUC; mean ± standard error (n)"
    )
    for name, rows in groups.items():
        told = "  ".join(
            stated([row[m] for row in rows]) for m in ("mean_error", "oracle_error", "auc")
        )
        print(f"  {name}: {told} (n={len(rows)})")


def stated(values: list[float]) -> str:
    """A mean with its standard error."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    main()
