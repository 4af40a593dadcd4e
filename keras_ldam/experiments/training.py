"""Train and evaluate: the one place where data, model, loss and schedule meet."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import importlib.util
import itertools
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

from keras_ldam import evaluation, hardware, losses
from keras_ldam.callbacks import DRW
from keras_ldam.experiments import datasets, models
from keras_ldam.experiments.config import COSINE_LOSSES, Config
from keras_ldam.experiments.datasets.data import Data, Ragged, Split
from keras_ldam.experiments.datasets.sampling import Batches, EpochClock
from keras_ldam.experiments.run_folder import RunFolder, versions, write_json, write_whole
from keras_ldam.optimizers import MomentumSGD
from keras_ldam.schedules import stepwise

EVALUATION_BATCH = 500
STREAMED_BATCH = 100
"""Images from disk are larger than those that fit into memory."""
CHECKPOINT_SECONDS = 5.0
"""Epochs that end sooner than this after the last checkpoint leave none: where an epoch takes less
than a second, writing one takes a good part of it."""


def train(
    config: Config, run_dir: str | Path, *, progress: bool = True, tensorboard: bool = False
) -> dict:
    """Trains one run to its end, resuming it if it was begun before.

    Args:
        config: A resolved config.
        run_dir: The run folder; made if it is not there. A run that is complete is not repeated.
        progress: Whether to show Keras' progress bar, or a line for each epoch where nobody
            watches a terminal.
        tensorboard: Whether to log each epoch for TensorBoard too, in the run folder; a resumed
            run goes on with the same curves.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: if the folder belongs to another config, a checkpoint cannot be read, or the
            data are not to be had; or for `tensorboard` where that package is not installed.
    """
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "tensorboard was asked for, but the package of that name is not installed: "
            "pip install tensorboard."
        )
    folder = RunFolder(run_dir)
    folder.check(config)
    if folder.complete:
        if folder.read_config().data_dir != config.data_dir:
            folder.check_data(datasets.load(config).describe())
            folder.create(config)  # It is evaluated where the data are now.
        print(f"{folder.path} holds this run, complete.", flush=True)
        return folder.read_results()
    _check_precision(config)
    place = _Place.of(config)
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    data = datasets.load(config)
    folder.check_data(data.describe())
    _describe(config, data, place)
    batches = training_batches(config, data, replicas=place.replicas, own=place.own)
    schedule = _schedule(config)
    with place.scope():
        model = compiled_model(config, data)
    record = _Progress(folder, config, data, place)
    # Only now: what is refused must not leave a folder that refuses the next try.
    with folder.locked() if place.writes else contextlib.nullcontext():
        if place.writes:
            folder.create(config)
            write_json(folder.data_file, data.describe())
        return _fit(record, model, batches, schedule, progress=progress, tensorboard=tensorboard)


def _fit(record, model, batches, schedule, *, progress, tensorboard):
    """Trains what is left to train, and writes the outcome; returns what `results.json` holds."""
    folder, config, place = record.folder, record.config, record.place
    with place.scope():
        initial_epoch = record.resume(model)
    record.plain_model = model if place.strategy is None else plain_model(model)
    callbacks = [EpochClock(batches), *schedule, record]
    if tensorboard and place.writes:  # After the record, which adds the errors to the logs.
        callbacks.append(_Curves(folder.tensorboard, record.logged))
    if initial_epoch == config.epochs:
        # The run was cut off after its last epoch, and fit will begin none. A loss's weights are
        # not in a checkpoint: they are a function of the epoch.
        for callback in schedule:
            callback.set_model(model)
            callback.on_epoch_begin(config.epochs - 1)
    with place.naming_lost_workers(), _naming_unreadable(batches), warnings.catch_warnings():
        # Where steps_per_execution does not divide the steps of an epoch, its end cuts them off.
        warnings.filterwarnings("ignore", "Your input ran out of data")
        model.fit(
            place.feed(batches),
            epochs=config.epochs,
            initial_epoch=initial_epoch,
            callbacks=callbacks,
            shuffle=False,  # The order is decided already.
            verbose=(1 if sys.stderr.isatty() else 2) if progress else 0,
        )
    results = record.results(model)
    if place.writes:
        write_whole(folder.model_file, record.plain_model.save)
        write_json(folder.results_file, results)
        record.forget()
    return results


def evaluate(run_dir: str | Path) -> dict:
    """Evaluates the model of a finished run anew, on the split its results are about.

    Also writes the run's `diagnosis.json`: margins, confusions and reliability on the training
    examples and on that split.

    Returns:
        The errors, in the form of `results.json`'s `last`, with the name of the split, and
        `margins`: of each of both splits the achieved margins, class by class; see
        `evaluation.class_margins`.
    """
    folder = RunFolder(run_dir)
    config = folder.read_config()
    folder.read_results()
    data = datasets.load(config)
    folder.check_data(data.describe())
    model = load_model(folder)
    scale = config.scale if config.loss in COSINE_LOSSES else 1.0
    splits = {}
    for name, split in (("train", data.train), (data.test_name, data.test)):
        batches = (
            (examples, split.labels[indices])
            for indices, examples in in_order(split, EVALUATION_BATCH)
        )
        scored = evaluation.score(model, batches, len(data.counts), scale=scale)
        splits[name] = evaluation.diagnose(scored, data.counts)
    write_json(folder.diagnosis_file, {"splits": splits})
    return {
        "split": data.test_name,
        **evaluation.errors_of_ranks(scored.ranks, scored.labels, data.counts),
        "margins": {name: values["margins"] for name, values in splits.items()},
    }


def load_model(folder: RunFolder) -> keras.Model:
    """Loads the model of a finished run; raises `ValueError` if it cannot be read."""
    try:
        return keras.models.load_model(folder.model_file)
    except Exception as error:  # Keras, h5py and zipfile each have their own.
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise ValueError(f"{folder.model_file} cannot be read: {reason}") from None


def compiled_model(config: Config, data: Data) -> keras.Model:
    """The network of a config with its loss, optimizer and metric; to be called in a scope."""
    model = models.build(config, data)
    if config.strategy != "none":
        from keras_ldam import distribution

        model = distribution.ReplicatedModel(model.inputs, model.outputs, name=model.name)
    clipnorm = config.clipnorm or None
    if config.optimizer == "adam":
        optimizer = keras.optimizers.Adam(config.learning_rate, global_clipnorm=clipnorm)
    else:
        optimizer = MomentumSGD(
            config.learning_rate,
            momentum=config.momentum,
            coupled_weight_decay=config.weight_decay,
            global_clipnorm=clipnorm,
        )
    model.compile(
        optimizer,
        loss=build_loss(config, data.counts),
        metrics=["sparse_categorical_accuracy"],
        jit_compile={"auto": "auto", "on": True, "off": False}[config.jit],
        steps_per_execution=config.steps_per_execution,
    )
    return model


def plain_model(model: keras.Model) -> keras.Model:
    """A model of Keras' own class with the same layers: to evaluate and save, on one device."""
    return keras.Model(model.inputs, model.outputs, name=model.name)


def build_loss(config: Config, counts: np.ndarray) -> losses.ClassWeightedLoss:
    """The loss that a config names.

    Class-balanced focal loss is summed over weights of mean 1 and divided by the batch's size, as
    in Cui et al., whose numbers its row is; all others divide by the sum of the weights.
    """
    if config.loss == "cross_entropy":
        return losses.CrossEntropy(counts)
    if config.loss == "focal":
        return losses.Focal(counts, gamma=config.gamma)
    if config.loss == "sigmoid_focal":
        return losses.Focal(
            counts, gamma=config.gamma, form="sigmoid", reduction="sum_over_batch_size"
        )
    margin = {"scale": config.scale, "max_margin": config.max_margin}
    if config.loss == "ldam":
        return losses.LDAM(counts, **margin)
    if config.loss == "uniform_margin":
        return losses.LDAM(counts, **margin, exponent=0.0)
    if config.loss == "ldam_hinge":
        return losses.LDAMHinge(counts, **margin)
    if config.loss == "hinge":
        return losses.LDAMHinge(counts, **margin, exponent=0.0)
    raise ValueError(f"unknown loss {config.loss!r}.")


def training_batches(config: Config, data: Data, **shares) -> Batches:
    """The training examples in the order, and at the class frequencies, of the config's rule.

    Args:
        config: A resolved config.
        data: The dataset.
        **shares: `replicas` and `own` of `Batches`; by default batches are whole.
    """
    how, weighting = config.balancing
    return Batches(
        data.train,
        config.batch_size,
        seed=config.seed,
        num_classes=len(data.counts),
        resample=weighting if how == "sample" else None,
        beta=config.beta,
        start_epoch=config.start_epoch if config.deferred else 0,
        steps=config.steps_per_epoch,
        **shares,
    )


def feed(batches: Batches):
    """What `fit` takes: a prefetching tf.data pipeline on TensorFlow, the batches elsewhere.

    Images that are read from disk come through tf.data on every backend.
    """
    if batches.split.load is not None:
        from keras_ldam.experiments.datasets import images

        return images.stream(batches)
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    example, label = batches[0]

    def generate():
        for index in range(len(batches)):
            yield batches[index]

    # Only the last axes of images are fixed; sequences are as long as the longest of the batch.
    fixed = example.shape[1:] if example.ndim > 2 else (None,) * (example.ndim - 1)
    signature = (
        tf.TensorSpec((None, *fixed), example.dtype),
        tf.TensorSpec((None,), label.dtype),
    )
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))
    # Autotuning, on unless it is turned off, ends an epoch only when its own thread next wakes:
    # after 10 ms · 2^k, which for short epochs doubles the time.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(8).with_options(options)


def _naming_unreadable(batches):
    if batches.split.load is None:
        return contextlib.nullcontext()
    from keras_ldam.experiments.datasets import images

    return images.naming_unreadable(batches)


def _schedule(config):
    drops = collections.Counter(config.drop_epochs)  # In a short run two can share an epoch.
    rate = stepwise(
        config.learning_rate,
        warmup_epochs=config.warmup_epochs,
        drops={epoch: config.drop_factor**number for epoch, number in drops.items()},
    )
    callbacks = [keras.callbacks.LearningRateScheduler(rate)]
    how, weighting = config.balancing
    if how == "weight":
        start = config.start_epoch if config.deferred else 0
        callbacks.append(DRW(start, weights=weighting, beta=config.beta))
    return callbacks


def _describe(config, data, place):
    shown = np.array2string(data.counts, threshold=24, max_line_width=10**6)
    print(
        f"{data.name}: {len(data.train)} training examples in {len(data.counts)} classes, "
        f"{shown}; {len(data.test)} {data.test_name} examples. Method {config.method}: "
        f"loss {config.loss}, rule {config.rule}.",
        flush=True,
    )
    if place.replicas > 1:
        print(
            f"Strategy {config.strategy}: {place.replicas} replicas, each with "
            f"{config.batch_size // place.replicas} of a batch's {config.batch_size} examples.",
            flush=True,
        )


# ----------------------------------------------------------------------------- where it runs


class _Place:
    """Where a run is computed: on one device, or on the replicas of a strategy.

    Args:
        strategy: A `tf.distribute` strategy; None for one device.
        first: Number of this process's first replica.
        local: How many replicas it has.
        writes: Whether this process is the one that writes the run folder.
        at_once: How many batches are to be evaluated side by side: as many as the cores have been
            divided for.
    """

    def __init__(self, strategy=None, *, first=0, local=1, writes=True, at_once=1):
        self.strategy, self.writes, self.at_once = strategy, writes, at_once
        self.replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        self.own = range(first, first + local)

    @classmethod
    def of(cls, config):
        if config.strategy == "none":
            return cls()
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"strategy {config.strategy} needs Keras' TensorFlow backend; received "
                f"{keras.backend.backend()!r}."
            )
        from keras_ldam import distribution

        strategy = distribution.make_strategy(
            config.strategy, replicas=config.replicas, worker_timeout=config.worker_timeout
        )
        local = len(strategy.extended.worker_devices)
        if config.strategy != "multiworker":
            return cls(strategy, local=local, at_once=local if config.strategy == "cores" else 1)
        worker = distribution.Cluster.from_environment().index
        return cls(strategy, first=worker * local, local=local, writes=worker == 0)

    def scope(self):
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def feed(self, batches):
        if self.strategy is None:
            return feed(batches)
        from keras_ldam import distribution

        steps = len(batches) // len(self.own)
        return distribution.distribute(self.strategy, feed(batches), steps)

    def naming_lost_workers(self):
        if self.strategy is None:
            return contextlib.nullcontext()
        from keras_ldam import distribution

        return distribution.naming_lost_workers(self.strategy)


def _check_precision(config):
    if config.precision == "mixed_float16" and not hardware.accelerators():
        raise ValueError(
            "precision mixed_float16 needs an accelerator, and this machine has only CPUs; choose "
            "float32 or mixed_bfloat16."
        )


# ----------------------------------------------------------------------------- evaluation


def evaluate_split(
    model: keras.Model, split: Split, counts: np.ndarray, *, at_once: int = 1
) -> dict:
    """Errors of a model on a split, in percent.

    Args:
        model: Gives scores `[batch, K]`.
        split: Examples and labels.
        counts: Training examples per class, for the groups many, medium and few.
        at_once: How many batches are scored side by side, each by a thread.

    Returns:
        `per_class_error`: of each class (None for a class without examples); `mean_error`: their
        mean; `balanced_accuracy`: 100 - mean_error; `error`: over all examples; `top5_error` where
        there are more than 5 classes; `many_error`, `medium_error`, `few_error` where there are
        such classes.
    """
    ranks = np.empty(len(split), dtype=np.int64)

    def rank(batch):
        indices, examples = batch
        scores = np.asarray(
            keras.ops.convert_to_numpy(model.predict_on_batch(examples)), dtype=np.float32
        )
        own = np.take_along_axis(scores, split.labels[indices, None], axis=1)
        # A score that is not a number, below which nothing is, ranks last: a broken model must not
        # look perfect.
        ranks[indices] = np.sum(~(scores < own), axis=1) - 1

    batches = in_order(split, EVALUATION_BATCH)
    if at_once == 1:
        for batch in batches:
            rank(batch)
    else:
        rank(next(batches))  # It makes the model's function, which threads must not do at once.
        with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
            while some := list(itertools.islice(batches, at_once)):
                list(threads.map(rank, some))
    return evaluation.errors_of_ranks(ranks, split.labels, counts)


def in_order(split: Split, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All examples of a split once, with their indices; sequences of like length together."""
    if split.load is not None:
        from keras_ldam.experiments.datasets import images

        yield from images.stream_in_order(split, min(batch_size, STREAMED_BATCH))
        return
    order = np.arange(len(split))
    if isinstance(split.examples, Ragged):
        order = np.argsort(split.examples.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, split.examples[indices]


# ----------------------------------------------------------------------------- progress


class _Curves(keras.callbacks.TensorBoard):
    """TensorBoard's logs, without the epochs that a resumed run computes for the second time."""

    def __init__(self, folder, logged):
        super().__init__(folder, write_graph=False)
        self.logged = logged

    def on_epoch_end(self, epoch, logs=None):
        if epoch >= self.logged:
            super().on_epoch_end(epoch, logs)


class _Progress(keras.callbacks.Callback):
    """Evaluates after epochs, and keeps what a killed run needs to go on."""

    def __init__(self, folder, config, data, place):
        super().__init__()
        self.folder, self.config, self.data, self.place = folder, config, data, place
        self.plain_model = None
        self.rows, self.last, self.best, self.seconds = [], None, None, 0.0
        self._saved, self.logged = -CHECKPOINT_SECONDS, 0
        self.replicas = {place.replicas}

    def resume(self, model):
        """Loads the last checkpoint's state; returns the epoch to go on with."""
        saved = sorted(self.folder.checkpoints.glob("epoch-*.weights.h5"))
        if not saved:
            return 0
        weights = saved[-1]
        try:
            state = self.folder.read_json(self._state_file(weights))
            # Before it is built an optimizer has no variables to load into, and Keras only warns.
            model.optimizer.build(model.trainable_variables)
            with warnings.catch_warnings(action="error"):
                model.load_weights(weights)
        except Exception as error:  # h5py and Keras raise whatever they met first.
            reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
            raise ValueError(
                f"checkpoint {weights} cannot be read ({reason}); remove it to start the run "
                "again from its beginning, or choose another --run_dir."
            ) from None
        epoch = state["epoch"]
        self.last, self.best, self.seconds = state["last"], state["best"], state["seconds"]
        self.replicas |= set(state.get("replicas", ()))
        rows = self.folder.read_history()
        self.rows, self.logged = rows[: epoch + 1], len(rows)
        print(f"resumes {self.folder.path} after epoch {epoch + 1}", flush=True)
        return epoch + 1

    def _state_file(self, weights):
        return weights.with_name(weights.name.replace(".weights.h5", ".json"))

    def on_train_begin(self, logs=None):
        self._since = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        row = {} if logs is None else dict(logs)
        if (epoch + 1) % self.config.evaluate_every == 0 or epoch + 1 == self.config.epochs:
            # In every process: the others would wait at the next step, and give up if it took long.
            evaluated = self._evaluate(epoch)
            row.update(evaluated)
            if logs is not None:
                # The history file gets them all, the progress bar the one that counts.
                mean = f"{self.data.test_name}_mean_error"
                logs[mean] = evaluated[mean]
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        self.rows.append({"epoch": epoch, **{k: float(v) for k, v in row.items()}})
        self._save(epoch)

    def _evaluate(self, epoch):
        """Keeps the errors after an epoch; returns them as a row of the history has them."""
        errors = evaluate_split(
            self.plain_model, self.data.test, self.data.counts, at_once=self.place.at_once
        )
        self.last = {**errors, "epoch": epoch}
        if self.best is None or errors["mean_error"] < self.best["mean_error"]:
            self.best = self.last
        shown = {k: v for k, v in errors.items() if isinstance(v, float)}
        if len(errors["per_class_error"]) <= 10:
            shown.update({f"error_{j}": e for j, e in enumerate(errors["per_class_error"])})
        return {f"{self.data.test_name}_{k}": v for k, v in shown.items() if v is not None}

    def _save(self, epoch):
        if not self.place.writes:
            return
        self.folder.write_history(self.rows)
        if time.monotonic() - self._saved < CHECKPOINT_SECONDS:
            return
        weights = self.folder.checkpoints / f"epoch-{epoch:05d}.weights.h5"
        state = {
            "epoch": epoch,
            "last": self.last,
            "best": self.best,
            "seconds": self.seconds,
            "replicas": sorted(self.replicas),
        }
        write_json(self._state_file(weights), state)
        # The weights come last: where they are, everything that belongs to them is there too.
        write_whole(weights, self.model.save_weights)
        for old in self.folder.checkpoints.iterdir():
            if not old.name.startswith(f"epoch-{epoch:05d}."):
                old.unlink()
        self._saved = time.monotonic()

    def results(self, model):
        """What `results.json` is to hold."""
        return {
            "dataset": self.config.dataset,
            "method": self.config.method,
            "seed": self.config.seed,
            "split": self.data.test_name,
            "last": self.last,
            "best": self.best,
            "class_names": list(self.data.class_names),
            "counts": self.data.counts.tolist(),
            "skipped": len(self.data.skipped),
            "replicas": sorted(self.replicas),
            "parameters": int(model.count_params()),
            "seconds": round(self.seconds, 1),
            "config": self.config.to_json(),
            "versions": versions(),
            "hardware": hardware.describe(),
        }

    def forget(self):
        """Removes the checkpoints of a run that is complete."""
        for file in self.folder.checkpoints.iterdir():
            file.unlink()
