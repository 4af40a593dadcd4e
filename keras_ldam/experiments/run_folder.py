"""The run folder: what its files are called, how they are written and read.

    config.json     the resolved config, written before the first step
    data.json       class names, counts, and what else the model's input needs
    history.csv     one row per epoch
    checkpoints/    the state after the last epoch, or one a few seconds before it, to resume from
    model.keras     the trained model
    results.json    the outcome, written when the run is complete
    diagnosis.json  margins, confusions and reliability, once the run has been evaluated
    tensorboard/    logs for TensorBoard, where they were asked for

Every file is written to a temporary path and moved into place, so that it is there whole or not at
all.
"""

from __future__ import annotations

import contextlib
import csv
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_ldam import files
from keras_ldam.counts import shown
from keras_ldam.experiments import saved_models
from keras_ldam.experiments.config import Config, is_path

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None

PLACE_FIELDS = (
    "data_dir",
    "stage_one",
    "strategy",
    "replicas",
    "worker_timeout",
    "jit",
    "steps_per_execution",
)
"""Fields that say where, and on which devices, and not what is learned; they may differ when a run
is resumed."""


class RunFolder:
    """Reads and writes one run.

    Args:
        path: The folder; created by `locked` and `create`.
        flag: What chooses another one, for errors.
    """

    def __init__(self, path: str | os.PathLike, flag: str = "--run_dir"):
        self.path, self.flag = Path(path), flag
        self.config_file = self.path / "config.json"
        self.history_file = self.path / "history.csv"
        self.results_file = self.path / "results.json"
        self.data_file = self.path / "data.json"
        self.model_file = self.path / "model.keras"
        self.diagnosis_file = self.path / "diagnosis.json"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"

    def check(self, config: Config) -> None:
        """Checks that a run of the config may begin or resume here; writes nothing.

        Raises:
            ValueError: if the folder belongs to another config (the message names the first field
                that differs), or holds something other than a run.
        """
        if self.config_file.exists():
            theirs, ours = self.read_config().to_json(), config.to_json()
            for name in ours:
                if name == "dataset" and is_moved(theirs[name], ours[name]):
                    continue
                if theirs[name] != ours[name] and name not in PLACE_FIELDS:
                    raise ValueError(
                        f"{self.path} belongs to a run with {name}={theirs[name]!r}, not "
                        f"{ours[name]!r}; choose another {self.flag}, or the same config to resume."
                    )
            return
        if self.path.exists() and (
            not self.path.is_dir() or not all(map(files.is_leftover, self.path.iterdir()))
        ):
            raise ValueError(
                f"{self.path} exists and is not a run folder (it has no config.json); choose "
                f"another {self.flag}."
            )

    def check_data(self, data: dict) -> None:
        """Checks that the run in the folder, if any, was begun with the same data.

        Args:
            data: What `data.json` would hold.

        Raises:
            ValueError: if classes, counts or anything else it holds are different.
        """
        theirs = self.read_data() if self.data_file.exists() else {}
        for name, value in data.items():
            if name in theirs and theirs[name] != value:
                name = "files" if name == "fingerprint" else name
                raise ValueError(
                    f"{self.path} belongs to a run on other data: its {name} differ from those of "
                    "the data found now; choose another --run_dir, or the same data to resume."
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in the folder, which is created.

        A folder that is still empty in the end is removed.

        Raises:
            ValueError: if another process is training in it.
        """
        handle = self._lock()
        try:
            for folder in (self.path, self.checkpoints):
                if folder.is_dir():
                    files.remove_leftovers(folder)
            yield
        finally:
            with contextlib.suppress(OSError):
                self.path.rmdir()
            if handle is not None:
                os.close(handle)

    def _lock(self):
        """Creates the folder and locks it; returns the handle that holds the lock."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            if fcntl is None:
                return None
            handle = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise ValueError(
                    f"another process is training in {self.path}; wait for it, or choose another "
                    "--run_dir."
                ) from None
            except OSError:  # Some network file systems know no locks.
                return handle
            # Whoever held the lock before may have removed the folder.
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == self.path.stat().st_ino:
                    return handle
            os.close(handle)

    def create(self, config: Config, data: dict) -> None:
        """Creates the folder of a run, or says in an existing one where the run is continued.

        Args:
            config: The resolved config.
            data: What `data.json` is to hold.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # The config first: whatever else a killed process leaves is that of a run.
        files.write_json(self.config_file, config.to_json())
        files.write_json(self.data_file, data)
        self.checkpoints.mkdir(exist_ok=True)

    def clear(self) -> None:
        """Removes what a complete run no longer needs: checkpoints, and what kills have left."""
        files.remove_leftovers(self.path)
        if self.checkpoints.is_dir():
            for file in self.checkpoints.iterdir():
                file.unlink(missing_ok=True)

    @property
    def complete(self) -> bool:
        """Whether the run has ended and its results and model exist."""
        return self.results_file.exists() and self.model_file.exists()

    def read_config(self) -> Config:
        """Returns the run's config; raises `ValueError` if the folder holds no run."""
        values = self.read_json(self.config_file)
        try:
            return Config.from_json(values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.config_file} is not the config of a run: {error}") from None

    def read_results(self) -> dict:
        """Returns the results; raises `ValueError` if the run is not complete."""
        return self.read_json(self.results_file, "last", "split")

    def read_data(self) -> dict:
        """Returns the contents of `data.json`."""
        data = self.read_json(self.data_file, "name", "class_names", "counts", "vocabulary")
        forms = {"vocabulary": (_are_texts, "words"), "columns": (_are_columns, "columns")}
        for name, (fits, what) in forms.items():
            value = data.get(name)
            if value is not None and not fits(value):
                raise ValueError(
                    f"{self.data_file}: `{name}` must be null or a list of different {what}. "
                    f"Received: {shown(value)}"
                )
        return data

    def read_diagnosis(self) -> dict:
        """Returns the contents of `diagnosis.json`; raises `ValueError` if it does not exist."""
        return self.read_json(self.diagnosis_file, "splits")

    def read_json(self, file: Path, *keys: str) -> dict:
        """Returns the contents of a JSON file of the folder.

        Args:
            file: One of the folder's files.
            *keys: Keys that it must have.

        Raises:
            ValueError: if the file does not exist, is damaged, or lacks a key.
        """
        if not file.exists():
            hint = "no such folder" if not self.path.exists() else f"it has no {file.name}"
            if file == self.results_file and self.config_file.exists():
                hint = "the run has not ended; the same bin/train command resumes it"
            raise ValueError(f"{self.path} holds no finished run: {hint}.")
        values = files.read_json(file)
        for key in keys:
            if key not in values:
                raise ValueError(f"{file} lacks the key {key!r}; it is damaged.")
        return values

    def load_model(self) -> keras.Model:
        """Loads the trained model; raises `ValueError` if it cannot be read."""
        if self.model_file.is_file() and not zipfile.is_zipfile(self.model_file):
            what = "not a .keras file" if self.model_file.stat().st_size else "empty"
            raise ValueError(f"{self.model_file} cannot be read: it is {what}.")
        try:
            return saved_models.load_model(self.model_file)
        except saved_models.TooLargeError:
            raise
        except Exception as error:  # Keras, h5py and zipfile each have their own.
            reason = files.reason(error)
            raise ValueError(f"{self.model_file} cannot be read: {reason}") from None

    def write_history(self, rows: list[dict]) -> None:
        """Writes the history anew, one row per epoch; a column may be missing in a row."""
        names = list(dict.fromkeys(name for row in rows for name in row))

        def write(path):
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)

        files.write_whole(self.history_file, write)

    def read_history(self) -> list[dict]:
        """Returns the rows of the history, numbers as floats and epochs as whole numbers.

        Raises:
            ValueError: for a value that is no number, or a row longer than the headings.
        """
        if not self.history_file.exists():
            return []
        try:
            with open(self.history_file, newline="") as file:
                return [
                    {
                        name: int(float(value)) if name == "epoch" else float(value)
                        for name, value in row.items()
                        if value
                    }
                    for row in csv.DictReader(file)
                ]
        except (TypeError, ValueError, OverflowError, csv.Error) as error:
            raise ValueError(f"{self.history_file} is not the history of a run: {error}.") from None


def is_moved(before: str, now: str) -> bool:
    """Whether the path of a user's dataset file names the same file in another place."""
    before, now = Path(before), Path(now)
    if not is_path(before.name) or before.name != now.name:
        return False
    return not before.exists() or (now.exists() and before.read_bytes() == now.read_bytes())


def _are_texts(values):
    """Whether values are different texts, in characters that TensorFlow can hold."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return False
    try:
        "".join(values).encode()
    except UnicodeEncodeError:  # Half of a surrogate pair.
        return False
    return len(set(values)) == len(values)


def _are_columns(values):
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        return False
    categories = [value.get("categories") for value in values if value.get("kind") == "category"]
    return (
        _are_texts([value.get("name") for value in values])
        and all(value.get("kind") in ("number", "date", "category") for value in values)
        and all(map(_are_texts, categories))
    )
