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

import contextlib
import dataclasses
import datetime
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_ldam import counts as class_counts
from keras_ldam import datasets, training
from keras_ldam.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    prior_weights,
    softmax,
)
from keras_ldam.config import COSINE_LOSSES, IMAGE_DATASETS
from keras_ldam.layers import CosineDense
from keras_ldam.results import RunFolder, versions

EXPORT_FILE = "export.json"
CARD_FILE = "model_card.md"
MAX_TEXT_BYTES = 100_000
"""Longer texts are refused: the longest review of IMDB has 14,000 bytes."""
_CARD_CLASSES = 100
"""How many classes the model card lists."""


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
        model: Built Keras model with one input and scores `[batch, K]`, on the TensorFlow backend.
        output: `DIR/NAME` for the next version of that name (1, 2, …), or `DIR/NAME/VERSION`.
        class_names: Name of each class, in class order; K different ones.
        tokenizer: For text: turns strings `[batch]` into the model's input with TensorFlow ops, as
            `keras_ldam.text.Tokenizer` does. A `tf.Module`, if it holds a table. Where it gives
            ids `[batch, time]`, 0 pads, and a text of zeros only is refused.
        image_shape: For images: height, width and channels; by default those of the model's input.
        resize: Whether `serving_bytes` takes images of any size and resizes them (bilinear,
            antialiased, both sides apart); otherwise another size is an error.
        decode: For images: turns an encoded file, a string scalar, into the model's input, in
            place of the above; such as `datasets.images.centre_image`.
        scale: s > 0. By default that of the loss the model was compiled with (`LDAM` has one), or
            1 where the loss has none.
        temperature: T > 0; see `keras_ldam.calibration`.
        counts: Training examples per class; they give the source prior, and go into the card.
        target_prior: How frequent the classes are where the model is used: K numbers > 0, which
            are normalised to sum to 1. None: the scores stay as trained.
        source_prior: The class frequencies that the scores have learned; by default those of
            `counts`. A model that was trained with re-weighting or re-sampling has learned other
            ones (1/K each, if it was to full balance).
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
    if counts is not None:
        counts = class_counts.check_counts(counts)
        _check_length("counts", counts, num_classes)
    shift, target_prior, source_prior = prior_shift(
        num_classes, counts=counts, target_prior=target_prior, source_prior=source_prior
    )
    folder = _version_folder(Path(output))
    answer = _Answer(model, scale / temperature, shift, class_names)
    if tokenizer is not None:
        served = _ServedText(answer, tokenizer)
    else:
        served = _ServedImages(answer, _image_shape(model, image_shape), resize, decode)
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
        with _portable(model):
            tf.saved_model.save(served, str(aside), signatures=served.signatures())
        (aside / EXPORT_FILE).write_text(json.dumps(facts, indent=1, allow_nan=False) + "\n")
        (aside / CARD_FILE).write_text(card if card is not None else _card(facts))

    _write_folder(folder, write)
    return folder


def export(
    run_dir: str | os.PathLike,
    output: str | os.PathLike,
    *,
    target_prior: Sequence[float] | None = None,
    source_prior: Sequence[float] | None = None,
    resize: bool = False,
    calibrate: bool = False,
) -> dict:
    """Exports the model of a finished run; see `export_saved_model` for what is written.

    Args:
        run_dir: The run folder.
        output: `DIR/NAME` or `DIR/NAME/VERSION`.
        target_prior: See `export_saved_model`.
        source_prior: See `export_saved_model`.
        resize: See `export_saved_model`.
        calibrate: Whether to fit the temperature, on the validation part of a run that had one
            (`validation_fraction` above 0). The errors of calibration before and after are those
            on the test split, which neither training nor the fit has seen.

    Returns:
        What `export.json` holds, and the `folder` of the version.

    Raises:
        ValueError: if the run is not finished or cannot be read, or as `export_saved_model` does.
    """
    folder = RunFolder(run_dir)
    config, results, data = folder.read_config(), folder.read_results(), folder.read_data()
    if not folder.complete:
        raise ValueError(f"{folder.path} has no {folder.model_file.name}: the run is not finished.")
    if calibrate and not config.validation_fraction:
        raise ValueError(
            f"--calibrate needs examples that the model was not trained on, and {folder.path} held "
            "none out; train a run with --validation_fraction, 0.1 say."
        )
    model = training.load_model(folder)
    scale = config.scale if config.loss in COSINE_LOSSES else 1.0
    counts = class_counts.check_counts(data["counts"])
    calibration = None
    if calibrate:
        shift, target, _ = prior_shift(
            len(counts), counts=counts, target_prior=target_prior, source_prior=source_prior
        )
        calibration = _calibrate(model, config, scale, shift, target)
    tokenizer = None
    if data["vocabulary"] is not None:
        # Only here: the import takes a second, and images need none of it.
        from keras_ldam import text

        tokenizer = text.Tokenizer(data["vocabulary"], config.max_tokens)
    decode = None
    if config.dataset in IMAGE_DATASETS:
        from keras_ldam.datasets import images

        # What is served is scaled and cropped as what the results are about.
        decode = functools.partial(images.centre_image, image_size=config.image_size)
    written = export_saved_model(
        model,
        output,
        class_names=data["class_names"],
        tokenizer=tokenizer,
        resize=resize,
        decode=decode,
        scale=scale,
        temperature=calibration["temperature"] if calibration else 1.0,
        counts=counts,
        target_prior=target_prior,
        source_prior=source_prior,
        details={
            "dataset": data["name"],
            "method": config.method,
            "seed": config.seed,
            "results": {"split": results["split"], **results["last"]},
            "calibration": calibration,
            "config": config.to_json(),
        },
    )
    return {"folder": str(written), **json.loads((written / EXPORT_FILE).read_text())}


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


# ----------------------------------------------------------------------------- what is served


class _Answer(tf.Module):
    """From the model's input to the four outputs."""

    def __init__(self, model, factor, shift, class_names):
        super().__init__()
        self._model = _Untracked(model)
        # The graph is to hold the weights and nothing else of the Keras model.
        self._weights = [variable.value for variable in model.variables]
        self._factor, self._shift, self._class_names = factor, shift, class_names

    def __call__(self, inputs):
        # Convolutions fail on empty batches where oneDNN fuses them, so an empty one is given an
        # example, which is taken off again.
        batch = tf.shape(inputs)[0]
        padding = tf.pad([[0, tf.cast(batch == 0, tf.int32)]], [[0, inputs.shape.rank - 1], [0, 0]])
        scores = self._model.it(tf.pad(inputs, padding), training=False)[:batch]
        scores = tf.cast(scores, tf.float32)
        logits = scores * tf.constant(self._factor, tf.float32) + self._shift
        index = tf.argmax(logits, axis=-1)
        return {
            "probabilities": tf.nn.softmax(logits),
            "logits": logits,
            "class_index": index,
            "label": tf.gather(tf.constant(self._class_names), index),
        }


class _Untracked:
    """Holds an object that is not to be saved with its holder."""

    def __init__(self, it):
        self.it = it


class _ServedText(tf.Module):
    def __init__(self, answer, tokenizer):
        super().__init__()
        self._answer, self._tokenizer = answer, tokenizer

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(self, text):
        with tf.control_dependencies(_text_checks(text)):
            ids = self._tokenizer(tf.identity(text))
        if not (ids.dtype.is_integer and ids.shape.rank == 2):
            return self._answer(ids)
        wordless = ~tf.reduce_any(tf.not_equal(ids, 0), axis=1)
        with tf.control_dependencies([_refuse(wordless, "text has no words")]):
            return self._answer(tf.identity(ids))

    def signatures(self):
        return {"serving_default": self.serve.get_concrete_function()}

    def describe(self):
        return {"input": "text", "max_text_bytes": MAX_TEXT_BYTES}


class _ServedImages(tf.Module):
    def __init__(self, answer, shape, resize, decode):
        super().__init__()
        self._answer, self._shape, self._resize = answer, shape, resize or decode is not None
        self._decode = decode

    def _serve(self, image):
        wanted = [-1 if length is None else length for length in self._shape]
        message = f"images must be of height, width and channels {wanted}".replace("-1", "any")
        with tf.control_dependencies([_check_rank(image, 4, "images")]):
            size = tf.shape(_of_any_shape(image))[1:]
        right = tf.reduce_all((size == wanted) | (tf.constant(wanted) < 0))
        with tf.control_dependencies([tf.debugging.Assert(right, [f"{message}; received", size])]):
            return self._answer(tf.identity(image))

    def _serve_bytes(self, image_bytes):
        height, width, channels = self._shape

        def decode(encoded):
            image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
            image.set_shape([None, None, channels])
            if height is None or width is None:
                return image
            if self._resize:
                image = tf.image.resize(image, (height, width), antialias=True)
                return tf.cast(tf.round(image), tf.uint8)
            size = tf.shape(image)[:2]
            message = f"image must be {height} pixels high and {width} wide; its size is"
            right = tf.reduce_all(size == (height, width))
            with tf.control_dependencies([tf.debugging.Assert(right, [message, size])]):
                image = tf.identity(image)
            image.set_shape((height, width, channels))
            return image

        with tf.control_dependencies([_check_rank(image_bytes, 1, "image files")]):
            image_bytes = tf.identity(image_bytes)
        images = tf.map_fn(
            self._decode or decode,
            image_bytes,
            fn_output_signature=tf.TensorSpec(self._shape, tf.uint8),
        )
        return self._answer(images)

    def signatures(self):
        pixels = tf.TensorSpec([None, *self._shape], tf.uint8, name="image")
        files = tf.TensorSpec([None], tf.string, name="image_bytes")
        # Kept as attributes, so that what they have captured is saved.
        self.serve = tf.function(self._serve, input_signature=[pixels])
        self.serve_bytes = tf.function(self._serve_bytes, input_signature=[files])
        return {
            "serving_default": self.serve.get_concrete_function(),
            "serving_bytes": self.serve_bytes.get_concrete_function(),
        }

    def describe(self):
        return {"input": "image", "image_shape": list(self._shape), "resize": self._resize}


def _of_any_shape(tensor):
    """The tensor, its shape to be looked at when it comes.

    The shape that a signature states is not enforced by who loads it, but it is taken for granted
    when the graph is optimised, checks and all.
    """
    return tf.compat.v1.placeholder_with_default(tensor, shape=None)


def _check_rank(tensor, rank, name):
    shape = tf.shape(_of_any_shape(tensor))
    # Even so the number of axes, which tf.rank gives, is taken from the signature. Written as
    # text, each axis leaves a comma.
    text = tf.strings.reduce_join(tf.strings.join([tf.strings.as_string(shape), ","]), axis=0)
    axes = tf.strings.length(tf.strings.regex_replace(text, "[^,]", ""))
    message = f"{name} must be a tensor of {rank} axes, the batch first; number of axes received:"
    return tf.debugging.Assert(axes == rank, [message, axes])


def _text_checks(text):
    """Errors that say which text of the batch is at fault."""
    with tf.control_dependencies([_check_rank(text, 1, "texts")]):
        text = tf.identity(text)
    valid = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="ignore")
    length = tf.strings.length(text)
    return [
        _refuse(length > MAX_TEXT_BYTES, f"text is longer than {MAX_TEXT_BYTES} bytes"),
        _refuse(length == 0, "text is empty"),
        _refuse(tf.not_equal(valid, text), "text is not valid UTF-8"),
    ]


def _refuse(bad, message):
    return tf.debugging.Assert(
        ~tf.reduce_any(bad), [f"{message}: number in the batch, from 0:", tf.where(bad)[:1, 0]]
    )


@contextlib.contextmanager
def _portable(model):
    """Keeps cuDNN's ops out of the graph: it is to run where there is no GPU, too."""
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "use_cudnn")]
    before = [layer.use_cudnn for layer in layers]
    for layer in layers:
        layer.use_cudnn = False
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.use_cudnn = value


def _calibrate(model, config, scale, shift, target):
    """Fits the temperature on the run's validation part; what it changes on the test split."""
    validation = datasets.load(config)
    test = datasets.load(dataclasses.replace(config, validation_fraction=0.0))
    num_classes = len(validation.counts)
    prior = np.full(num_classes, 1 / num_classes) if target is None else np.asarray(target)
    # The validation part is as imbalanced as the training examples; where the model is used, the
    # classes are as frequent as the prior says.
    logits, labels = scale * _scores(model, validation.test), validation.test.labels
    temperature = fit_temperature(logits, labels, weights=prior_weights(labels, prior), shift=shift)
    logits, labels = scale * _scores(model, test.test), test.test.labels
    found = {
        "temperature": temperature,
        "fitted_on": f"{len(validation.test)} validation examples",
        "measured_on": f"{len(test.test)} {test.test_name} examples",
    }
    for name, divisor in (("before", 1.0), ("after", temperature)):
        shifted = logits / divisor + shift
        weights = prior_weights(labels, prior)
        error = expected_calibration_error(softmax(shifted), labels, weights=weights)
        found[f"ece_{name}"] = round(100 * error, 4)
        found[f"negative_log_likelihood_{name}"] = round(
            negative_log_likelihood(shifted, labels, weights=weights), 6
        )
    return found


def _scores(model, split):
    scores = [None] * len(split)
    for indices, examples in training.in_order(split, training.EVALUATION_BATCH):
        batch = keras.ops.convert_to_numpy(model.predict_on_batch(examples))
        for index, row in zip(indices, batch, strict=True):
            scores[index] = row
    return np.asarray(scores, dtype=np.float64)


# ----------------------------------------------------------------------------- checks


def _check_names(model, class_names):
    names = [str(name) for name in class_names]
    if not model.built or len(getattr(model, "inputs", None) or []) > 1:
        raise ValueError("the model must be built and have one input; call it on a batch first.")
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or isinstance(shape[0], tuple):
        raise ValueError(f"the model must give scores [batch, classes]; its output is {shape}.")
    _check_length("class_names", names, shape[-1])
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"class_names must differ; {twice!r} is there more than once.")
    return names


def _check_length(name, values, num_classes):
    if len(values) != num_classes:
        raise ValueError(
            f"{name} has {len(values)} entries, but the model has {num_classes} classes."
        )


def _check_positive(name, value):
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0; received {value!r}.")
    return float(value)


def _check_prior(name, prior, num_classes):
    values = np.asarray(prior, dtype=np.float64)
    if values.shape != (num_classes,) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"{name} must be {num_classes} finite numbers above 0, one for each class; received "
            f"{np.array2string(values, threshold=12)}."
        )
    return values / values.sum()


def _scale_of(model):
    scale = getattr(getattr(model, "loss", None), "scale", None)
    if scale is not None:
        return float(scale)
    last = model.layers[-1] if model.layers else None
    if isinstance(last, CosineDense) and not getattr(model, "compiled", False):
        raise ValueError(
            "the model gives cosines and is not compiled, so the scale of its softmax is not "
            "known; give scale=, the one that its loss had."
        )
    return 1.0


def _image_shape(model, image_shape):
    shape = tuple(model.input_shape[1:]) if image_shape is None else tuple(image_shape)
    if len(shape) != 3 or not isinstance(shape[2], int):
        raise ValueError(
            f"images must be [height, width, channels]; the model's input is {shape}. For text "
            "give a tokenizer."
        )
    return shape


# ----------------------------------------------------------------------------- folders


def _version_folder(output):
    """The folder to write: the one named, or the next version; never one that is there."""
    named = output.name.isascii() and output.name.isdigit()
    parent = output.parent if named else output
    if not parent.name:
        raise ValueError(f"--output must be DIR/NAME or DIR/NAME/VERSION; received {output}.")
    if parent.exists() and not parent.is_dir():
        raise ValueError(f"{parent} exists and is not a folder; choose another output.")
    others = sorted(parent.iterdir()) if parent.exists() else []
    strange = [path.name for path in others if not _is_version(path) and path.name[0] != "."]
    if strange:
        raise ValueError(
            f"{parent} is not a folder of model versions, it holds {strange[0]!r}; choose another "
            "output."
        )
    if named:
        if int(output.name) < 1:
            raise ValueError(f"a version must be a whole number of at least 1; received {output}.")
        if output.exists():
            raise ValueError(
                f"{output} exists, and a version is never overwritten; choose another."
            )
        return output
    taken = [int(path.name) for path in others if _is_version(path)]
    return parent / str(max(taken, default=0) + 1)


def _is_version(path):
    return path.is_dir() and path.name.isascii() and path.name.isdigit()


def _write_folder(folder, write):
    """Writes aside and moves in place, so that a server sees a version whole or not at all."""
    aside = folder.parent / f".{folder.name}-{os.getpid()}"
    try:
        aside.mkdir(parents=True)
        write(aside)
        # Moving would replace an empty folder, but not one that has been filled meanwhile.
        aside.rename(folder)
    except OSError as error:
        raise ValueError(f"{folder} could not be written: {error}.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# ----------------------------------------------------------------------------- the model card


def _card(facts):
    """The model card: what the model is, what it was trained on, how good it is, its limits."""
    return (
        "\n\n".join(
            [
                f"# {facts['name']}, version {facts['version']}",
                _card_summary(facts),
                "## Intended use",
                _card_use(facts),
                "## Classes" if "results" not in facts else "## Classes and errors",
                _card_classes(facts),
                "## Probabilities",
                _card_probabilities(facts),
                "## Limits",
                _card_limits(facts),
                "## Versions",
                "\n".join(f"- {name}: {version}" for name, version in facts["versions"].items()),
                *_card_config(facts),
            ]
        )
        + "\n"
    )


def _card_summary(facts):
    kind = "images" if facts["input"] == "image" else "texts"
    text = f"A classifier of {kind} into {len(facts['class_names'])} classes"
    if "dataset" in facts:
        text += (
            f", trained on {facts['dataset']} by the method {facts['method']} "
            f"(loss {facts['config']['loss']}, rule {facts['config']['rule']}, seed "
            f"{facts['seed']})"
        )
    return f"{text}. Written {facts['created']}."


def _card_use(facts):
    if facts["input"] == "image":
        kind = "images like those it was trained on"
    else:
        kind = "texts like those it was trained on, in the same language"
    return (
        f"To tell the classes below apart in {kind}, where every class matters as much as any "
        "other, however rare it was in training. It answers with one of these classes whatever "
        "it is given: it was not taught to say that something is none of them."
    )


def _card_classes(facts):
    names, counts, results = facts["class_names"], facts["counts"], facts.get("results")
    head, rule = "| class | name |", "|---|---|"
    if counts:
        head, rule = head + " training examples |", rule + "---|"
    if results:
        head, rule = head + f" error on {results['split']}, % |", rule + "---|"
    rows = []
    for j, name in enumerate(names[:_CARD_CLASSES]):
        row = f"| {j} | {name.replace('|', chr(92) + '|')} |"
        if counts:
            row += f" {counts[j]} |"
        if results:
            error = results["per_class_error"][j]
            row += f" {'' if error is None else f'{error:.2f}'} |"
        rows.append(row)
    lines = [head, rule, *rows]
    if len(names) > _CARD_CLASSES:
        lines += ["", f"The other {len(names) - _CARD_CLASSES} classes are in {EXPORT_FILE}."]
    if results:
        lines += [
            "",
            f"Mean of the classes' errors: {results['mean_error']:.2f} %. These are errors of the "
            "model as trained, after its last epoch"
            + (", before the shift to another prior." if facts["target_prior"] else "."),
        ]
    return "\n".join(lines)


def _card_probabilities(facts):
    text = (
        f"softmax of the model's scores times {facts['scale']:g}, divided by the temperature "
        f"{facts['temperature']:.4g}"
    )
    if facts["target_prior"]:
        text += ", shifted from the class frequencies that the scores have learned to others"
    found = facts.get("calibration")
    if not found:
        return f"{text}. They were not calibrated: 0.9 need not be right 9 times of 10."
    return (
        f"{text}. The temperature was fitted on {found['fitted_on']}. Expected calibration error "
        f"on {found['measured_on']}: {found['ece_before']:.2f} % before, "
        f"{found['ece_after']:.2f} % after."
    )


def _card_limits(facts):
    limits = []
    counts = facts["counts"]
    if counts:
        rare = int(np.argmin(counts))
        limits.append(
            f"- The rarest class, {facts['class_names'][rare]}, had {counts[rare]} training "
            f"examples, the most frequent {max(counts)}."
        )
    if facts.get("results"):
        limits.append("- The errors are those of one run; another seed gives others.")
    if facts["input"] == "text":
        limits.append(
            f"- Refused: empty texts, texts without a word, over {MAX_TEXT_BYTES} bytes, or not in "
            "UTF-8."
        )
    else:
        limits.append("- Refused: files that cannot be decoded whole, and images of a wrong shape.")
    limits.append("- Nothing is known of how it treats groups of people that the data do not name.")
    return "\n".join(limits)


def _card_config(facts):
    if "config" not in facts:
        return []
    rows = [f"| {name} | {value} |" for name, value in facts["config"].items() if value != ""]
    return ["## Configuration", "\n".join(["| field | value |", "|---|---|", *rows])]
