"""Models: networks whose last layer is given from outside."""

from __future__ import annotations

import math

import keras

from keras_ldam.experiments.config import COSINE_LOSSES, IMAGE_DATASETS, Config
from keras_ldam.experiments.datasets.data import Data

# All of them, so that Keras knows their layers when it loads the model of a finished run.
from keras_ldam.experiments.models import bilstm, resnet32, resnet50, small_cnn
from keras_ldam.layers import CosineDense

__all__ = ["build", "head"]


def head(config: Config, num_classes: int) -> keras.layers.Layer:
    """The last layer that the config's loss needs: cosines for a margin, logits otherwise.

    Under the sigmoid focal loss all classes start at a probability of 1/K, as in Cui et al. (2019):
    from 1/2 the K - 1 negatives of every example would rule the first steps.

    Logits of CIFAR start from He's normal distribution, as in the official code.
    """
    if config.loss in COSINE_LOSSES:
        return CosineDense(num_classes, name="cosines")
    bias = -math.log(num_classes - 1) if config.loss == "sigmoid_focal" else 0.0
    of_cifar = config.dataset in ("cifar10", "cifar100")
    return keras.layers.Dense(
        num_classes,
        kernel_initializer=resnet32.kaiming_normal(config.seed) if of_cifar else "glorot_uniform",
        bias_initializer=keras.initializers.Constant(bias),
        dtype="float32",
        name="logits",
    )


def build(config: Config, data: Data) -> keras.Model:
    """The network of the config's dataset, with the head of its loss, not compiled."""
    last = head(config, len(data.class_names))
    if config.dataset == "digits":
        return small_cnn.small_cnn(head=last, input_shape=data.train.examples.shape[1:])
    if config.dataset == "imdb":
        return _bilstm(last, config, data)
    if config.dataset in ("cifar10", "cifar100"):
        return resnet32.resnet32(head=last, seed=config.seed)
    if config.dataset in IMAGE_DATASETS:
        shape = (config.image_size, config.image_size, 3)
        if config.network == "small_cnn":
            if config.weights:
                raise ValueError("weights are for network resnet50; received small_cnn.")
            return small_cnn.small_cnn(head=last, input_shape=shape)
        return resnet50.resnet50(head=last, input_shape=shape, weights=config.weights)
    raise ValueError(f"no network for dataset {config.dataset!r}.")


def _bilstm(last, config, data):
    from keras_ldam.experiments import word_vectors

    reviews, known = data.train.examples, len(data.vocabulary) + 2
    embedding = word_vectors.prepared(
        reviews.values,
        reviews.lengths,
        data.train.labels,
        known,
        size=config.embedding_dim,
        seed=config.seed,
    )
    return bilstm.bilstm(
        head=last,
        vocabulary_size=known,
        units=config.units,
        word_dropout=config.dropout,
        layer_dropout=config.dropout,
        head_dropout=config.head_dropout,
        embedding=embedding,
    )
