"""From a trained model to a SavedModel that takes raw reviews or images and needs none of this.

    DIR/NAME/1/             a version, as TensorFlow Serving expects it
        saved_model.pb      the graphs, with
        variables/          their weights
        export.json         what was exported, for programs
        model_card.md       what was exported, for people

Inside the graph: tokenizer and vocabulary, image decoding, the model, the softmax's scale, the
temperature, the shift to another prior, the class names. Left behind: margins, class weights,
augmentation, dropout.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import math
import numbers
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_ldam import counts as class_counts
from keras_ldam.export import graphs, version_folders
from keras_ldam.export.card import model_card
from keras_ldam.hardware import versions
from keras_ldam.layers import gives_cosines, gives_probabilities
from keras_ldam.losses import ClassWeightedLoss

EXPORT_FILE = "export.json"
CARD_FILE = "model_card.md"


def export_saved_model(
    model: keras.Model,
    output: str | os.PathLike,
    *,
    class_names: Sequence[str],
    tokenizer: Callable[[tf.Tensor], tf.Tensor] | None = None,
    image_shape: tuple[int | None, int | None, int] | None = None,
    resize: bool = False,
    decode: Callable[[tf.Tensor], tf.Tensor] | None = None,
    scale: float | None = None,
    temperature: float = 1.0,
    counts: Sequence[int] | np.ndarray | None = None,
    target_prior: Sequence[float] | None = None,
    source_prior: Sequence[float] | None = None,
    details: dict | None = None,
    card: str | None = None,
) -> Path:
    """Writes a model as a SavedModel that takes raw input and answers with probabilities.

    Signatures, each for any batch size, an empty batch included:

    * `serving_default`: `text`, strings `[batch]`, if there is a tokenizer; else `image`, uint8
      `[batch, height, width, channels]`.
    * `serving_bytes`, for images: `image_bytes`, encoded JPEG or PNG files, strings `[batch]`.

    Outputs of both: `probabilities` float32 `[batch, K]`, `logits` float32 `[batch, K]`,
    `class_index` int64 `[batch]`, `label` string `[batch]`, with

    probabilities = softmax(logits), logits_j = s z_j / T + log π_j - log ρ_j

    where z are the model's scores, s is `scale`, T is `temperature`, π is `target_prior` and ρ is
    `source_prior`; without a target prior the last two terms are not there. Bad input (an empty
    or over-long text, bytes that are not UTF-8 or not an image) raises `InvalidArgumentError`.

    Args:
        model: Built Keras model with one input and scores `[batch, K]`, no probabilities, on the
            TensorFlow backend. One of images must take pixels as they are stored, 0 to 255:
            scaling belongs into it, by `keras.layers.Rescaling(1 / 255)` say.
        output: `DIR/NAME` for the next version of that name (1, 2, …), or `DIR/NAME/VERSION`.
        class_names: Name of each class, in class order; K different ones.
        tokenizer: For text: turns strings `[batch]` into the model's input with TensorFlow ops, as
            `keras_ldam.experiments.text.Tokenizer` does. A layer or a `tf.Module`, if it holds a table. Where
            it gives ids `[batch, time]`, 0 pads, and a text of zeros only is refused. A model that
            takes strings needs none.
        image_shape: For images: height, width and channels; by default those of the model's input.
        resize: Whether `serving_bytes` takes images of any size and resizes them (bilinear,
            antialiased, both sides apart); otherwise another size is an error.
        decode: For images: turns an encoded file, a string scalar, into the model's input, in
            place of the above; such as `datasets.images.centre_image`.
        scale: s > 0. By default that of the loss the model was compiled with (`LDAM` has one), or
            1 where the loss has none.
        temperature: T > 0; see `keras_ldam.adjustment`.
        counts: Training examples per class n, by default those of the loss the model was compiled
            with; they go into the card, and give the source prior.
        target_prior: How frequent the classes are where the model is used: K numbers > 0, which
            are normalised to sum to 1. None: the scores stay as trained.
        source_prior: The class frequencies that the scores have learned; by default n_j w_j, with
            the class weights w of the loss the model was compiled with, as `keras_ldam.DRW` leaves
            them (1/K each, if to full balance). After re-sampling, or `class_weight` in `fit`, say
            what these have made of the counts.
        details: What else `export.json` is to hold.
        card: Text of the model card; made from the above by default.

    Returns:
        The folder of the version that was written.

    Raises:
        ValueError: for a model, a name, a number or a prior that is not as above, or an output
            folder that exists. Nothing is written then.

    Example:

    ```python
    model.compile("adam", loss=keras_ldam.LDAM(counts))
    model.fit(images, labels)
    keras_ldam.export_saved_model(model, "exports/birds", class_names=names)
    ```

    References:
        Guo et al., 2017, "On Calibration of Modern Neural Networks", for the temperature; Saerens
        et al., 2002, "Adjusting the Outputs of a Classifier to New a Priori Probabilities".
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "export_saved_model needs Keras' TensorFlow backend; this is "
            f"{keras.backend.backend()}. Save the model as .keras and load it with "
            "KERAS_BACKEND=tensorflow."
        )
    class_names = _check_names(model, class_names)
    scale = _scale_of(model) if scale is None else _check_positive("scale", scale)
    temperature = _check_positive("temperature", temperature)
    num_classes = len(class_names)
    loss = _weighted_loss_of(model)
    if counts is None and loss is not None:
        counts = loss.counts
    if counts is not None:
        counts = class_counts.check_counts(counts)
        _check_length("counts", counts, num_classes)
    if target_prior is not None and source_prior is None and counts is not None:
        source_prior = counts * (1.0 if loss is None else loss.class_weights.numpy())
    shift, target_prior, source_prior = prior_shift(
        num_classes, counts=counts, target_prior=target_prior, source_prior=source_prior
    )
    folder = version_folders.choose(Path(output))
    answer = graphs.Answer(model, scale / temperature, shift, class_names)
    if tokenizer is None and model.inputs and model.inputs[0].dtype == "string":
        shape = tuple(model.inputs[0].shape[1:])  # The model has its own tokenizer.
        if shape in ((), (1,)):
            tokenizer = tf.identity if not shape else (lambda text: tf.expand_dims(text, -1))
    if tokenizer is not None:
        served = graphs.ServedText(answer, tokenizer)
    else:
        served = graphs.ServedImages(answer, _image_shape(model, image_shape), resize, decode)
    facts = {
        "name": folder.parent.name,
        "version": int(folder.name),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **served.describe(),
        "class_names": class_names,
        "counts": None if counts is None else counts.tolist(),
        "scale": scale,
        "temperature": temperature,
        "target_prior": target_prior,
        "source_prior": source_prior,
        "versions": versions(),
        **(details or {}),
    }

    def write(aside):
        with graphs.portable(model):
            try:
                tf.saved_model.save(served, str(aside), signatures=served.signatures())
            except AssertionError as error:
                if "untracked" not in str(error):
                    raise
                raise ValueError(
                    "the tokenizer or the model uses a table that would not be saved with it; pass "
                    "the layer or tf.Module that holds the table, not a function around it."
                ) from error
        (aside / EXPORT_FILE).write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
        (aside / CARD_FILE).write_text(card if card is not None else model_card(facts))

    version_folders.write_whole(folder, write)
    return folder


def prior_shift(
    num_classes: int,
    *,
    counts: np.ndarray | None = None,
    target_prior: Sequence[float] | None = None,
    source_prior: Sequence[float] | None = None,
) -> tuple[np.ndarray, list[float] | None, list[float] | None]:
    """What is added to the logits to answer under another prior: log π_j - log ρ_j.

    Args:
        num_classes: K.
        counts: Training examples per class; they give ρ where `source_prior` is None.
        target_prior: π, K numbers > 0, normalised here; None: no shift.
        source_prior: ρ, likewise.

    Returns:
        The shift, float32 `[K]`; the normalised target prior and source prior, both None without
        a target prior.

    Raises:
        ValueError: for a prior that is not K finite numbers > 0, or without any source prior.
    """
    if target_prior is None:
        if source_prior is not None:
            raise ValueError("source_prior is of use with a target_prior only; none was given.")
        return np.zeros(num_classes, np.float32), None, None
    if source_prior is None:
        if counts is None:
            raise ValueError(
                "target_prior needs the counts of the training examples, or a source_prior."
            )
        source_prior = np.asarray(counts, dtype=np.float64)
    target = _check_prior("target_prior", target_prior, num_classes)
    source = _check_prior("source_prior", source_prior, num_classes)
    shift = np.log(target) - np.log(source)
    return shift.astype(np.float32), target.tolist(), source.tolist()


# ----------------------------------------------------------------------------- checks
def _check_names(model, class_names):
    names = [str(name) for name in class_names]
    if not model.built or len(getattr(model, "inputs", None) or []) > 1:
        raise ValueError("the model must be built and have one input; call it on a batch first.")
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or isinstance(shape[0], tuple):
        raise ValueError(f"the model must give scores [batch, classes]; its output is {shape}.")
    if gives_probabilities(model) or _takes_probabilities(getattr(model, "loss", None)):
        raise ValueError(
            "the model must give scores, and this one ends in probabilities, which a second "
            "softmax would level; export it without that activation."
        )
    _check_length("class_names", names, shape[-1])
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"class_names must differ; {twice!r} is there more than once.")
    return names


def _takes_probabilities(loss):
    """Whether it is a cross-entropy of Keras' that is not told that it gets scores."""
    try:
        loss = keras.losses.get(loss)
    except (TypeError, ValueError):  # Several, or a function of one's own.
        return False
    if callable(loss) and not isinstance(loss, keras.losses.Loss):
        names = ("sparse_categorical", "categorical", "binary")
        return loss in [getattr(keras.losses, f"{name}_crossentropy") for name in names]
    return getattr(loss, "from_logits", None) is False


def _check_length(name, values, num_classes):
    if len(values) != num_classes:
        raise ValueError(
            f"{name} has {len(values)} entries, but the model has {num_classes} classes."
        )


def _check_positive(name, value):
    if not (isinstance(value, numbers.Real) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0; received {value!r}.")
    return float(value)


def _check_prior(name, prior, num_classes):
    try:
        values = np.asarray(prior, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be {num_classes} numbers in class order; received {prior!r}."
        ) from None
    if values.shape != (num_classes,) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"{name} must be {num_classes} finite numbers above 0, one for each class; received "
            f"{np.array2string(values, threshold=12)}."
        )
    return values / values.sum()


def _weighted_loss_of(model):
    """The loss with class weights that a model was compiled with, or None."""
    losses = keras.tree.flatten(getattr(model, "loss", None))
    return next(
        (
            loss
            for loss in losses
            if isinstance(loss, ClassWeightedLoss) and loss.counts is not None
        ),
        None,
    )


def _scale_of(model):
    scales = [
        loss.scale
        for loss in keras.tree.flatten(getattr(model, "loss", None))
        if getattr(loss, "scale", None) is not None
    ]
    if scales:
        return float(scales[0])
    if gives_cosines(model):
        raise ValueError(
            "the model gives cosines, and was not compiled with a loss that has a scale, so that "
            "of its softmax is not known; give scale=, the one that its loss had."
        )
    return 1.0


def _image_shape(model, image_shape):
    shape = tuple(model.input_shape[1:]) if image_shape is None else tuple(image_shape)
    if len(shape) != 3 or not isinstance(shape[2], int):
        raise ValueError(
            f"images must be [height, width, channels]; the model's input is {shape}. For text "
            "give a tokenizer; for anything else put keras.layers.Rescaling(scale) and Softmax() "
            "after the scores, and use Keras' own model.export."
        )
    return shape
