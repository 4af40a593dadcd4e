"""From texts in memory to splits of word ids, and the word vectors that a network starts from.

A pretrained network has words of its own, and is given the texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from keras_ldam.experiments import word_vectors
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Data, Ragged, Split

_COMPILED_LENGTH = 64
"""Batches are padded to a multiple of so many words where XLA compiles each length anew.

A compilation takes many seconds, and 256 words are four lengths. Elsewhere padding only costs time.
"""

Texts = tuple[Sequence[bytes | str], np.ndarray]
"""Texts and their labels."""


def splits(
    config: Config, train: Texts, test: Texts, *, vocabulary: Sequence[str] | None = None
) -> tuple[Split, Split, tuple[str, ...] | None]:
    """Returns training and test texts as word ids, and the known words.

    For a pretrained network texts stay texts, and no words are known.

    Args:
        config: Gives the size of the vocabulary, and how much of a text is read.
        train: The training texts that are kept, with labels.
        test: The texts that results are reported on, with labels.
        vocabulary: The known words. Defaults to those of the training texts.

    Raises:
        ValueError: if no training text has a word, or a backend other than TensorFlow is to read
            texts.
    """
    if config.pretrained:
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                "a pretrained network for texts needs Keras' TensorFlow backend. Received: "
                f"{keras.backend.backend()}"
            )
        return (*(Split(_encoded(texts), labels) for texts, labels in (train, test)), None)
    # Imported here, since it loads TensorFlow.
    from keras_ldam.experiments import text

    if vocabulary is None:
        vocabulary = text.build_vocabulary(train[0], config.vocabulary_size)
    if not vocabulary:
        raise ValueError("the training texts have no words.")
    tokenizer = text.Tokenizer(vocabulary, config.max_tokens)
    compiles = keras.backend.backend() == "jax" or config.jit == "on"
    multiple = _COMPILED_LENGTH if compiles else 1
    encoded = (
        Split(Ragged.from_sequences(tokenizer.encode(texts), multiple), labels)
        for texts, labels in (train, test)
    )
    return (*encoded, tuple(vocabulary))


def _encoded(texts):
    """Texts as bytes, in an array that pads none of them."""
    encoded = np.empty(len(texts), dtype=object)
    encoded[:] = [text.encode() if isinstance(text, str) else text for text in texts]
    return encoded


def embedding(config: Config, data: Data) -> np.ndarray:
    """Word vectors to start from, by counting in the kept training texts."""
    texts = data.train.examples
    return word_vectors.initial_embedding(
        texts.values,
        texts.lengths,
        data.train.labels,
        len(data.vocabulary) + 2,
        size=config.embedding_dim,
        seed=config.seed,
    )
