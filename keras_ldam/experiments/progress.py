"""What happens between the epochs of a run: evaluation, history, checkpoints."""

from __future__ import annotations

import contextlib
import time
import warnings

import keras

from keras_ldam import evaluation, files, hardware
from keras_ldam.experiments import feeding, models
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Data
from keras_ldam.experiments.datasets.sampling import Batches, EpochClock
from keras_ldam.experiments.models import lora
from keras_ldam.experiments.place import Place
from keras_ldam.experiments.run_folder import RunFolder
from keras_ldam.experiments.saved_models import check_unpacked
from keras_ldam.files import write_json, write_whole
from keras_ldam.wrappers import averaging

EVALUATION_BATCH = 500
CHECKPOINT_SECONDS = 5.0
"""An epoch that ends sooner than this after the last checkpoint leaves none: where an epoch takes
less than a second, writing one takes a good part of it."""
_ESTIMATED_BY = 50
"""Full training batches that averaged weights get their statistics from; moving statistics with a
momentum of 0.9 are worth about 20."""


class Progress(keras.callbacks.Callback):
    """Evaluates after epochs, and keeps what a killed run needs to resume.

    Args:
        folder: The run folder.
        config: A resolved config.
        data: The dataset.
        place: The devices of the run.
        trained: The compiled model; to resume, its optimizer must be built.
        batches: The training examples, where weights are averaged.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        data: Data,
        place: Place,
        trained: keras.Model,
        batches: Batches | None = None,
    ):
        super().__init__()
        self.folder, self.config, self.data, self.place = folder, config, data, place
        self.trained = trained
        # Evaluated and saved on one device, as a model of Keras' own class.
        self.plain = models.of_one_input(trained)
        if place.strategy is not None:
            plain = self.plain
            self.plain = keras.Model(plain.inputs, plain.outputs, name=plain.name)
        self.rows, self.last, self.best, self.seconds = [], None, None, 0.0
        self.replicas = {place.replicas}
        self.logged = 0
        self.batches, self._estimate = None, None
        if config.average and batches is not None:
            self.batches = batches.whole()
        if self.batches is not None and averaging.trained_batch_norm(self.plain):
            self._estimate = averaging.BatchNormEstimate(self.plain)
        self._saved = -CHECKPOINT_SECONDS

    def resume(self) -> int:
        """Loads the last checkpoint's state; returns the first epoch to train."""
        saved = sorted(self.folder.checkpoints.glob("epoch-*.weights.h5"))
        if not saved:
            return 0
        weights = saved[-1]
        check_unpacked(weights)
        try:
            state = self.folder.read_json(_state_file(weights))
            with warnings.catch_warnings(action="error"):
                lora.load_weights(self.trained, weights)
            epoch = state["epoch"]
            self.last, self.best, self.seconds = state["last"], state["best"], state["seconds"]
        except Exception as error:  # h5py and Keras raise whatever they met first.
            reason = files.reason(error)
            raise ValueError(
                f"checkpoint {weights} cannot be read ({reason}); remove it to start the run "
                "again, or choose another --run_dir."
            ) from None
        self.replicas |= set(state.get("replicas", ()))
        rows = self.folder.read_history()
        self.rows, self.logged = rows[: epoch + 1], len(rows)
        print(f"resumes {self.folder.path} after epoch {epoch + 1}", flush=True)
        return epoch + 1

    def on_train_begin(self, logs=None):
        """Starts the clock."""
        self._since = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        """Evaluates, and writes history and checkpoint."""
        row = {} if logs is None else dict(logs)
        if (epoch + 1) % self.config.evaluate_every == 0 or epoch + 1 == self.config.epochs:
            # In every process: the others would wait at the next step, and give up in the end.
            evaluated = self._evaluate(epoch)
            row.update(evaluated)
            if logs is not None:
                # The history file gets all of them, the progress bar the one that counts.
                mean = f"{self.data.test_name}_mean_error"
                logs[mean] = evaluated[mean]
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        self.rows.append({"epoch": epoch, **{k: float(v) for k, v in row.items()}})
        if self.place.writes:
            self.folder.write_history(self.rows)
            if time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
                self._write_checkpoint(epoch)

    def _evaluate(self, epoch):
        """Keeps the errors after an epoch; returns them as columns of the history."""
        with self._averaged(epoch):
            errors = evaluation.class_errors(
                self.plain,
                self.place.spread(self.data.test.batches(EVALUATION_BATCH)),
                self.data.counts,
                at_once=self.place.at_once,
            )
        self.last = {**errors, "epoch": epoch}
        if self.best is None or errors["mean_error"] < self.best["mean_error"]:
            self.best = self.last
        shown = {k: v for k, v in errors.items() if isinstance(v, float)}
        if len(errors["per_class_error"]) <= 10:
            shown.update({f"error_{j}": e for j, e in enumerate(errors["per_class_error"])})
        return {f"{self.data.test_name}_{k}": v for k, v in shown.items() if v is not None}

    @contextlib.contextmanager
    def _averaged(self, epoch):
        """Within it, the network has the averaged weights of an epoch, if there are any."""
        if self.batches is None:
            yield
            return
        before = [keras.ops.copy(v.value) for v in self.plain.variables]
        self._average(epoch)
        try:
            yield
        finally:
            with self.place.scope():
                for variable, value in zip(self.plain.variables, before, strict=True):
                    variable.assign(value)

    def _average(self, epoch):
        """Puts averaged weights in place, and the statistics that belong to them."""
        # What the statistics are of depends on the epoch alone.
        clock = EpochClock(self.batches)
        clock.set_model(self.trained)
        clock.on_epoch_begin(epoch)
        with self.place.scope():
            weights = self.trained.trainable_variables
            self.trained.optimizer.finalize_variable_values(weights)
            for variable in weights:  # On JAX it would share its memory with the average.
                variable.assign(keras.ops.copy(variable.value))
            if self._estimate is not None:
                full = len(self.data.train) // self.config.batch_size
                most = max(1, min(full, _ESTIMATED_BY))
                self._estimate(feeding.feed(self.batches), batches=most)

    def _write_checkpoint(self, epoch):
        weights = self.folder.checkpoints / f"epoch-{epoch:05d}.weights.h5"
        state = {
            "epoch": epoch,
            "last": self.last,
            "best": self.best,
            "seconds": self.seconds,
            "replicas": sorted(self.replicas),
        }
        write_json(_state_file(weights), state)
        # The weights come last: where they are, everything that belongs to them is there too.
        with self.place.alone():
            write_whole(weights, lambda path: lora.save_weights(self.model, path))
        for old in self.folder.checkpoints.iterdir():
            if not old.name.startswith(f"epoch-{epoch:05d}."):
                old.unlink()
        self._saved = time.monotonic()

    def finish(self) -> dict:
        """Writes model and results, and removes the checkpoints; returns the results."""
        if self.batches is not None:
            self._average(self.config.epochs - 1)
        self.plain = lora.merged(self.plain)
        results = {
            "dataset": self.config.dataset_name,
            "method": self.config.method,
            "seed": self.config.seed,
            "split": self.data.test_name,
            "last": self.last,
            "best": self.best,
            "class_names": list(self.data.class_names),
            "counts": self.data.counts.tolist(),
            "skipped": len(self.data.skipped),
            "replicas": sorted(self.replicas),
            "parameters": int(self.plain.count_params()),
            "seconds": round(self.seconds, 1),
            "config": self.config.to_json(),
            "versions": hardware.versions(),
            "hardware": hardware.describe(),
        }
        if self.place.writes:
            write_whole(self.folder.model_file, self.plain.save)
            write_json(self.folder.results_file, results)
            self.folder.clear()
        return results


class Curves(keras.callbacks.TensorBoard):
    """TensorBoard's logs, without the epochs that a resumed run computes for the second time.

    Args:
        folder: Folder of the logs.
        logged: Number of epochs that are logged already.
    """

    def __init__(self, folder, logged: int):
        super().__init__(folder, write_graph=False)
        self.logged = logged

    def on_epoch_end(self, epoch, logs=None):
        """Logs the epoch, unless that has been done."""
        if epoch >= self.logged:
            super().on_epoch_end(epoch, logs)


def _state_file(weights):
    return weights.with_name(weights.name.replace(".weights.h5", ".json"))
