"""Chooses the recipe of imbalanced IMDB on folds of its training reviews, then trains its table.

    python benchmarks/imdb.py            # goes on where it was cut off, until all is trained
    python benchmarks/imdb.py --show     # what there is so far; trains nothing

The same list for every method, so the same effort. Each fifth of the kept training reviews is a
fold, which is held out and evaluated in place of the test split; two of the five folds are used:

1. `TEXTS`, what is read and how it is perturbed, for three methods with five epochs. The one with
   the smallest mean error, over methods and folds, is that of all rows.
2. `SCHEDULES`, training lengths, for every row, and an earlier drop for those with a deferred rule,
   which begins there. Each row takes its best. Margins are those of the paper.
3. `MARGINS`, the paper's, those that the library has by default, and smaller ones, for LDAM-DRW.
   The best are those of all rows with margins.
4. The table: five seeds, all kept training reviews, and the test split, which each run reads once,
   after its last epoch.
5. ERM and LDAM-DRW on `bilstm_ngrams`, as long as in the table: the folds, which chose how it reads
   n-grams, then three seeds and the test split.

Only the mean error of the last epoch decides. The area under the ROC curve and the error at the
best threshold are kept beside it: they tell whether the boundary or the ranking is at fault.

Every run is one of `bin/train`, in a folder of its own below `--runs`. Several processes may share
that folder: a run belongs to the first that begins it. `results/tuning/imdb_folds.json` keeps
every run on folds, `results/imdb.json` the table's, `results/imdb_ngrams.json` the pair's, and
`results/imdb_paper_margins.json` those of a table with the paper's margins and scale, which was
trained before smaller ones were tried; what is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TEXTS = {
    "first recipe": {"projection": 0, "max_tokens": 200, "adversarial": 0.0},
    "projection": {"projection": 64, "max_tokens": 200, "adversarial": 0.0},
    "projection, 400 words": {"projection": 64, "max_tokens": 400, "adversarial": 0.0},
    "projection, 400 words, 0.5": {"projection": 64, "max_tokens": 400, "adversarial": 0.5},
    "projection, 400 words, 1": {"projection": 64, "max_tokens": 400, "adversarial": 1.0},
}
"""What is read, and the length of the perturbation of its word vectors."""

PAPER = "whole, 0.5, scale 30"
MARGINS = {
    PAPER: {"gradual": False, "scale": 30.0, "max_margin": 0.5},
    "gradual, 0.5, scale 15": {"gradual": True, "scale": 15.0, "max_margin": 0.5},
    "whole, 0.5, scale 10": {"gradual": False, "scale": 10.0, "max_margin": 0.5},
    "whole, 0.1, scale 30": {"gradual": False, "scale": 30.0, "max_margin": 0.1},
    "whole, 0.1, scale 10": {"gradual": False, "scale": 10.0, "max_margin": 0.1},
}
"""Whether margins grow with what is learned, the largest one, and the inverse temperature."""

SCHEDULES = {
    "2 epochs": {"epochs": 2, "drop_at": 0.5},
    "5 epochs": {"epochs": 5, "drop_at": 0.6},
    "5 epochs, earlier drop": {"epochs": 5, "drop_at": 0.4},
}
"""Training lengths, and when the learning rate drops; a deferred rule begins there."""

LONGEST = "5 epochs"
DEFERRED = {"5 epochs, earlier drop": ("ldam_drw", "ce_drw", "ldam_drs")}
"""Schedules that are tried for some rows alone."""

TRIED = ("ldam_drw", "ce_drw", "rs")
ROWS = ("erm", "rs", "rw", "ldam_drw", "ldam", "ce_drw", "ldam_rw", "ldam_rs", "ldam_drs")
NGRAMS = {"network": "bilstm_ngrams"}
NGRAM_ROWS = ("erm", "ldam_drw")
SEEDS, NGRAM_SEEDS = range(5), range(3)
KEPT = {
    "validation": ROOT / "results" / "tuning" / "imdb_folds.json",
    "test": ROOT / "results" / "imdb.json",
    "margins of the paper": ROOT / "results" / "imdb_paper_margins.json",
    "n-grams": ROOT / "results" / "imdb_ngrams.json",
}
UNSAID = {
    "network": "",
    "gradual": False,
    "scale": 30.0,
    "max_margin": 0.5,
    "seed": 0,
    "validation_fraction": 0.0,
}
"""Of the settings that tell runs apart, those that need not be given."""


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
            schedules = work.schedules(text, folds)
        if given.stage > 2:
            margins = work.margins(text, schedules["ldam_drw"], folds)
        if given.stage > 3:
            work.table(text, margins, schedules)
        if given.stage > 4:
            work.ngrams(text, margins, schedules, folds)
    except MissingError as missing:
        print(f"imdb: {missing}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        if not given.show:
            work.write()
        work.show()


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

        def wanted(method: str, text: dict, fold: int) -> dict:
            return {**row(method, SCHEDULES[LONGEST], text, MARGINS[PAPER]), **held(fold)}

        self.train(
            wanted(method, text, fold)
            for fold in folds
            for text in reversed(TEXTS.values())
            for method in TRIED
        )
        means = {
            name: statistics.mean(
                self.mean_error(wanted(method, text, fold)) for method in TRIED for fold in folds
            )
            for name, text in TEXTS.items()
        }
        chosen = min(means, key=means.get)
        print(f"texts: {chosen}; mean errors {means}", flush=True)
        return TEXTS[chosen]

    def schedules(self, text: dict, folds: range) -> dict[str, dict]:
        """Returns the schedule of each row with its smallest mean error."""
        tried = [
            (method, name)
            for name in reversed(SCHEDULES)
            for method in ROWS
            if method in DEFERRED.get(name, ROWS)
        ]

        def wanted(method: str, name: str, fold: int) -> dict:
            return {**row(method, SCHEDULES[name], text, MARGINS[PAPER]), **held(fold)}

        self.train(wanted(method, name, fold) for fold in folds for method, name in tried)
        chosen = {}
        for method in ROWS:
            means = {
                name: statistics.mean(self.mean_error(wanted(method, name, fold)) for fold in folds)
                for each, name in tried
                if each == method
            }
            chosen[method] = SCHEDULES[min(means, key=means.get)]
            print(f"{method}: {means}", flush=True)
        return chosen

    def margins(self, text: dict, schedule: dict, folds: range) -> dict:
        """Returns the settings of the margins with the smallest mean error of LDAM-DRW."""
        wanted = {
            name: [{**row("ldam_drw", schedule, text, margins), **held(fold)} for fold in folds]
            for name, margins in MARGINS.items()
        }
        self.train(settings for each in wanted.values() for settings in each)
        means = {name: statistics.mean(map(self.mean_error, each)) for name, each in wanted.items()}
        chosen = min(means, key=means.get)
        print(f"margins: {chosen}; mean errors {means}", flush=True)
        return MARGINS[chosen]

    def table(self, text: dict, margins: dict, schedules: dict[str, dict]) -> None:
        """Trains the table, seed by seed."""

        for seed in SEEDS:
            self.train(final(method, schedules[method], text, margins, seed) for method in ROWS)

    def ngrams(self, text: dict, margins: dict, schedules: dict[str, dict], folds: range) -> None:
        """Trains the pair with n-grams, on folds and then seed by seed."""
        text = {**text, **NGRAMS}
        self.train(
            {**row(method, schedules[method], text, margins), **held(fold)}
            for fold in folds
            for method in NGRAM_ROWS
        )
        for seed in NGRAM_SEEDS:
            self.train(
                final(method, schedules[method], text, margins, seed) for method in NGRAM_ROWS
            )

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
        return self.complete().get(identity({**UNSAID, **settings}))

    def complete(self) -> dict[tuple, dict]:
        """The results of all complete runs, those in `results` included."""
        runs = [run for path in KEPT.values() if path.exists() for run in read(path)["runs"]]
        runs += map(read, self.folder.glob("*/results.json"))
        return {identity(run["config"]): run for run in runs}

    def mean_error(self, settings: dict) -> float:
        """The mean error of a run's last epoch."""
        results = self.results(settings)
        if results is None:
            raise MissingError(f"{self.place(settings).name} is not complete.")
        return results["last"]["mean_error"]

    def parts(self) -> dict[str, list[dict]]:
        """All complete runs, by the file in `KEPT` that they belong to, in order."""
        found: dict[str, list[dict]] = {part: [] for part in KEPT}
        for run in self.complete().values():
            found[part_of(run)].append(run)
        ordered = ((part, sorted(runs, key=_by_identity)) for part, runs in found.items())
        return {part: runs for part, runs in ordered if runs}

    def write(self) -> None:
        """Keeps all complete runs."""
        kept = ("method", "seed", "split", "last", "best", "counts", "parameters", "seconds")
        kept += ("replicas", "config", "versions", "hardware", "margins")
        for part, runs in self.parts().items():
            content = {
                "dataset": "imdb",
                "class_names": ["negative", "positive"],
                "command": self.command,
                "runs": [{name: run[name] for name in kept if name in run} for run in runs],
            }
            whole = KEPT[part].with_suffix(f".{os.getpid()}")
            whole.write_text(json.dumps(content, indent=1) + "\n")
            whole.replace(KEPT[part])

    def show(self) -> None:
        """Prints a line for each setting."""
        for part, runs in self.parts().items():
            show(part, runs)


def part_of(run: dict) -> str:
    """Which of the files in `KEPT` a run belongs to."""
    config = run["config"]
    if run["split"] != "test":
        return run["split"]
    if config["network"]:
        return "n-grams"
    paper = {**UNSAID, **MARGINS[PAPER]}
    of_paper = all(config[name] == paper[name] for name in ("scale", "max_margin"))
    of_paper = of_paper and config.get("gradual", False) == paper["gradual"]
    return "margins of the paper" if run["method"].startswith("ldam") and of_paper else "test"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def held(fold: int) -> dict:
    """The settings that hold out a fold."""
    return {"validation_fraction": 0.2, "validation_fold": fold}


def row(method: str, schedule: dict, text: dict, margins: dict) -> dict:
    """The settings of a row."""
    own = margins if method.startswith("ldam") else {}
    return {"method": method, **schedule, **text, **own}


def final(method: str, schedule: dict, text: dict, margins: dict, seed: int) -> dict:
    """The settings of a run of the table, evaluated once."""
    once = {"evaluate_every": schedule["epochs"]}
    return {**row(method, schedule, text, margins), **once, "seed": seed}


def _by_identity(run: dict) -> tuple:
    return identity(run["config"])


def identity(config: dict) -> tuple:
    """What tells a run from all others."""
    held_out = config["validation_fold"] if config["validation_fraction"] else -1
    return (*subject(config), config["seed"], held_out)


def subject(config: dict) -> tuple:
    """What a run is about, apart from its seed and fold."""
    drop_at = config["drop_at"]
    return (
        config["network"] or "bilstm",
        config["projection"],
        config["max_tokens"],
        config["adversarial"],
        config.get("gradual", False),
        config["scale"],
        config["max_margin"],
        config["method"],
        config["epochs"],
        *(drop_at if isinstance(drop_at, (list, tuple)) else [drop_at]),
    )


def show(part: str, runs: list[dict]) -> None:
    """Prints the mean of each setting, and its standard error."""
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(json.dumps(subject(run["config"])), []).append(run["last"])
    print(
        f"{part}: network, projection, words, epsilon, gradual, scale, largest margin, method, "
        "epochs, drop: mean error, best threshold, AUC; mean ± standard error (n)"
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
