"""IMDB reviews, positive and negative, with most negative training reviews removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import imbalance, prepared, word_ids
from keras_ldam.experiments.datasets.data import Data

NETWORK = "bilstm"
DIVIDES_CORES = True
TITLE = "Imbalanced IMDB"
MEASURES = (
    ("class 1", "error on positive"),
    ("class 0", "error on negative"),
    ("mean_error", "mean error"),
    ("oracle_error", "at the best threshold"),
    ("auc", "AUC"),
)
CLASS_NAMES = ("negative", "positive")
embedding = word_ids.embedding


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

    kept = [texts[i] for i in train], labels[train]
    tested = _read(source, "test") if held is None else ([texts[i] for i in held], labels[held])
    kept, tested, vocabulary = word_ids.splits(config, kept, tested, vocabulary=vocabulary)
    return Data(
        name="imdb",
        class_names=CLASS_NAMES,
        train=kept,
        test=tested,
        test_name="test" if held is None else "validation",
        vocabulary=vocabulary,
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
