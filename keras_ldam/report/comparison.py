"""The report for a user's own models and arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import evaluation
from keras_ldam.counts import check_counts
from keras_ldam.experiments.tables.collection import Run
from keras_ldam.layers import gives_cosines

_BATCH = 256


def runs_of(
    models: Mapping[str, keras.Model],
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    class_names: Sequence[str] | None,
    histories: Mapping[str, Any] | None,
    scale: float | None,
    title: str,
) -> list[Run]:
    """Evaluates models and returns them as runs; see `keras_ldam.report.compare`."""
    if not models:
        raise ValueError("nothing to report on: models is empty.")
    histories = histories or {}
    unknown = sorted(set(histories) - set(models))
    if unknown:
        raise ValueError(
            f"histories names {unknown[0]!r}, which is no model; the models are: "
            f"{', '.join(models)}."
        )
    splits = {"train": _checked("train", train), "test": _checked("test", test)}
    most = int(max(labels.max() for _, labels in splits.values())) + 1
    names = tuple(map(str, range(most) if class_names is None else class_names))
    if most > len(names):
        raise ValueError(
            f"class_names names {len(names)} classes, but there are labels up to {most - 1}."
        )
    counts = check_counts(np.bincount(splits["train"][1], minlength=len(names)))
    return [
        _run(name, model, splits, counts, names, histories.get(name), scale, title)
        for name, model in models.items()
    ]


def _run(name, model, splits, counts, class_names, history, scale, title):
    loss = getattr(model, "loss", None)
    diagnosed = {}
    for split, (examples, labels) in splits.items():
        scored = evaluation.score(
            model, _batches(examples, labels), len(counts), scale=_scale(name, model, loss, scale)
        )
        diagnosed[split] = evaluation.diagnose(scored, counts)
    results = {
        "method": name,
        "seed": None,
        "split": "test",
        "last": evaluation.errors_of_ranks(scored.ranks, scored.labels, counts),
        "best": None,
        "counts": counts.tolist(),
        "parameters": int(model.count_params()),
        "margins": {split: values["margins"] for split, values in diagnosed.items()},
    }
    if getattr(loss, "max_margin", 0) > 0:
        results["required"] = np.asarray(loss.margins).tolist()
        results["config"] = {
            "loss": type(loss).__name__,
            "max_margin": loss.max_margin,
            "exponent": loss.exponent,
            "scale": loss.scale,
        }
    return Run(
        results,
        title,
        class_names,
        history=_rows(history),
        diagnosis={"splits": diagnosed},
        label=name,
    )


def _scale(name, model, loss, scale):
    """What turns the model's scores into logits: 1, unless head or loss have it otherwise."""
    own = getattr(loss, "scale", None)
    if own is None and not gives_cosines(model):
        return 1.0
    scale = own if scale is None else scale
    if scale is None:
        raise ValueError(
            f"{name!r} gives cosines, and is not compiled with a loss that knows their scale: give "
            "scale, for softmax(scale * cosines) to be its probabilities."
        )
    return scale


def _rows(history) -> tuple[dict, ...]:
    logs = getattr(history, "history", history) or {}
    lengths = {len(values) for values in logs.values()}
    if len(lengths) > 1:
        raise ValueError(
            "a history must hold lists of one length, as that of keras.Model.fit; received "
            f"lengths {sorted(lengths)}."
        )
    return tuple(
        {name: float(values[epoch]) for name, values in logs.items()}
        for epoch in range(max(lengths, default=0))
    )


def _checked(name, pair):
    try:
        examples, labels = pair
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a pair (examples, labels).") from None
    labels = np.asarray(labels)
    if labels.ndim == 2:
        labels = labels.argmax(axis=1) if labels.shape[1] > 1 else labels[:, 0]
    if labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"{name}: labels must be of shape [n], [n, 1] or [n, K], with n at least 1; received "
            f"shape {labels.shape}."
        )
    sizes = {len(part) for part in keras.tree.flatten(examples)}
    if sizes != {len(labels)}:
        raise ValueError(
            f"{name} has {len(labels)} labels for {', '.join(map(str, sorted(sizes)))} examples."
        )
    number = np.issubdtype(labels.dtype, np.number) or labels.dtype == bool
    if not number or np.any(labels != np.floor(labels)):
        raise ValueError(f"{name}: labels must be whole numbers, one for each class from 0.")
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise ValueError(f"{name}: labels must not be negative; received {labels.min()}.")
    return examples, labels


def _batches(examples, labels) -> Iterator[tuple[Any, np.ndarray]]:
    for start in range(0, len(labels), _BATCH):
        part = slice(start, start + _BATCH)
        yield keras.tree.map_structure(lambda whole, part=part: whole[part], examples), labels[part]
