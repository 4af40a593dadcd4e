"""The form of a run's results; impossible values are refused, naming file and key."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, NamedTuple


class _Form(NamedTuple):
    text: str
    fits: Callable[[Any], bool]


class _OrNull(NamedTuple):
    form: Any


def _number(text, low, high):
    # Chained comparisons are false for NaN, and true for no integer that floats cannot hold.
    return _Form(text, lambda x: type(x) in (int, float) and low <= x <= high)


def _whole(text, low, high=2**53):
    return _Form(text, lambda x: type(x) is int and low <= x <= high)


_ANYTHING = _Form("anything", lambda x: True)
_STRING = _Form("a string", lambda x: isinstance(x, str))
_NAME = _Form(
    "a name without path separators",
    lambda x: (
        isinstance(x, str)
        and x not in ("", "..")
        and x.isprintable()
        and PurePath(x.replace("\\", "/")).name == x
    ),
)
_STRINGS = _Form(
    "an object of strings",
    lambda x: isinstance(x, dict) and all(isinstance(value, str) for value in x.values()),
)
_PERCENT = _number("a number from 0 to 100", 0, 100)
_SHARE = _number("a number from 0 to 1", 0, 1)
_FINITE = _number("a finite number", -1e300, 1e300)
_AMOUNT = _number("a finite number of at least 0", 0, 1e300)
_WHOLE = _whole("a whole number of at least 0", 0)
_DATASET = {"dataset?": _NAME, "class_names?": [_STRING, None]}
_CONFIG = {
    "recipe?": _STRING,
    "loss?": _STRING,
    "rule?": _STRING,
    "precision?": _STRING,
    "strategy?": _STRING,
    "imbalance?": _STRING,
    "imbalance_ratio?": _number("a number of at least 1", 1, 1e300),
    "max_margin?": _number("a number from 0 to 2", 0, 2),
    "scale?": _number("a number from 0.001 to 1e6", 1e-3, 1e6),
    "start_epoch?": _whole("a whole number of at least -1", -1),
    "epochs?": _whole("a whole number of at least 1", 1),
    "evaluate_every?": _whole("a whole number of at least 1", 1),
    "validation_fraction?": _SHARE,
    "steps_per_epoch?": _WHOLE,
}


def _margins(num_classes):
    each = [_OrNull(_FINITE), num_classes]
    return {"unit": _STRING, "min": each, "q05": each, "q50": each}


def check_content(content: dict, path: Path) -> None:
    """Checks what a results file says of its dataset, and that it lists runs.

    Args:
        content: What the file holds.
        path: The file, for the message.

    Raises:
        ValueError: for a missing key or an impossible value; so do the other checks here.
    """
    _check(content, {**_DATASET, "runs": [_ANYTHING, None]}, "", path)


def check_results(
    results: Any, path: Path, key: str = "", *, num_classes: int | None = None
) -> None:
    """Checks the results of a run.

    Args:
        results: As the run's `results.json` or an entry of a results file has them.
        path: The file, for the message.
        key: The key of the results in it; `""` for a file of one run.
        num_classes: Number of classes; that of the results' class names or errors by default.
    """
    first = {**_DATASET, "last": {"per_class_error": [_ANYTHING, None]}}
    if not key:
        first["dataset"] = _NAME
    _check(results, first, key, path)
    named = results.get("class_names") or results["last"]["per_class_error"]
    num_classes = num_classes or max(2, len(named))
    sizes = ("many", "medium", "few", "top5")
    errors = {
        "mean_error": _PERCENT,
        "per_class_error": [_OrNull(_PERCENT), num_classes],
        **{f"{name}_error?": _PERCENT for name in sizes},
        "error?": _PERCENT,
        "balanced_accuracy?": _PERCENT,
        "auc?": _PERCENT,
        "oracle_error?": _PERCENT,
    }
    form = {
        "method": _STRING,
        "seed": _WHOLE,
        "split?": _STRING,
        "last": errors,
        "best": errors,
        "counts?": [_whole("a whole number of at least 1", 1), num_classes],
        "parameters?": _WHOLE,
        "seconds?": _AMOUNT,
        "replicas?": [_whole("a whole number of at least 1", 1), None],
        "config?": _CONFIG,
        "versions?": _STRINGS,
        "hardware?": _STRING,
    }
    _check(results, form, key, path)
    _check_each(results.get("margins", {}), _margins(num_classes), _join(key, "margins"), path)
    try:
        json.dumps(results, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        where = f"`{key}` " if key else ""
        raise ValueError(
            f"{path}: {where}must hold finite numbers and valid strings only, nested less deeply."
        ) from None


def check_diagnosis(diagnosis: dict, num_classes: int, path: Path) -> None:
    """Checks the contents of a run's `diagnosis.json`."""
    index = _whole(f"a class from 0 to {num_classes - 1}", 0, num_classes - 1)
    form = {
        "n": _WHOLE,
        "margins": _margins(num_classes),
        "confusion": _OrNull([[_WHOLE, num_classes], num_classes]),
        "group_confusion": [[_WHOLE, 3], 3],
        "most_confused": [(index, index, _WHOLE), None],
        "reliability": {
            "confidence": [_OrNull(_SHARE), None],
            "accuracy": [_OrNull(_SHARE), None],
            "count": [_WHOLE, None],
            "ece": _SHARE,
        },
        "warnings?": [_STRING, None],  # Absent in older runs.
    }
    _check_each(diagnosis["splits"], form, "splits", path)
    for name, values in diagnosis["splits"].items():
        bins = values["reliability"]
        if not len(bins["confidence"]) == len(bins["accuracy"]) == len(bins["count"]):
            raise ValueError(f"{path}: lists of `splits.{name}.reliability` must have one length.")


def _check_each(splits, form, key, path):
    """Checks what is held for each split, by any name."""
    _check(splits, {}, key, path)
    for name, values in splits.items():
        _check(values, form, f"{key}.{name}", path)


def _check(value, form, key, path):
    """Raises unless a value has a form: a `_Form`; an object of forms by key, of which those that
    end in "?" may be missing; a list of one form and a length; or one form for each part.
    """
    if isinstance(form, _OrNull):
        if value is not None:
            _check(value, form.form, key, path)
    elif isinstance(form, _Form):
        if not form.fits(value):
            _refuse(value, form.text, key, path)
    elif isinstance(form, dict):
        if not isinstance(value, dict):
            _refuse(value, "an object", key, path)
        for name, inner in form.items():
            plain = name.removesuffix("?")
            if plain in value:
                _check(value[plain], inner, _join(key, plain), path)
            elif plain == name:
                raise ValueError(f"{path} lacks the key `{_join(key, plain)}`.")
    else:
        inner, length = form if isinstance(form, list) else (None, len(form))
        if not isinstance(value, list) or (length is not None and len(value) != length):
            _refuse(value, "a list" if length is None else f"a list of {length}", key, path)
        for i, part in enumerate(value):
            _check(part, inner or form[i], f"{key}[{i}]", path)


def _refuse(value, text, key, path):
    raise ValueError(f"{path}: `{key}` must be {text}. Received: {reprlib.repr(value)}")


def _join(key, name):
    return f"{key}.{name}" if key else name
