"""From a training split to what `fit` takes: the rule's batches, as a pipeline."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Data
from keras_ldam.experiments.datasets.sampling import Batches


def training_batches(
    config: Config, data: Data, *, replicas: int = 1, own: range | None = None
) -> Batches:
    """The training examples in the order, and at the class frequencies, of the config's rule.

    Args:
        config: A resolved config.
        data: The dataset.
        replicas: Number of shares that each batch is cut into.
        own: The shares of this process; all by default.
    """
    how, weighting = config.balancing
    return Batches(
        data.train,
        config.batch_size,
        seed=config.seed,
        counts=data.counts,
        resample=weighting if how == "sample" else None,
        beta=config.beta,
        start_epoch=config.start_epoch if config.deferred else 0,
        steps=config.steps_per_epoch,
        replicas=replicas,
        own=own,
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
