"""Train and evaluate: the one place where data, model, loss and schedule meet."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.util
import sys
import time
import warnings
from pathlib import Path

import keras
import numpy as np

from keras_ldam import adjustment, evaluation
from keras_ldam.callbacks import DRW
from keras_ldam.experiments import datasets, feeding, models
from keras_ldam.experiments.config import METHODS, Config
from keras_ldam.experiments.datasets.data import Data
from keras_ldam.experiments.datasets.sampling import Batches, EpochClock
from keras_ldam.experiments.place import Place, divide_cores
from keras_ldam.experiments.progress import EVALUATION_BATCH, Curves, Progress
from keras_ldam.experiments.run_folder import RunFolder
from keras_ldam.files import write_json
from keras_ldam.losses import LOSSES
from keras_ldam.optimizers import MomentumSGD
from keras_ldam.schedules import cosine, stepwise
from keras_ldam.wrappers import AdversarialTraining, SharpnessAwareTraining

_AS_THEY_ARE = {"augment": "", "cutout": 0, "mix": "", "steps_per_epoch": 0}
"""For a head that is trained on features: every example, once."""


def train(
    config: Config, run_dir: str | Path, *, progress: bool = True, tensorboard: bool = False
) -> dict:
    """Trains one run to its end, resuming it if it was interrupted.

    Args:
        config: A resolved config.
        run_dir: The run folder; created if it does not exist. A complete run is not repeated. For
            a second stage its first one is trained before, in a folder of its own.
        progress: Whether to show Keras' progress bar, or one line per epoch where standard error
            is no terminal.
        tensorboard: Whether to log each epoch for TensorBoard too, in the run folder, of a second
            stage in that of its first one; a resumed run continues the same curves.

    Returns:
        The contents of `results.json`.

    Raises:
        ValueError: if the folder belongs to another config or process, a checkpoint cannot be
            read, or the dataset is unavailable; or for `tensorboard` without that package.
    """
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "tensorboard was asked for, but the package of that name is not installed: "
            "pip install tensorboard."
        )
    folder = RunFolder(run_dir)
    folder.check(config)
    if folder.complete:
        return _completed(folder, config)
    if config.first_stage is not None:
        path = config.stage_one or folder.path.with_name(config.first_stage.run_name)
        first = RunFolder(path, "--stage_one")
        first.check(config.first_stage)
        train(config.first_stage, first.path, progress=progress, tensorboard=tensorboard)
        return _second_stage(config, folder, first)
    place = Place.of(config)
    with folder.locked() if place.writes else contextlib.nullcontext():
        folder.check(config)
        if folder.complete:  # Another process has finished it since.
            return _completed(folder, config)
        keras.config.set_dtype_policy(config.precision)
        data = _load(config)
        folder.check_data(data.describe())
        _describe(config, data, place)
        batches = feeding.training_batches(config, data, replicas=place.shares, own=place.own)
        callbacks = [EpochClock(batches), *schedule(config)]
        with place.scope():
            model = compiled_model(config, data)
        # Outside of the scope: its model is evaluated on one device.
        record = Progress(folder, config, data, place, model, batches)
        # Only now: what is refused must not leave a folder that refuses the next try.
        if place.writes:
            folder.create(config, data.describe())
        with place.scope():
            initial_epoch = record.resume()
        if config.pretrained and initial_epoch == 0:
            start = time.monotonic()
            _train_head(config, data, record.plain)
            record.seconds = time.monotonic() - start
        callbacks.append(record)
        if tensorboard and place.writes:  # After the record, which adds the errors to the logs.
            callbacks.append(Curves(folder.tensorboard, record.logged))
        fit(
            model,
            batches,
            callbacks,
            place,
            epochs=config.epochs,
            initial_epoch=initial_epoch,
            progress=progress,
        )
        return record.finish()


def _load(config):
    """The data, and the random state of the seed, whatever a download has drawn."""
    keras.utils.set_random_seed(config.seed)  # A user's own dataset may draw.
    data = datasets.load(config)
    keras.utils.set_random_seed(config.seed)
    return data


def _train_head(config, data, model):
    """Trains the new head of a pretrained body, on the examples as they come, whatever the rule.

    A run that is killed before its first checkpoint does this again.
    """
    head = model.layers[-1]
    from_means = LOSSES[config.loss].wants_cosines
    natural = dataclasses.replace(config, rule="none", **_AS_THEY_ARE)
    batches = feeding.training_batches(natural, data)
    with feeding.naming_unreadable(batches):
        if config.head_epochs:
            adjustment.retrain_head(
                model,
                feeding.feed(batches),
                head=head,
                power=0.0,
                epochs=config.head_epochs,
                batch_size=config.batch_size,
                loss=LOSSES[config.loss].make(data.counts, dataclasses.asdict(config)),
                seed=config.seed,
                from_means=from_means,
                in_place=True,
            )
        elif from_means:
            adjustment.start_from_means(model, feeding.feed(batches), head=head)


def _second_stage(config, folder, first):
    """Trains the head of a finished run anew; an interrupted second stage starts again.

    The examples are read once, without augmentation: the features of the frozen body are fixed.
    """
    place = Place.of(dataclasses.replace(config, strategy="none"))
    with folder.locked():
        keras.config.set_dtype_policy(config.precision)
        data = _load(config)
        first.check_data(data.describe())  # Its network knows words and categories by number.
        folder.check_data(data.describe())
        _describe(config, data, place)
        folder.create(config, data.describe())
        start = time.monotonic()
        model = first.load_model()
        batches = feeding.training_batches(
            dataclasses.replace(config.first_stage, **_AS_THEY_ARE), data
        )
        with feeding.naming_unreadable(batches):
            model = getattr(adjustment, METHODS[config.method].second_stage)(
                model,
                feeding.feed(batches),
                epochs=config.second_epochs,
                batch_size=config.batch_size,
                scale=config.score_scale,
                seed=config.seed,
                in_place=True,
            )
        record = Progress(folder, config, data, place, model)
        record.set_model(model)
        earlier = first.read_results()
        record.replicas |= set(earlier["replicas"])
        record.seconds = earlier["seconds"] + time.monotonic() - start
        record.on_train_begin()
        record.on_epoch_end(config.epochs - 1, {})
        return record.finish()


def fit(
    model: keras.Model,
    batches: Batches,
    callbacks: list[keras.callbacks.Callback],
    place: Place,
    *,
    epochs: int,
    initial_epoch: int = 0,
    progress: bool = True,
) -> None:
    """Trains the epochs that are left of a run.

    Args:
        model: The compiled model.
        batches: The training examples.
        callbacks: What acts at the epochs, in this order.
        place: The devices.
        epochs: Epochs of the whole run.
        initial_epoch: First epoch to train, from zero.
        progress: See `train`.
    """
    if initial_epoch == epochs:
        # The run was interrupted after its last epoch, and Keras begins none. The weights of a
        # loss are in no checkpoint: they are a function of the epoch.
        for callback in callbacks:
            if isinstance(callback, DRW):
                callback.set_model(model)
                callback.on_epoch_begin(epochs - 1)
    with place.training(), feeding.naming_unreadable(batches), warnings.catch_warnings():
        # Where steps_per_execution does not divide the steps of an epoch, its end cuts them off.
        warnings.filterwarnings("ignore", "Your input ran out of data")
        model.fit(
            place.feed(batches),
            epochs=epochs,
            initial_epoch=initial_epoch,
            callbacks=callbacks,
            shuffle=False,  # The order is decided already.
            verbose=(1 if sys.stderr.isatty() else 2) if progress else 0,
        )


def compiled_model(config: Config, data: Data) -> keras.Model:
    """The network of a config with its loss, optimizer and metric; to be called in a scope."""
    model = models.build(config, data)
    adversarial, sharpness_aware = AdversarialTraining, SharpnessAwareTraining
    if config.strategy != "none" and keras.backend.backend() == "tensorflow":
        from keras_ldam import distribution

        adversarial = distribution.ReplicatedAdversarialTraining
        sharpness_aware = distribution.ReplicatedSharpnessAwareTraining
        if not config.adversarial and not config.sharpness:
            model = distribution.ReplicatedModel(model.inputs, model.outputs, name=model.name)
    if config.adversarial:
        model = adversarial(model, epsilon=config.adversarial)
    if config.sharpness:
        model = sharpness_aware(model, rho=config.sharpness)
    soft = config.mix or config.balancing[0] == "pair"
    accuracy = keras.metrics.SparseCategoricalAccuracy()
    if soft:
        accuracy = keras.metrics.MeanMetricWrapper(models.soft_accuracy, "soft_accuracy")
    same = {"global_clipnorm": config.clipnorm or None, "use_ema": config.average > 0}
    if config.average:
        same["ema_momentum"] = config.average
    if config.optimizer == "adam":
        optimizer = keras.optimizers.Adam(config.learning_rate, **same)
    else:
        optimizer = MomentumSGD(
            config.learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            coupled_weight_decay=config.weight_decay,
            **same,
        )
    model.compile(
        optimizer,
        loss=LOSSES[config.loss].make(data.counts, dataclasses.asdict(config)),
        metrics=[accuracy],
        jit_compile={"auto": "auto", "on": True, "off": False}[config.jit],
        steps_per_execution=config.steps_per_execution,
    )
    # TensorFlow would trace the first step twice if that made variables of the optimizer or of a
    # metric; and without them Keras only warns where a checkpoint is loaded.
    model.optimizer.build(model.trainable_variables)
    return model


def schedule(config: Config) -> list[keras.callbacks.Callback]:
    """The learning rate, and the class weights of a rule that weights, as callbacks."""
    if config.decay == "cosine":
        rate = cosine(
            config.learning_rate, epochs=config.epochs, warmup_epochs=config.warmup_epochs
        )
    else:
        drops = collections.Counter(config.drop_epochs)  # In a short run two can share an epoch.
        rate = stepwise(
            config.learning_rate,
            warmup_epochs=config.warmup_epochs,
            warmup_start=config.warmup_start or None,
            drops={epoch: config.drop_factor**number for epoch, number in drops.items()},
        )
    callbacks = [keras.callbacks.LearningRateScheduler(rate)]
    how, weighting = config.balancing
    if how == "weight":
        start = config.start_epoch if config.deferred else 0
        callbacks.append(DRW(start, weights=weighting, beta=config.beta))
    return callbacks


def evaluate(run_dir: str | Path) -> dict:
    """Evaluates the model of a finished run again, on the split that its results are about.

    Also writes the run's `diagnosis.json`: margins, confusions and reliability on the training
    examples and on that split. Where the folder is read-only, it says so and goes on.

    Args:
        run_dir: The run folder.

    Returns:
        The errors, in the form of `last` in `results.json`, with the name of the split;
        `margins`: the achieved margins of each class on both splits; and `warnings`, what keeps
        the model or its margins from working, if anything; see `evaluation.diagnose`.

    Raises:
        ValueError: if the run is not finished, its model cannot be read, or its dataset is
            unavailable or has changed.
    """
    folder = RunFolder(run_dir)
    config = folder.read_config()
    folder.read_results()
    divide_cores(config)
    data = datasets.load(config)
    folder.check_data(data.describe())
    model = folder.load_model()
    splits = {}
    for name, split in (("train", data.train), (data.test_name, data.test)):
        errors, splits[name] = evaluation.diagnose(
            model, split.batches(EVALUATION_BATCH), data.counts, scale=config.score_scale
        )
    try:
        write_json(folder.diagnosis_file, {"splits": splits})
    except OSError as error:
        print(f"{folder.diagnosis_file} was not written: {error.strerror}.", flush=True)
    return {
        "split": data.test_name,
        **errors,
        "margins": {name: values["margins"] for name, values in splits.items()},
        "warnings": splits["train"]["warnings"],
    }


def _completed(folder, config):
    """The results of a run that is complete; its folder is told where its data are now."""
    before = folder.read_config()
    if (before.dataset, before.data_dir) != (config.dataset, config.data_dir):
        data = datasets.load(config).describe()
        folder.check_data(data)
        folder.create(config, data)
    with contextlib.suppress(OSError):  # The folder may be read-only.
        folder.clear()
    print(f"this run is already complete: {folder.path}", flush=True)
    return folder.read_results()


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
