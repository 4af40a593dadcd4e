"""The run folder: what its files are called, how they are written and read.

    config.json     the resolved config, written before the first step
    history.csv     one row for each epoch
    results.json    the outcome, written when the run is complete
    data.json       class names, counts, and what else the model's input needs
    model.keras     the trained model
    diagnosis.json  margins, confusions and reliability, once the run has been evaluated
    tensorboard/    logs for TensorBoard, where --tensorboard asked for them
    checkpoints/    the state after the last epoch, or one a few seconds before it, to resume from

Every file is written aside and moved in place, so that it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from keras_ldam.experiments.config import Config
from keras_ldam.files import write_json, write_whole

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None

PLACE_FIELDS = (
    "data_dir",
    "strategy",
    "replicas",
    "worker_timeout",
    "jit",
    "steps_per_execution",
)
"""Fields that say where, and on which devices, and not what is learned; they may differ when
resuming."""


class RunFolder:
    """Reads and writes one run.

    Args:
        path: The folder; made with `create`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.history_file = self.path / "history.csv"
        self.results_file = self.path / "results.json"
        self.data_file = self.path / "data.json"
        self.model_file = self.path / "model.keras"
        self.diagnosis_file = self.path / "diagnosis.json"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"

    def create(self, config: Config) -> None:
        """Makes the folder for a config, or checks that it belongs to it; raises as `check`.

        A folder that is there is told where the data are now, and on which devices it goes on.
        """
        self.check(config)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config_file, config.to_json())
        self.checkpoints.mkdir(exist_ok=True)

    def check_data(self, data: dict) -> None:
        """Checks that the run in the folder, if there is one, was begun with the same data.

        Args:
            data: What `data.json` would hold.

        Raises:
            ValueError: if classes, counts or whatever else it holds are others.
        """
        theirs = self.read_data() if self.data_file.exists() else {}
        for name, value in data.items():
            if name in theirs and theirs[name] != value:
                raise ValueError(
                    f"{self.path} belongs to a run on other data: its {name} are not those of the "
                    "data that are here now; choose another --run_dir, or the same data to resume."
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in the folder, which is made.

        Raises:
            ValueError: if another process does so.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process is training in {self.path}; wait for it, or choose another "
                    "--run_dir."
                ) from None
            except OSError:  # Some network file systems know no locks.
                pass
            yield
        finally:
            os.close(handle)

    def check(self, config: Config) -> None:
        """Checks that a run of the config can be made, or go on, here; writes nothing.

        Raises:
            ValueError: if the folder belongs to another config (the first field that differs is
                named), or holds something else than a run.
        """
        if self.config_file.exists():
            theirs, ours = self.read_config().to_json(), config.to_json()
            for name in ours:
                if theirs[name] != ours[name] and name not in PLACE_FIELDS:
                    raise ValueError(
                        f"{self.path} belongs to a run with {name}={theirs[name]!r}, not "
                        f"{ours[name]!r}; choose another --run_dir, or the same config to resume."
                    )
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(
                f"{self.path} exists and is not a run folder (it has no config.json); choose "
                "another --run_dir."
            )

    def read_config(self) -> Config:
        """Returns the run's config; raises `ValueError` if the folder is not a run."""
        values = self.read_json(self.config_file)
        try:
            return Config.from_json(values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.config_file} is not a config of a run: {error}") from None

    def read_results(self) -> dict:
        """Returns the results; raises `ValueError` if the run is not complete."""
        return self.read_json(self.results_file)

    def read_data(self) -> dict:
        """Returns what `data.json` holds."""
        return self.read_json(self.data_file)

    def read_diagnosis(self) -> dict:
        """Returns what `diagnosis.json` holds; raises `ValueError` if it is not there."""
        return self.read_json(self.diagnosis_file)

    @property
    def complete(self) -> bool:
        """Whether the run has ended and its results and model are there."""
        return self.results_file.exists() and self.model_file.exists()

    def read_json(self, file: Path) -> dict:
        """Returns what a JSON file of the folder holds.

        Raises:
            ValueError: if the file is not there, or is damaged.
        """
        if not file.exists():
            hint = "no such folder" if not self.path.exists() else f"it has no {file.name}"
            if file == self.results_file and self.config_file.exists():
                hint = "the run has not ended; the same bin/train command resumes it"
            raise ValueError(f"{self.path} holds no finished run to read: {hint}.")
        try:
            return json.loads(file.read_text())
        except ValueError:
            raise ValueError(f"{file} is not valid JSON; it has been damaged.") from None

    def write_history(self, rows: list[dict]) -> None:
        """Writes the history anew, one row for each epoch; a column may be missing in a row."""
        names = list(dict.fromkeys(name for row in rows for name in row))

        def write(path):
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)

        write_whole(self.history_file, write)

    def read_history(self) -> list[dict]:
        """Returns the rows of the history, numbers as floats and epochs as whole numbers."""
        if not self.history_file.exists():
            return []
        with open(self.history_file, newline="") as file:
            return [
                {
                    name: int(float(value)) if name == "epoch" else float(value)
                    for name, value in row.items()
                    if value
                }
                for row in csv.DictReader(file)
            ]
