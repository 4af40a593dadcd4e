"""Balanced draws from a `tf.data.Dataset`, in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_ldam.counting import check_ends, count
from keras_ldam.sampling.draws import check_held, class_chances, tell
from keras_ldam.sampling.sources import NO_LABELS, ONE_HOT

NOT_ITS_COUNTS = "`counts` must be those of the examples in `data`, class by class."


def balanced_dataset(
    dataset: Any,
    counts: np.ndarray | None,
    power: float | Callable[[int], float],
    seed: int,
    label_of: Any,
    buffer: int,
    initial_epoch: int,
    verbose: int,
) -> Any:
    """Returns the balanced draws of `keras_ldam.balanced` for a `tf.data.Dataset`."""
    import tensorflow as tf  # Installed, since the dataset is its own.

    if label_of is not None and not callable(label_of):
        raise ValueError(
            "`labels` must be a function of an element's parts for a `tf.data.Dataset`. Received: "
            f"{type(label_of).__name__}"
        )
    tuples = isinstance(dataset.element_spec, tuple)

    def form(parts: tuple[Any, ...]) -> Any:
        """An element, of the arguments that tf.data makes of it."""
        return parts if tuples else parts[0]

    if label_of is None and (not tuples or len(dataset.element_spec) < 2):
        raise ValueError(NO_LABELS.format(received=f"elements {dataset.element_spec}"))

    def label(element: Any) -> Any:
        if label_of is not None:
            return label_of(*element) if tuples else label_of(element)
        return element[1]

    labels = dataset.map(lambda *parts: label(form(parts)))
    spec = labels.element_spec
    if not isinstance(spec, tf.TensorSpec):
        raise ValueError(NO_LABELS.format(received=f"labels in a {type(spec).__name__}"))
    if spec.dtype == tf.string:
        raise ValueError("Labels must be whole numbers. Received: strings; number the classes.")
    rank = spec.shape.rank
    one_hot = rank == 1 and spec.shape[0] not in (None, 1)
    if rank != 0 and not (rank == 1 and spec.shape[0] is not None):
        raise ValueError(
            "`data` must hold single examples, with a label that is one number or one-hot: call "
            f"`unbatch()` first. Received: labels {spec}"
        )
    check_ends("data", dataset)
    if counts is None:
        counts = count(labels.batch(4096), verbose=verbose)
        check_held(counts)
    elif one_hot and spec.shape[0] != len(counts):
        raise ValueError(
            f"`counts` must have one entry for each of the {spec.shape[0]} classes of the one-hot "
            f"labels. Received: {len(counts)}"
        )
    held, size = counts, int(counts.sum())
    number = int(dataset.cardinality())
    if number not in (size, tf.data.UNKNOWN_CARDINALITY):
        raise ValueError(f"{NOT_ITS_COUNTS} Received: {size} examples in place of {number}")

    def rates(epoch: int) -> np.ndarray:
        chances = class_chances(held, power(epoch) if callable(power) else power)
        return np.asarray(chances * (size / held))

    epochs = itertools.count(initial_epoch)

    def begin() -> Iterator[tuple[np.ndarray, float, int]]:
        epoch = next(epochs)
        generator = np.random.default_rng([seed, epoch])
        # Off the ends of [0, 1], so that rounding errors do not change the number of draws.
        yield rates(epoch), generator.uniform(1e-3, 1 - 1e-3), int(generator.integers(2**31))

    message = [f"{NOT_ITS_COUNTS} Received:", held]

    def too_few(*parts: Any) -> Any:
        with tf.control_dependencies([tf.debugging.Assert(False, message)]):
            return tf.constant(False)

    @tf.autograph.experimental.do_not_convert
    def one_pass(rates: Any, start: Any, seed: Any) -> Any:
        def times(state: Any, element: Any) -> Any:
            left, drawn = state
            own = tf.reshape(label(element), [-1])
            if one_hot:
                single = (tf.math.count_nonzero(own) == 1) & tf.reduce_all((own == 0) | (own == 1))
                with tf.control_dependencies([tf.debugging.Assert(single, [ONE_HOT, own])]):
                    own = tf.argmax(own)
            else:
                own = tf.cast(own[0], tf.int64)
            due = left + tf.gather(rates, own)
            whole = tf.cast(tf.floor(due), tf.int64)
            with tf.control_dependencies([tf.debugging.Assert(drawn + whole <= size, message)]):
                return (due - tf.floor(due), drawn + whole), (whole, element)

        def repeat(times: Any, element: Any) -> Any:
            return tf.data.Dataset.from_tensors(element).repeat(times)

        examples = dataset.scan((start, tf.constant(0, tf.int64)), times).flat_map(repeat)
        # Beside a global seed TensorFlow does not take a seed that is a tensor.
        tf.compat.v1.get_default_graph().seed = None
        return examples.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)

    if verbose:
        shown = np.round(rates(initial_epoch) * counts).astype(np.int64)
        tell(counts, shown, "an epoch", about=True)
    starts = tf.data.Dataset.from_generator(
        begin,
        output_signature=(
            tf.TensorSpec([len(counts)], tf.float64),
            tf.TensorSpec([], tf.float64),
            tf.TensorSpec([], tf.int64),
        ),
    )
    # What follows the draws is read only if they are fewer than `size`, and raises.
    drawn = starts.flat_map(one_pass).concatenate(dataset.filter(too_few)).take(size)
    drawn = drawn.apply(tf.data.experimental.assert_cardinality(size))
    # By files, TensorFlow's first choice, the one start could not be shared out.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return drawn.with_options(options)
