"""Exports of finished runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.adjustment import (
    TEMPERATURES,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    prior_weights,
    softmax,
)
from keras_ldam.experiments import datasets, training
from keras_ldam.experiments.config import COSINE_LOSSES, IMAGE_DATASETS, Config
from keras_ldam.experiments.run_folder import RunFolder
from keras_ldam.export import EXPORT_FILE, export_saved_model, prior_shift


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
        source_prior: See `export_saved_model`; by default what the run's rule has made of the
            class counts, see `learned_frequencies`.
        resize: See `export_saved_model`.
        calibrate: Whether to fit the temperature, on the validation part of a run that had one
            (`validation_fraction` above 0), for classes as frequent as the target prior says, or
            without one as the scores have learned. The errors of calibration before and after
            are those on the test split, which neither training nor the fit has seen, with classes
            of the same frequencies.

    Returns:
        What `export.json` holds, and the `folder` of the version.

    Raises:
        ValueError: if the run is not finished or cannot be read, if the held-out examples fix no
            temperature, or as `export_saved_model` does.
    """
    folder = RunFolder(run_dir)
    config, results, data = folder.read_config(), folder.read_results(), folder.read_data()
    if not folder.complete:
        raise ValueError(f"{folder.path} has no {folder.model_file.name}: the run is not finished.")
    if calibrate and not config.validation_fraction:
        raise ValueError(
            f"--calibrate needs examples that neither training nor the results have seen, and "
            f"{folder.path} has none besides those; train a run with --validation_fraction, 0.1 "
            "say."
        )
    model = training.load_model(folder)
    scale = config.scale if config.loss in COSINE_LOSSES else 1.0
    counts = class_counts.check_counts(data["counts"])
    learned = learned_frequencies(config, counts)
    if target_prior is not None and source_prior is None:
        source_prior = learned
    calibration = None
    if calibrate:
        shift, target, _ = prior_shift(
            len(counts), target_prior=target_prior, source_prior=source_prior
        )
        calibration = {
            "class_frequencies": "learned" if target is None else "target_prior",
            **_calibrate(
                model, folder, scale, shift, learned if target is None else np.asarray(target)
            ),
        }
    tokenizer = None
    if data["vocabulary"] is not None:
        # Only here: the import takes a second, and images need none of it.
        from keras_ldam.experiments import text

        tokenizer = text.Tokenizer(data["vocabulary"], config.max_tokens)
    decode = None
    if config.dataset in IMAGE_DATASETS:
        from keras_ldam.experiments.datasets import images

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
            "learned_frequencies": learned.tolist(),
            "calibration": calibration,
            "config": config.to_json(),
        },
    )
    return {"folder": str(written), **json.loads((written / EXPORT_FILE).read_text())}


def learned_frequencies(config: Config, counts: np.ndarray) -> np.ndarray:
    """How frequent the classes were to a run's loss in its last phase: ρ_j ∝ n_j w_j.

    w are the class weights, or how much more often an example of the class is drawn: all equal
    without a rule, so ρ is that of the counts; 1/n_j to full balance, so ρ_j = 1/K. This is exact
    for a cross-entropy, whose scores estimate log ρ_j + log p(x|j); margins move scores too, and
    those of a hinge or a focal loss estimate no probability.

    Args:
        config: A resolved config.
        counts: Training examples per class n_j, shape `[K]`.

    Returns:
        float64 `[K]` with sum 1.
    """
    how, weighting = config.balancing
    seen = counts.astype(np.float64)
    if how != "none":
        seen *= class_counts.class_weights(counts, weighting, config.beta)
    return seen / seen.sum()


def _calibrate(model, folder, scale, shift, prior):
    """Fits the temperature on the run's validation part; what it changes on the test split."""
    config, vocabulary = folder.read_config(), folder.read_data()["vocabulary"]
    validation = datasets.load(config)
    folder.check_data(validation.describe())
    # With nothing held out the training texts are others, and so would be the words' numbers.
    whole = dataclasses.replace(config, validation_fraction=0.0)
    test = datasets.load(whole, vocabulary=vocabulary)
    # The validation part is as imbalanced as the training examples; the probabilities are for
    # classes as frequent as the prior says.
    logits, labels = scale * _scores(model, validation.test), validation.test.labels
    weights = prior_weights(labels, prior)
    temperature = fit_temperature(logits, labels, weights=weights, shift=shift)
    inside, *at_ends = (
        negative_log_likelihood(logits / divisor + shift, labels, weights=weights)
        for divisor in (temperature, *TEMPERATURES)
    )
    if min(at_ends) < inside + 1e-6:
        raise ValueError(
            f"the {len(labels)} held-out examples fix no temperature: none between "
            f"{TEMPERATURES[0]:g} and {TEMPERATURES[1]:g} is better than these (where all are "
            "right, smaller ones never end to be better); hold out more with "
            "--validation_fraction, or export without --calibrate."
        )
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
