"""Models: networks whose last layer is given from outside."""

from __future__ import annotations

import keras

from keras_ldam.config import COSINE_LOSSES, Config
from keras_ldam.datasets.data import Data
from keras_ldam.layers import CosineDense

__all__ = ["build", "head"]


def head(config: Config, num_classes: int) -> keras.layers.Layer:
    """The last layer that the config's loss needs: cosines for a margin, logits otherwise."""
    if config.loss in COSINE_LOSSES:
        return CosineDense(num_classes, name="cosines")
    return keras.layers.Dense(num_classes, dtype="float32", name="logits")


def build(config: Config, data: Data) -> keras.Model:
    """The network of the config's dataset, with the head of its loss, not compiled."""
    last = head(config, len(data.class_names))
    if config.dataset == "digits":
        from keras_ldam.models.small_cnn import small_cnn

        return small_cnn(head=last, input_shape=data.train.examples.shape[1:])
    if config.dataset == "imdb":
        from keras_ldam.models.bilstm import bilstm

        return bilstm(head=last, config=config, data=data)
    if config.dataset in ("inaturalist2018", "folder"):
        shape = (config.image_size, config.image_size, 3)
        if config.network == "small_cnn":
            if config.weights:
                raise ValueError("weights are for network resnet50; received small_cnn.")
            from keras_ldam.models.small_cnn import small_cnn

            return small_cnn(head=last, input_shape=shape)
        from keras_ldam.models.resnet50 import resnet50

        return resnet50(head=last, input_shape=shape, weights=config.weights)
    raise ValueError(f"no network for dataset {config.dataset!r}.")
