"""From a training split to what `fit` takes: the rule's batches, as a pipeline."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import keras
import numpy as np

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Data, Ragged
from keras_ldam.experiments.datasets.sampling import Batches, Bilateral, Mixtures
from keras_ldam.sampling import augment


def training_batches(
    config: Config, data: Data, *, replicas: int = 1, own: range | None = None
) -> Batches:
    """The training examples in the order, and at the class frequencies, of the config's rule.

    Of pairs it prints how often each sampler draws each class.

    Args:
        config: A resolved config.
        data: The dataset.
        replicas: Number of shares that each batch is cut into.
        own: The shares of this process; all by default.

    Raises:
        ValueError: for pairs of sequences, for mixtures of what is neither an image nor a vector in
            memory, and for augmentation of what is no image in memory.
    """
    how, weighting = config.balancing
    pairs = None
    if how == "pair":
        if isinstance(data.train.examples, Ragged):
            raise ValueError(
                f"`rule` must not be bilateral for {data.name}: its networks have one branch. "
                f"Received: rule={config.rule!r}"
            )
        pairs = Bilateral(data.counts, round(config.alpha_length * config.epochs))
    if config.mix:
        if not isinstance(data.train.examples, np.ndarray):
            raise ValueError(
                "`mix` needs images, or vectors that are held in memory. Received: "
                f"mix={config.mix!r} for {data.name}"
            )
        pairs = Mixtures(
            data.counts,
            config.mix_power,
            config.mix,
            alpha=config.mix_alpha,
            probability=config.mix_probability,
            majority=config.mix_majority,
        )
    batches = Batches(
        data.train,
        config.batch_size,
        seed=config.seed,
        counts=data.counts,
        resample=weighting if how == "sample" else None,
        beta=config.beta,
        start_epoch=config.start_epoch if config.deferred else 0,
        pairs=pairs,
        augment=_augmentation(config, data),
        steps=config.steps_per_epoch,
        replicas=replicas,
        own=own,
    )
    if (config.mix or batches.augment) and data.train.load is None:
        batches[0]  # What cannot be mixed or augmented is refused now, before the run has a folder.
    if pairs is not None:
        print(batches.describe_pairs(), flush=True)
    return batches


def _augmentation(config, data):
    if not config.augment and not config.cutout:
        return None
    images, given = data.train.examples, f"augment={config.augment!r}, cutout={config.cutout}"
    in_memory = data.train.load is None and isinstance(images, np.ndarray)
    if not in_memory or images.ndim != 4 or images.dtype != np.uint8:
        raise ValueError(
            "`augment` and `cutout` need images that are held in memory, as those of cifar10. "
            f"Received: {given} for {data.name}"
        )
    return functools.partial(
        augment,
        autoaugment=config.augment == "autoaugment",
        cutout=config.cutout,
        fill=np.rint(images.mean((0, 1, 2))).astype(int),  # Nearly 0 once it is normalized.
    )


def feed(batches: Batches) -> Any:
    """What `fit` takes: a prefetching tf.data pipeline on TensorFlow, the batches elsewhere.

    Images that are read from disk come through tf.data on every backend.
    """
    if batches.split.load is not None:
        from keras_ldam.experiments.datasets import images

        return images.stream(batches)
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    def generate():
        for index in range(len(batches)):
            yield batches[index]

    # Sequences are as long as the longest of the batch.
    ragged = isinstance(batches.split.examples, Ragged)

    def form(part):
        fixed = (None,) * (part.ndim - 1) if ragged else part.shape[1:]
        return tf.TensorSpec((None, *fixed), part.dtype)

    signature = keras.tree.map_structure(form, batches[0])
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))
    # Autotuning, on by default, ends an epoch only when its own thread next wakes, after
    # 10 ms · 2^k, which doubles the time of short epochs.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(8).with_options(options)


def naming_unreadable(batches: Batches) -> contextlib.AbstractContextManager:
    """Turns TensorFlow's error for an image that cannot be read into one that names the file."""
    if batches.split.load is None:
        return contextlib.nullcontext()
    from keras_ldam.experiments.datasets import images

    return images.naming_unreadable(batches)
