"""Models: a network for the data, and the head that the loss needs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_ldam.experiments import datasets, ngrams, row_encoder
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets.data import Data, Ragged
from keras_ldam.experiments.models import lora
from keras_ldam.experiments.models.bilateral import bilateral, is_bilateral, one_image
from keras_ldam.experiments.models.bilstm import bilstm
from keras_ldam.experiments.models.mlp import mlp
from keras_ldam.experiments.models.pretrained import freeze, holds_weights_only, pretrained
from keras_ldam.experiments.models.resnet32 import kaiming_normal, resnet32, resnet32_branches
from keras_ldam.experiments.models.resnet50 import resnet50, resnet50_branches
from keras_ldam.experiments.models.small_cnn import small_cnn, small_cnn_branches
from keras_ldam.experiments.models.soft_accuracy import soft_accuracy
from keras_ldam.experiments.models.table_mlp import table_mlp
from keras_ldam.experiments.models.whitened_cnn import whitened_cnn
from keras_ldam.layers import CosineDense
from keras_ldam.losses import LOSSES
from keras_ldam.wrappers import TwoPasses

__all__ = ["NETWORKS", "Network", "build", "head", "named", "of_one_input", "soft_accuracy"]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that configs call by a name.

    Args:
        form: What it reads: `"images"`, `"vectors"`, `"rows"` of tables or `"sequences"`.
        build: Makes it, from a config, the data and the last layer.
        kernel: Makes the initializer of a last layer of logits, from a seed. Defaults to Keras'.
        branches: Makes its parts for rule bilateral, from a config and the data; see
            `bilateral.bilateral`. None where it cannot have two branches.
    """

    form: str
    build: Callable[[Config, Data, keras.layers.Layer], keras.Model]
    kernel: Callable[[int], keras.initializers.Initializer] | None = None
    branches: Callable[[Config, Data], tuple[keras.Model, Callable[[Any], Any]]] | None = None


def build(config: Config, data: Data) -> keras.Model:
    """Builds the network of a config for its data, with the head of its loss, not compiled.

    By rule bilateral it has two branches, and the inputs of `bilateral.bilateral`.

    Raises:
        ValueError: if the network is unknown, or does not fit the data or the config.
    """
    declared = datasets.declared(config.dataset)
    num_classes = len(data.class_names)
    paired = config.balancing[0] == "pair"
    if declared.network is not None and not config.network and not config.pretrained:
        _check_branches(None, paired)
        return declared.network(config, data, head(config, num_classes))
    form = _form(data)
    name = config.network or declared.NETWORK or _DEFAULTS.get(form, "")
    if config.pretrained and not config.network and not _is_resnet50(config, name):
        _check_branches(None, paired)
        last = head(config, num_classes)
        shape = _shape(config, data, form)
        model = pretrained(config, form=form, shape=shape, head=last)
        _freeze(config, model, last)
        return model
    network = named(name)
    if config.pretrained and name != "resnet50":
        raise ValueError(
            "`pretrained` goes with network resnet50, or with an empty `network`. Received: "
            f"pretrained={config.pretrained!r}, network={name!r}"
        )
    if network.form != form:
        fitting = [known for known, other in NETWORKS.items() if other.form == form]
        raise ValueError(
            f"`network` must be one of {', '.join(fitting)} for {form}, as in {data.name}. "
            f"Received: network={name!r}"
        )
    last = head(config, num_classes, kernel=network.kernel)
    if paired:
        _check_branches(network, paired)
        model = bilateral(*network.branches(config, data), last)
    else:
        model = network.build(config, data, last)
    if config.pretrained:
        _freeze(config, model, last)
    return model


def of_one_input(model: keras.Model) -> keras.Model:
    """Returns the network that a trained model is evaluated, saved and served as.

    It shares the layers of the model: another one where a step takes more than an example, the same
    where it takes no more.

    Args:
        model: A model of `build`, or what training has wrapped around one.
    """
    if isinstance(model, TwoPasses):
        model = model.model
    return one_image(model) if is_bilateral(model) else model


def head(
    config: Config,
    num_classes: int,
    *,
    kernel: Callable[[int], keras.initializers.Initializer] | None = None,
) -> keras.layers.Layer:
    """Makes the last layer that a config's loss needs: cosines for a margin, logits otherwise.

    Under the sigmoid focal loss all classes start at a probability of 1/K, as in Cui et al. (2019):
    from 1/2 the K - 1 negatives of every example would dominate the first steps.

    Args:
        config: A resolved config.
        num_classes: Number of classes K.
        kernel: Makes the initializer of logits, from a seed. Defaults to Keras'.
    """
    if LOSSES[config.loss].wants_cosines:
        return CosineDense(num_classes, use_bias=config.head_bias, name="cosines")
    bias = -math.log(num_classes - 1) if config.loss == "sigmoid_focal" else 0.0
    return keras.layers.Dense(
        num_classes,
        kernel_initializer="glorot_uniform" if kernel is None else kernel(config.seed),
        bias_initializer=keras.initializers.Constant(bias),
        dtype="float32",
        name="logits",
    )


def named(name: str) -> Network:
    """Returns a network of `NETWORKS`; raises `ValueError` for an unknown name."""
    if name not in NETWORKS:
        raise ValueError(
            f"`network` must be one of {', '.join(NETWORKS)}. Received: network={name!r}"
        )
    return NETWORKS[name]


def _freeze(config, model, head):
    if config.lora:
        lora.enable(model, head, config.lora)
    else:
        freeze(model, head, config.frozen)


def _check_branches(network, paired):
    if paired and (network is None or network.branches is None):
        fitting = [name for name, known in NETWORKS.items() if known.branches is not None]
        raise ValueError(
            f"`rule` bilateral needs a network that can have two branches: {', '.join(fitting)}."
        )


def _form(data):
    examples = data.train.examples
    if isinstance(examples, Ragged):
        return "sequences"
    if data.columns is not None:
        return "rows"
    if examples.dtype == object:
        return "texts"
    if data.train.load is not None or (examples.ndim == 4 and examples.dtype == np.uint8):
        return "images"
    if examples.ndim == 2 and examples.dtype.kind in "fiu":
        return "vectors"
    raise ValueError(
        f"{data.name}: examples must be uint8 images `(n, height, width, channels)`, vectors "
        "`(n, features)` or a Ragged, unless the dataset's file has a function "
        f"`network(config, data, head)`. Received: {examples.dtype}, shape {examples.shape}"
    )


def _is_resnet50(config, name):
    return name == "resnet50" and holds_weights_only(config.pretrained)


def _shape(config, data, form):
    """The shape of one example."""
    if form == "images":
        return _image_shape(config, data)
    fixed = {"texts": (), "sequences": (None,), "rows": ()}
    return fixed[form] if form in fixed else data.train.examples.shape[1:]


def _image_shape(config, data):
    if data.train.load is not None:
        return (config.image_size, config.image_size, 3)
    return data.train.examples.shape[1:]


def _small_cnn(config, data, head):
    return small_cnn(head=head, input_shape=_image_shape(config, data))


def _small_cnn_branches(config, data):
    return small_cnn_branches(input_shape=_image_shape(config, data))


def _resnet32_branches(config, data):
    return resnet32_branches(input_shape=_image_shape(config, data), seed=config.seed)


def _resnet50_branches(config, data):
    shape = _image_shape(config, data)
    return resnet50_branches(input_shape=shape, pretrained=config.pretrained)


def _resnet32(config, data, head):
    return resnet32(head=head, input_shape=_image_shape(config, data), seed=config.seed)


def _resnet50(config, data, head):
    shape = _image_shape(config, data)
    return resnet50(head=head, input_shape=shape, pretrained=config.pretrained)


def _whitened_cnn(config, data, head):
    some = np.random.default_rng(0).permutation(len(data.train))[:_WHITENED_BY]
    read = data.train.take(np.sort(some)).batches(_WHITENED_BY)
    images = np.concatenate([batch for batch, _ in read])
    return whitened_cnn(head=head, images=images, seed=config.seed)


def _mlp(config, data, head):
    return mlp(head=head, examples=data.train.examples)


def _table_mlp(config, data, head):
    numbers, ids = row_encoder.width(data.columns)
    rows = data.train.examples
    some = np.random.default_rng(0).permutation(len(rows))[:_ADAPTED_TO]
    return table_mlp(head=head, examples=rows[np.sort(some)], numbers=numbers, ids=ids)


def _bilstm(config, data, head, *, with_ngrams=False):
    embedding = datasets.declared(config.dataset).embedding
    if data.vocabulary is not None:
        known = len(data.vocabulary) + 2
    else:
        ids = (split.examples.values for split in (data.train, data.test))
        known = 1 + max(int(each.max(initial=1)) for each in ids)
    counted = None
    if with_ngrams:
        texts = data.train.examples
        counted = ngrams.count(texts.values, texts.lengths, data.train.labels, known)
    return bilstm(
        head=head,
        vocabulary_size=known,
        embedding_size=config.embedding_dim,
        units=config.units,
        word_dropout=config.dropout,
        layer_dropout=config.dropout,
        head_dropout=config.head_dropout,
        projection=config.projection,
        embedding=None if embedding is None else embedding(config, data),
        known_ngrams=counted,
    )


def _bilstm_ngrams(config, data, head):
    return _bilstm(config, data, head, with_ngrams=True)


_ADAPTED_TO = 100_000
"""Training rows of a table whose statistics the network keeps, drawn at random."""

_WHITENED_BY = 5000
"""Training images whose patches a network is whitened by, drawn at random."""

NETWORKS = {
    "small_cnn": Network("images", _small_cnn, branches=_small_cnn_branches),
    "whitened_cnn": Network("images", _whitened_cnn),
    # Its logits start as in the official code.
    "resnet32": Network("images", _resnet32, kaiming_normal, _resnet32_branches),
    "resnet50": Network("images", _resnet50, branches=_resnet50_branches),
    "mlp": Network("vectors", _mlp),
    "table_mlp": Network("rows", _table_mlp),
    "bilstm": Network("sequences", _bilstm),
    "bilstm_ngrams": Network("sequences", _bilstm_ngrams),
}
"""Every network by the name that `--network` takes."""

_DEFAULTS = {"images": "small_cnn", "vectors": "mlp", "rows": "table_mlp"}
_DEFAULTS |= {"sequences": "bilstm"}
"""The network for each form of examples, where neither config nor dataset names one."""
