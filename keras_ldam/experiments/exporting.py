"""Exports of finished runs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam import evaluation
from keras_ldam.adjustment import (
    TEMPERATURES,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    prior_shift,
    prior_weights,
    softmax,
)
from keras_ldam.experiments import datasets
from keras_ldam.experiments.config import METHODS, Config
from keras_ldam.experiments.progress import EVALUATION_BATCH
from keras_ldam.experiments.run_folder import PLACE_FIELDS, RunFolder, is_moved
from keras_ldam.export import EXPORT_FILE, export_saved_model
from keras_ldam.losses import LOSSES
from keras_ldam.sampling import class_chances, mixing


def export(
    run_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    target_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    source_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    resize: bool = False,
    calibrate: bool = False,
) -> dict[str, Any]:
    """Exports the model of a finished run; see `export_saved_model` for what is written.

    Args:
        run_dir: The run folder.
        output: `DIR/NAME` or `DIR/NAME/VERSION`.
        target_prior: See `export_saved_model`.
        source_prior: See `export_saved_model`. Defaults to `learned_frequencies`.
        resize: See `export_saved_model`.
        calibrate: Whether to fit the temperature, on the validation part of a run that had one
            (`validation_fraction` above 0). It is fitted for the class frequencies of the target
            prior, or without one for those that the scores have learned. The calibration errors
            before and after are measured on the test split, which neither training nor the fit
            has seen, for the same class frequencies.

    Returns:
        The contents of `export.json`, and `folder`, the folder of the version.

    Raises:
        ValueError: if the run is not finished, its files cannot be read or do not belong together,
            the validation examples do not determine a temperature, or as `export_saved_model`.
    """
    folder = RunFolder(run_dir)
    config, results, data = _read(folder)
    if calibrate and not config.validation_fraction:
        raise ValueError(
            "--calibrate needs examples that neither training nor the results have used, and "
            f"{folder.path} has none; train a run with --validation_fraction, for example 0.1."
        )
    declared = datasets.declared(config.dataset)  # Before the model, whose layers it may register.
    model = folder.load_model()
    counts = class_counts.check_counts(data["counts"])
    learned = learned_frequencies(config, counts)
    if target_prior is not None and source_prior is None:
        source_prior = learned
    calibration = None
    if calibrate:
        shift, target, _ = prior_shift(
            len(counts),
            target_prior=target_prior,
            source_prior=source_prior,
            class_names=data["class_names"],
        )
        calibration = {
            "class_frequencies": "learned" if target is None else "target_prior",
            **_calibrate(
                model, folder, config, shift, learned if target is None else np.asarray(target)
            ),
        }
    written = export_saved_model(
        model,
        output,
        class_names=data["class_names"],
        resize=resize,
        scale=config.score_scale,
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
            "config": config.to_public_json(),
        },
        **declared.serving(config, data),
    )
    return {"folder": str(written), **json.loads((written / EXPORT_FILE).read_text())}


def learned_frequencies(config: Config, counts: np.ndarray) -> np.ndarray:
    """The class frequencies that a run's scores have learned in its last phase, ρ_j ∝ n_j w_j.

    w are the class weights, or the sampling rates of an example of each class: without a rule they
    are equal, and ρ is that of the counts; after full balance they are 1/n_j, and ρ_j = 1/K. A loss
    with logit adjustment τ keeps n_j^τ of them to itself. Two branches answer as at α = 1/2, where
    labels come at the mean of the counts' frequencies and the reversed ones; of mixtures the
    partners' classes count by their mean share. This is exact for a
    cross-entropy, whose scores estimate log ρ_j + log p(x|j). Margins move scores too, and the
    scores of a hinge or focal loss do not estimate probabilities.

    Args:
        config: A resolved config.
        counts: Training examples per class n_j, shape `(num_classes,)`.

    Returns:
        float64 array of shape `(num_classes,)` with sum 1.
    """
    how, weighting = config.balancing
    seen, weights = counts.astype(np.float64), np.ones(len(counts))
    if how in ("sample", "weight"):
        weights = class_counts.class_weights(counts, kind=weighting, beta=config.beta)
    if how == "sample":
        seen *= weights
    if how == "pair":
        seen = (class_chances(counts, 0.0) + class_chances(counts, 2.0)) / 2
    if config.mix and not METHODS[config.method].second_stage:
        share = _mean_share(config)
        partners = class_chances(counts, config.mix_power)
        seen = share * seen / seen.sum() + (1.0 - share) * partners
    if how == "weight":
        seen *= weights
    return LOSSES[config.loss].make(counts, dataclasses.asdict(config)).learned_prior(seen)


def _mean_share(config: Config) -> float:
    """The mean share of an example in its mixtures; a rectangle that is cut off adds to it."""
    blank = np.zeros((4096, 32, 32, 1), dtype=np.uint8)
    _, shares = mixing.mix(
        config.mix,
        blank,
        blank,
        np.random.default_rng(0),
        alpha=config.mix_alpha,
        probability=config.mix_probability,
        majority=config.mix_majority,
    )
    return float(shares.mean())


def _read(folder: RunFolder) -> tuple[Config, dict[str, Any], dict[str, Any]]:
    """Config, results and data of a finished run; raises `ValueError` if they contradict."""
    config = folder.read_config()
    results = folder.read_json(
        folder.results_file, "last", "split", "config", "class_names", "counts"
    )
    data = folder.read_data()
    if not folder.complete:
        raise ValueError(f"{folder.path} has no {folder.model_file.name}: the run is not finished.")
    belongs = f"does not belong to {folder.results_file}"
    try:
        trained = Config.from_json(results["config"]).to_json()
        errors = results["last"]["mean_error"], results["last"]["per_class_error"]
        fits = isinstance(errors[0], float) and len(errors[1]) == len(results["class_names"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder.results_file} is not the results of a run: {error}") from None
    if not fits:
        raise ValueError(
            f"{folder.results_file} is not the results of a run: its errors are {errors}."
        )
    for name, value in config.to_json().items():
        if name == "dataset" and is_moved(trained[name], value):
            continue
        if trained[name] != value and name not in PLACE_FIELDS:
            raise ValueError(
                f"{folder.config_file} {belongs}: its {name} is {value!r}, not {trained[name]!r}."
            )
    for name in ("class_names", "counts"):
        if data[name] != results[name]:
            raise ValueError(f"{folder.data_file} {belongs}: its {name} differ.")
    return config, results, data


def _calibrate(
    model: keras.Model, folder: RunFolder, config: Config, shift: np.ndarray, prior: np.ndarray
) -> dict[str, Any]:
    """Fits the temperature on the run's validation part; what it changes on the test split."""
    kept = folder.read_data()
    validation = datasets.load(config)
    folder.check_data(validation.describe())
    # Without a validation part the training examples differ, and so would the ids of the words, or
    # of the categories of a table.
    whole = dataclasses.replace(config, validation_fraction=0.0, left_out=False)
    known = {name: kept[name] for name in ("vocabulary", "columns") if kept.get(name) is not None}
    test = datasets.load(whole, **known)

    def scored(split: datasets.Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, labels = evaluation.scores(model, split.batches(EVALUATION_BATCH))
        # A split is as imbalanced as it is; the probabilities are for the prior.
        return config.score_scale * scores, labels, prior_weights(labels, prior)

    logits, labels, weights = scored(validation.test)
    temperature = fit_temperature(logits, labels, weights=weights, shift=shift)
    inside, *at_ends = (
        negative_log_likelihood(logits / divisor + shift, labels, weights=weights)
        for divisor in (temperature, *TEMPERATURES)
    )
    if min(at_ends) < inside + 1e-6:
        low, high = TEMPERATURES
        raise ValueError(
            f"the {len(labels)} validation examples do not determine a temperature: the optimum "
            f"lies outside [{low:g}, {high:g}], as it does if all of them are right. Hold out more "
            "with --validation_fraction, or export without --calibrate."
        )
    found = {
        "temperature": temperature,
        "fitted_on": f"{len(validation.test)} validation examples",
        "measured_on": f"{len(test.test)} {test.test_name} examples",
    }
    logits, labels, weights = scored(test.test)
    for name, divisor in (("before", 1.0), ("after", temperature)):
        shifted = logits / divisor + shift
        error = expected_calibration_error(softmax(shifted), labels, weights=weights)
        found[f"ece_{name}"] = round(100 * error, 4)
        found[f"negative_log_likelihood_{name}"] = round(
            negative_log_likelihood(shifted, labels, weights=weights), 6
        )
    return found
