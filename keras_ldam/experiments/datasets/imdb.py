"""IMDB reviews, positive and negative, with most negative training reviews removed."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.experiments import word_vectors
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import imbalance, prepared
from keras_ldam.experiments.datasets.data import Data, Ragged, Split

NETWORK = "bilstm"
DIVIDES_CORES = True
TITLE = "Imbalanced IMDB"
MEASURES = (
    ("class 1", "error on positive"),
    ("class 0", "error on negative"),
    ("mean_error", "mean error"),
)
CLASS_NAMES = ("negative", "positive")
_COMPILED_LENGTH = 64
"""Batches are padded to a multiple of so many words where XLA compiles each length anew.

A compilation takes many seconds, and 256 words are four lengths. Elsewhere padding only costs time.
"""


def load(config: Config, *, vocabulary: Sequence[str] | None = None) -> Data:
    """Returns the reviews as word ids.

    Keeps one in `imbalance_ratio` of the 12,500 negative training reviews, chosen by the seed. The
    test split is whole.

    Args:
        config: See `Config`.
        vocabulary: The known words. Defaults to those of the kept training reviews.
    """
    source = prepared.builder("imdb_reviews", config.data_dir)
    texts, labels = _read(source, "train")
    positives = int(np.sum(labels == 1))
    ratio = 1 if config.imbalance == "none" else config.imbalance_ratio
    # Both profiles are the same for two classes; the frequent one is the second here.
    counts = class_counts.step_counts(2, positives, ratio)[::-1]
    train, held = imbalance.select(labels, counts, config)

    # Imported here, since it loads TensorFlow.
    from keras_ldam.experiments import text

    if vocabulary is None:
        vocabulary = text.build_vocabulary((texts[i] for i in train), config.vocabulary_size)
    tokenizer = text.Tokenizer(vocabulary, config.max_tokens)
    compiles = keras.backend.backend() == "jax" or config.jit == "on"
    multiple = _COMPILED_LENGTH if compiles else 1

    def encoded(texts, labels):
        return Split(Ragged.from_sequences(tokenizer.encode(texts), multiple), labels)

    kept = encoded([texts[i] for i in train], labels[train])
    if held is None:
        test = encoded(*_read(source, "test"))
    else:
        test = encoded([texts[i] for i in held], labels[held])
    return Data(
        name="imdb",
        class_names=CLASS_NAMES,
        train=kept,
        test=test,
        test_name="test" if held is None else "validation",
        vocabulary=vocabulary,
    )


def embedding(config: Config, data: Data) -> np.ndarray:
    """Word vectors to start from, by counting in the kept training reviews."""
    reviews = data.train.examples
    return word_vectors.initial_embedding(
        reviews.values,
        reviews.lengths,
        data.train.labels,
        len(data.vocabulary) + 2,
        size=config.embedding_dim,
        seed=config.seed,
    )


def _read(source, split):
    """Texts and labels of a split, in the order of its files."""
    import tensorflow_datasets as tfds

    read = source.as_dataset(
        split=split,
        shuffle_files=False,
        as_supervised=True,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
        batch_size=5000,
    )
    batches = list(tfds.as_numpy(read))
    texts = [text for batch, _ in batches for text in batch]
    return texts, np.concatenate([labels for _, labels in batches]).astype(np.int32)
