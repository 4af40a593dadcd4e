"""From a trained model to a SavedModel of raw texts, images or rows, which needs none of this.

    DIR/NAME/1/             a version, as TensorFlow Serving expects it
        saved_model.pb      the graphs, with
        variables/          their weights
        export.json         what was exported, for programs
        model_card.md       what was exported, for people

The graph holds tokenizer and vocabulary, image decoding, the model, the scale of the softmax, the
temperature, the shift to another prior, and the class names. Margins, class weights, augmentation
and dropout stay behind.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_ldam import adjustment, extras
from keras_ldam import counts as class_counts
from keras_ldam.export import version_folders
from keras_ldam.export.card import model_card
from keras_ldam.export.limits import MAX_IMAGE_PIXELS
from keras_ldam.hardware import versions
from keras_ldam.layers import Probabilities, gives_probabilities
from keras_ldam.losses import weighted_losses

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["CARD_FILE", "EXPORT_FILE", "MAX_IMAGE_PIXELS", "export_saved_model"]

EXPORT_FILE = "export.json"
CARD_FILE = "model_card.md"


def export_saved_model(
    model: keras.Model,
    output: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | Mapping[int, str],
    tokenizer: Callable[[tf.Tensor], tf.Tensor] | None = None,
    image_shape: tuple[int | None, int | None, int] | None = None,
    resize: bool = False,
    decode: Callable[[tf.Tensor], tf.Tensor] | None = None,
    columns: Mapping[str, str] | None = None,
    encode: Callable[[Mapping[str, tf.Tensor]], tf.Tensor] | None = None,
    scale: float | None = None,
    temperature: float = 1.0,
    counts: Sequence[int] | np.ndarray | Mapping[Any, int] | None = None,
    target_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    source_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    details: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Writes a model as a SavedModel that takes raw input and returns probabilities.

    Signatures, each for any batch size, including an empty batch:

    * `serving_default`: `text`, strings `(batch,)`, if there is a tokenizer; otherwise `image`,
      uint8 `(batch, height, width, channels)`.
    * `serving_bytes`, for images: `image_bytes`, encoded JPEG or PNG files, strings `(batch,)`.

    For tables `serving_default` has an argument for each column, float32 or strings `(batch,)`,
    called like the column, with `_` for signs that a name cannot have, and at its end where another
    column has that name: `export.json` lists them. A missing number is NaN, a missing text is
    empty.

    Outputs of both: `probabilities` and `logits`, float32 `(batch, num_classes)`, `class_index`,
    int64 `(batch,)`, and `label`, strings `(batch,)`. For pixels their shape begins with `(batch,
    height, width)` and there is no `label`; `export.json` lists the class names. Here

    probabilities = softmax(logits), logits_j = s z_j / T + log π_j - log ρ_j

    where z are the model's scores, s is `scale`, T is `temperature`, π is `target_prior` and ρ is
    `source_prior`; the last two terms are absent without a target prior. A model that
    `keras_ldam.adjust` has made brings all of this with it. One sigmoid is exported as two classes,
    the second being what it stands for; where there is one for each of several labels, `label` is
    the most probable one, and an output more, `present`, tells which are above 0.5. Bad input
    raises `InvalidArgumentError`: a text that is empty, too long, or not UTF-8; bytes that are not
    an image, or an image of more than 50 million pixels.

    What has one value per class may be a sequence in class order, or a dictionary or pandas Series
    whose keys are the classes or, except for `class_names`, the class names.

    Args:
        model: Built functional or sequential Keras model with one input and scores of shape
            `(batch, num_classes)`, or of images `(batch, height, width, num_classes)`, on the
            TensorFlow backend; not probabilities, unless the model comes from `keras_ldam.adjust`.
            A model of images must take pixels as they are stored, 0 to 255: put scaling into it,
            for example `keras.layers.Rescaling(1 / 255)`.
        output: `DIR/NAME` for the next version of that name (1, 2, …), or `DIR/NAME/VERSION`.
        class_names: Name of each class; the names must differ.
        tokenizer: For texts: maps strings `(batch,)` to the model's input with TensorFlow ops. A
            layer, such as `keras.layers.TextVectorization`, or a `tf.Module` if it holds a table.
            If it returns ids `(batch, time)`, 0 is padding, and a text of zeros only is refused.
            A model that takes strings needs none.
        image_shape: For images: height, width and channels. Defaults to those of the model's
            input.
        resize: Whether `serving_bytes` takes images of any size and resizes them (bilinear,
            antialiased, without keeping the aspect ratio) to that of the model; otherwise another
            size is an error.
        decode: For images: maps an encoded file, a string scalar, to the model's input, uint8, in
            place of decoding and resizing as above.
        columns: For tables: `"number"` or `"text"` for the name of each column of a row.
        encode: For tables: maps the columns, float32 or strings `(batch,)` by name, to the model's
            input with TensorFlow ops. A layer or a `tf.Module` if it holds a table of words. None:
            the model takes a vector of numbers, the columns in their order, and none is missing.
        scale: s > 0. Defaults to the scale of the loss that the model was compiled with (`LDAM`
            has one), or 1 if the loss has none.
        temperature: T > 0; see `keras_ldam.adjustment.fit_temperature`.
        counts: Training examples per class n. Defaults to those of the loss that the model was
            compiled with. They appear in the model card, and give the source prior.
        target_prior: Class frequencies where the model is used: one number above 0 per class,
            normalized to sum to 1. None: the scores stay as trained.
        source_prior: Class frequencies that the scores have learned. Defaults to n_j w_j, with the
            class weights w that `keras_ldam.DRW` has left in the loss of the model (so 1/K each
            after full balance), and n_j^(1-τ) w_j for a loss with logit adjustment τ. Without
            adjustment it is required where the weights are all 1, since a loss does not keep them
            through `load_weights` or another `compile`: pass `counts` after training without
            weights, and after re-sampling, or `class_weight` in `fit`, what these have made of the
            counts.
        details: More entries for `export.json`, under names that it does not use itself.
        card: Text of the model card, in place of the one made from the above.

    Returns:
        The folder of the version that was written.

    Raises:
        ValueError: if the model, a name, a number or a prior is not as above, or `output` exists.
            Nothing is written then.
        MissingExtraError: if TensorFlow is not installed.

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
    with extras.needed("export", by="export_saved_model"):
        from keras_ldam.export import graphs

    scores, layer = _scores_of(model)
    adjusted = layer is not None
    num_scores = int(scores.output_shape[-1])
    num_classes = max(2, num_scores)
    class_names = class_counts.check_names(class_names, num_classes)
    activation = adjustment.read(model, from_logits=True).activation
    several = activation == "sigmoid" and num_scores > 1
    if counts is None and not several:
        known = next((loss.counts for loss in weighted_losses(model)), None)
        # Of one label, `(1, 2)`, the sides are the classes.
        counts = known.reshape(-1) if known is not None and known.size == 2 else known
    if counts is not None and several:
        raise ValueError(
            "`counts` are for classes of which each example has one. Received: counts for a model "
            f"of {num_scores} labels"
        )
    if counts is not None:
        counts = class_counts.in_class_order("counts", counts, num_classes, class_names)
        counts = class_counts.check_counts(counts, class_names)
    if layer is None:
        class_counts.check_range("temperature", temperature, 0, np.inf, open_low=True)
        found = adjustment.adjust(
            model,
            scale=scale,
            temperature=temperature,
            counts=counts,
            target_prior=target_prior,
            source_prior=source_prior,
            activation=activation,
            from_logits=True,
            class_names=class_names,
        )
        layer, scale, temperature = found.layer, found.scale, float(temperature)
        target_prior, source_prior = (
            None if each is None else each.tolist() for each in (found.prior, found.source_prior)
        )
    else:
        for name, value in {
            "scale": scale,
            "temperature": None if temperature == 1 else temperature,
            "target_prior": target_prior,
            "source_prior": source_prior,
        }.items():
            if value is not None:
                raise ValueError(
                    f"The model is adjusted already: pass `{name}` to `keras_ldam.adjust` instead. "
                    f"Received: {name}={value}"
                )
        scale = layer.scale
    folder = version_folders.choose(Path(output))
    served = graphs.served(
        scores,
        graphs.Answer(scores, layer, class_names),
        tokenizer=tokenizer,
        image_shape=image_shape,
        resize=resize,
        decode=decode,
        columns=columns,
        encode=encode,
    )
    with version_folders.written_whole(folder) as aside:
        graphs.save(served, scores, aside)
        facts = {
            "name": folder.parent.name,
            "version": int(folder.name),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **served.describe(),
            "class_names": class_names,
            "counts": None if counts is None else counts.tolist(),
            "scale": scale,
            "temperature": temperature,
            "offsets": layer.offsets,
            "adjusted": adjusted,
            "of_pixels": len(scores.output_shape) == 4,
            "several_labels": layer.activation == "sigmoid" and num_scores > 1,
            "target_prior": target_prior,
            "source_prior": source_prior,
            "versions": versions(),
        }
        if taken := sorted(facts.keys() & (details or {}).keys()):
            raise ValueError(
                f"`details` must not reuse names of export.json. Received: {', '.join(taken)}"
            )
        facts.update(details or {})
        text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
        (aside / EXPORT_FILE).write_text(text, encoding="utf-8")
        text = model_card(facts) if card is None else card
        (aside / CARD_FILE).write_text(text, encoding="utf-8")
    return folder


# ----------------------------------------------------------------------------- the model


def _scores_of(model: keras.Model) -> tuple[keras.Model, Probabilities | None]:
    """The scores of a model that can be exported, and the layer that makes probabilities of them.

    Raises `ValueError` for another model.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "export_saved_model needs Keras' TensorFlow backend. Save the model as .keras and load "
            f"it with KERAS_BACKEND=tensorflow. Received: {keras.backend.backend()}"
        )
    inputs, outputs = (getattr(model, name, None) or () for name in ("inputs", "outputs"))
    if not inputs:
        raise ValueError(
            "The model must be a built functional or sequential model. Wrap any other: inputs = "
            "keras.Input(shape); model = keras.Model(inputs, model(inputs)). Received: "
            f"{type(model).__name__} {model.name!r}"
        )
    if len(inputs) > 1:
        raise ValueError(
            "The model must have one input; export one of several inputs as "
            "keras_ldam.with_probabilities(model).export(folder). Received: "
            f"{len(inputs)} inputs"
        )
    shape = model.output_shape
    ranks = (2, 4) if len(inputs[0].shape) == 4 else (2,)
    if (
        len(outputs) > 1
        or not isinstance(shape, tuple)
        or len(shape) not in ranks
        or shape[-1] is None
    ):
        raise ValueError(
            "The model must return scores of shape (batch, num_classes), or for pixels of images "
            "(batch, height, width, num_classes). Select them from other outputs: "
            'keras.Model(model.inputs, model.output["scores"]). Received: output of shape '
            f"{shape}"
        )
    scores, layer = adjustment.split(model)
    if layer is None and (
        gives_probabilities(model) or adjustment.wants_probabilities(getattr(model, "loss", None))
    ):
        raise ValueError(
            "The model must return scores, and this one returns probabilities, which a second "
            "softmax would flatten. Export the model without its last activation, or "
            "`keras_ldam.adjust(model).model`, which takes probabilities."
        )
    return scores, layer
