"""Runs made from Keras models and the examples to evaluate them on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import evaluation
from keras_ldam.adjustment import softmax_scale
from keras_ldam.adjustment.batches import as_arrays
from keras_ldam.counting import check_ends
from keras_ldam.counts import ClassNumbers, check_counts, in_class_order
from keras_ldam.layers import cosine_heads, gives_probabilities
from keras_ldam.losses import weighted_losses
from keras_ldam.report.record import Run

_BATCH, _SCORES = 256, 2**23
"""Examples of arrays that are predicted at a time, and how many scores these may have."""
_SETTINGS = ("max_margin", "exponent", "scale")
_NUMBERED = "must have class numbers from 0 on as labels, beside those that a loss ignores"
_Batches = Iterable[tuple[Any, np.ndarray]]


def runs_of(
    models: Mapping[str, keras.Model],
    train: Any,
    test: Any,
    *,
    class_names: Sequence[str] | Mapping[int, str] | None,
    histories: Mapping[str, Any] | None,
    scale: float | None,
) -> list[Run]:
    """Evaluates models and returns them as runs; see `keras_ldam.report.compare`."""
    histories = _histories("models", models, histories)
    splits = {"train": _batches_of("train", train), "test": _batches_of("test", test)}
    losses = [loss for model in models.values() for loss in weighted_losses(model)]
    void = [loss.ignore_class for loss in losses if loss.ignore_class is not None]
    labels = {}
    for name, batches in splits.items():
        found = np.concatenate([y.reshape(-1) for _, y in batches()])
        labels[name] = found = found[~np.isin(found, void)]
        if not found.size or found.min() < 0:
            raise ValueError(f"`{name}` {_NUMBERED}. Received: {np.unique(found)[:5].tolist()}")
    most = int(max(found.max() for found in labels.values())) + 1
    names = _names(class_names, most)
    size = max(1, min(_BATCH, _SCORES // len(names)))
    splits = {name: functools.partial(batches, size) for name, batches in splits.items()}
    counts = np.bincount(labels["train"], minlength=len(names))
    if not counts.all():
        j = int(counts.argmin())
        raise ValueError(
            f"`train` must have examples of every class. Received: none of class {j} ({names[j]})"
        )
    return [
        _run(name, model, splits, counts, names, histories.get(name), scale)
        for name, model in models.items()
    ]


def runs_of_guesses(
    guesses: Mapping[str, Any],
    labels: Any,
    counts: Sequence[int] | np.ndarray,
    *,
    class_names: Sequence[str] | Mapping[int, str] | None,
    histories: Mapping[str, Any] | None,
) -> list[Run]:
    """Returns guesses as runs; see `keras_ldam.report.compare_guesses`."""
    histories = _histories("guesses", guesses, histories)
    counts = check_counts(counts)
    names = _names(class_names, len(counts))
    if len(names) != len(counts):
        raise ValueError(
            f"`class_names` must name each of the {len(counts)} classes of `counts`. Received: "
            f"{len(names)} names"
        )
    runs = []
    for name, guessed in guesses.items():
        rows = _rows(histories.get(name))
        errors = evaluation.errors_of_guesses(labels, guessed, counts)
        runs.append(
            Run(name, names, errors, counts=counts, history=rows, start_epoch=_start_epoch(rows))
        )
    return runs


def _histories(
    argument: str, models: Mapping[str, Any], histories: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    if not models:
        raise ValueError(
            f"`{argument}` must hold at least one model. Received: {argument}={models!r}"
        )
    unknown = sorted(set(histories or {}) - set(models))
    if unknown:
        raise ValueError(
            f"`histories` must have names of models as keys, which are {', '.join(models)}. "
            f"Received: {unknown[0]!r}"
        )
    return histories or {}


def _names(class_names: Any, most: int) -> Sequence[str]:
    if class_names is None:
        return ClassNumbers(most)
    names = in_class_order("class_names", class_names, len(class_names))
    if most > len(names):
        raise ValueError(
            f"`class_names` must name at least {most} classes, since there are labels up to "
            f"{most - 1}. Received: {len(names)} names"
        )
    return tuple(map(str, names))


def _run(
    name: str,
    model: keras.Model,
    splits: Mapping[str, Callable[[], _Batches]],
    counts: np.ndarray,
    class_names: Sequence[str],
    history: Any,
    scale: float | None,
) -> Run:
    loss: Any = getattr(model, "loss", None)
    _check_output(name, model, next(iter(splits["train"]()))[0])
    diagnosed = {}
    for split, batches in splits.items():
        errors, diagnosed[split] = evaluation.diagnose(
            model, batches(), counts, scale=_scale(name, model, loss, scale)
        )
    rows = _rows(history)
    demands = getattr(loss, "max_margin", 0) > 0
    return Run(
        title=name,
        class_names=class_names,
        errors=errors,
        counts=counts,
        history=rows,
        margins={split: found["margins"] for split, found in diagnosed.items()},
        diagnosis=diagnosed["test"],
        warnings=diagnosed["train"]["warnings"],
        demanded=np.asarray(loss.margins) if demands else None,
        start_epoch=_start_epoch(rows),
        settings={"loss": type(loss).__name__, **{name: getattr(loss, name) for name in _SETTINGS}}
        if demands
        else {},
        facts={"parameters": f"{model.count_params():,}"},
    )


def _check_output(name: str, model: keras.Model, examples: Any) -> None:
    scores = model.predict_on_batch(as_arrays(examples))
    if not hasattr(scores, "shape"):
        raise ValueError(
            f"model {name!r} must give one output of shape (batch, num_classes); make it one with "
            "keras.Model(model.inputs, model.outputs[0]), say. Received: "
            f"{len(keras.tree.flatten(scores))} outputs in a {type(scores).__name__}"
        )


def _scale(name: str, model: keras.Model, loss: Any, scale: float | None) -> float:
    """Returns the factor that makes logits of the model's scores."""
    if gives_probabilities(model):
        return 1.0
    scaled = bool(cosine_heads(model)) or getattr(loss, "scale", None) is not None
    try:
        return softmax_scale(model, scale if scaled else None)
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from None


def _rows(history: Any) -> list[dict[str, float]]:
    logs = getattr(history, "history", history) or {}
    lengths = {len(values) for values in logs.values()}
    if len(lengths) > 1:
        raise ValueError(
            "a history must hold lists of one length, as that of keras.Model.fit does. Received: "
            f"lengths {sorted(lengths)}"
        )
    balanced = [
        name for name in logs if name.startswith("val_") and name.endswith("balanced_error")
    ]
    rows = []
    for epoch in range(max(lengths, default=0)):
        row = {name: float(logs[name][epoch]) for name in ("loss", "reweighted") if name in logs}
        if balanced:
            row["error"] = 100 * float(logs[balanced[0]][epoch])
        rows.append(row)
    return rows


def _start_epoch(rows: Sequence[Mapping[str, float]]) -> int | None:
    on = [row.get("reweighted", 0) > 0 for row in rows]
    return on.index(True) if any(on) and not on[0] else None


# ----------------------------------------------------------------------------- examples and labels


def _batches_of(name: str, data: Any) -> Callable[..., _Batches]:
    """Returns a function that gives the batches of a split, with class numbers as labels.

    Arrays come in batches of the size that the function is called with.
    """
    if isinstance(data, tuple | list) and len(data) == 2:
        examples, labels = data[0], _classes(name, data[1])
        if isinstance(examples, tuple | list) and all(isinstance(x, str | bytes) for x in examples):
            examples = np.array(examples, dtype=object)
        _check_sizes(name, examples, labels)
        return lambda size=_BATCH: _slices(examples, labels, size)
    if isinstance(data, Mapping) or hasattr(data, "shape") or not _is_read_again(data):
        raise ValueError(
            f"`{name}` must be a pair (examples, labels), or a dataset that gives batches of such "
            f"pairs each time it is iterated over. Received: {type(data).__name__}"
        )
    check_ends(name, data)
    return lambda size=_BATCH: _checked(name, data)


def _is_read_again(data: Any) -> bool:
    try:
        return iter(data) is not data
    except TypeError:
        return False


def _slices(examples: Any, labels: np.ndarray, size: int) -> Iterator[tuple[Any, np.ndarray]]:
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        yield keras.tree.map_structure(lambda whole, part=part: whole[part], examples), labels[part]


def _checked(name: str, dataset: Iterable[Any]) -> Iterator[tuple[Any, np.ndarray]]:
    empty = True
    for batch in dataset:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise ValueError(
                f"`{name}` must give pairs (examples, labels). Received: {type(batch).__name__}"
            )
        labels = _classes(name, batch[1])
        _check_sizes(name, batch[0], labels)
        empty = False
        yield batch[0], labels
    if empty:
        raise ValueError(f"`{name}` must hold examples. Received: a dataset without any")


def _check_sizes(name: str, examples: Any, labels: np.ndarray) -> None:
    shapes = (getattr(part, "shape", None) for part in keras.tree.flatten(examples))
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if sizes != {len(labels)}:
        raise ValueError(
            f"`{name}` must have arrays of examples, and a label for each. Received: "
            f"{len(labels)} labels for {', '.join(map(str, sorted(sizes)))} examples"
        )


def _classes(name: str, labels: Any) -> np.ndarray:
    if isinstance(labels, Mapping) or (isinstance(labels, list | tuple) and np.ndim(labels[0])):
        raise ValueError(
            f"`{name}` must have one array of labels, those of the output that is compared. "
            f"Received: {len(labels)} arrays in a {type(labels).__name__}"
        )
    labels = np.asarray(labels)
    if labels.ndim == 2:
        labels = labels.argmax(axis=1) if labels.shape[1] > 1 else labels[:, 0]
    if not labels.ndim or not len(labels):
        hint = "" if labels.ndim else "; batch the dataset: dataset.batch(256)."
        raise ValueError(
            f"`{name}` must have labels of shape (n,), (n, 1) or (n, num_classes), or for pixels "
            f"(n, height, width), n at least 1, and a dataset batches of such. Received: labels "
            f"of shape {labels.shape}{hint}"
        )
    number = np.issubdtype(labels.dtype, np.number) or labels.dtype == bool
    if not number or np.any(labels != np.floor(labels)):
        raise ValueError(f"`{name}` {_NUMBERED}. Received: {labels[:5].tolist()}")
    return labels.astype(np.int64)
