"""What class counts alone tell: margins, weights, and hyper-parameters to start with."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_ldam import counts as class_counts

_STRENGTHS = ((2.0, "none"), (5.0, "mild"), (20.0, "moderate"), (math.inf, "strong"))
"""Ratios below which an imbalance has a name: this project's own reading. The paper's are 10
and 100."""

_BETAS = (0.9999, 0.999, 0.99, 0.9)
"""Those that Cui et al. try."""

_LARGEST_WEIGHT_RATIO = 400
"""No class is to weigh more often as much as another. This project's own bound: it gives 0.9999 for
the paper's CIFAR data, as in the official code, and 0.999 for iNaturalist 2018, as Cui et al."""

_GROUPED = re.compile(r"\d{1,3}([.,]\d{3})+")
"""A number that may be grouped by thousands, or two numbers, or one with decimals."""

_TOTALS = ("total", "sum", "all", "overall", "summe", "gesamt")

_SCALES = (15, 30)
_FEW_EPOCHS = 30
"""Below it the larger scale is not for networks that are to learn many classes. Measured were 8 and
12 epochs; the paper has 90 and more. The number between them is this project's own."""
_SLOW_START = 100
"""So many steps text networks took at least, in `benchmarks/networks.json`, to leave one class."""
_BATCH = 32
_MANY_OF_FEW_EPOCHS = 50
_MANY_CLASSES = 1000
"""From here on the paper's settings for iNaturalist, below it those for CIFAR."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A suggested hyper-parameter.

    Args:
        name: Name of the argument in this library.
        value: Suggested value.
        reason: Why it follows from these counts.
        source: Where it comes from.
    """

    name: str
    value: float
    reason: str
    source: str


@dataclasses.dataclass(frozen=True)
class Advice:
    """What `advise` found. `str()` gives it as text, `to_json()` as plain values.

    Args:
        counts: Training examples per class, int64 `[K]`.
        class_names: Name of each class; its number where none is given.
        imbalance_ratio: ρ = largest / smallest count.
        strength: `"none"`, `"mild"`, `"moderate"` or `"strong"`.
        worthwhile: Whether the imbalance is strong enough for margins or weights to matter.
        constant: C of Δ_j = C / n_j^(1/4), in cosine units.
        margins: Δ for the suggested `max_margin`, float32 `(num_classes,)`.
        class_weights: Effective-number weights for the suggested `beta`, float32
            `(num_classes,)`, mean 1.
        groups: Number of classes that are many, medium and few.
        proposals: Suggested hyper-parameters.
        remarks: Further remarks on these counts.
    """

    counts: np.ndarray
    class_names: Sequence[str]
    imbalance_ratio: float
    strength: str
    worthwhile: bool
    constant: float
    margins: np.ndarray
    class_weights: np.ndarray
    groups: dict[str, int]
    proposals: tuple[Proposal, ...]
    remarks: tuple[str, ...]

    def __getitem__(self, name: str) -> float:
        """Returns the suggested value of a hyper-parameter."""
        for proposal in self.proposals:
            if proposal.name == name:
                return proposal.value
        known = ", ".join(proposal.name for proposal in self.proposals)
        raise KeyError(f"no proposal for {name!r}; available: {known}")

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON can hold it."""
        return {
            "counts": self.counts.tolist(),
            "class_names": list(self.class_names),
            "imbalance_ratio": self.imbalance_ratio,
            "strength": self.strength,
            "worthwhile": self.worthwhile,
            "constant": self.constant,
            "margins": [round(float(value), 6) for value in self.margins],
            "class_weights": [round(float(value), 6) for value in self.class_weights],
            "groups": self.groups,
            "proposals": [dataclasses.asdict(proposal) for proposal in self.proposals],
            "remarks": list(self.remarks),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.counts.sum():,} training examples in {len(self.counts):,} classes, from "
            f"{self.counts.max():,} down to {self.counts.min():,}: ratio "
            f"{self.imbalance_ratio:,.4g}, imbalance {self.strength}.",
            "Classes: "
            + ", ".join(f"{number:,} {name}" for name, number in self.groups.items())
            + " (more than 100, 20 to 100, fewer than 20 examples).",
            "",
            *self.remarks,
            *([""] if self.remarks else []),
            "Start with:" if self.worthwhile else "If you try it anyway:",
        ]
        for proposal in self.proposals:
            lines.append(f"  {proposal.name} = {proposal.value:g}")
            lines.append(f"      {proposal.reason}")
            lines.append(f"      Source: {proposal.source}.")
        lines += [
            "",
            f"Margins C / n^(1/4) with C = {self.constant:.4g}, and effective-number weights:",
        ]
        shown = _some(self.counts)
        width = max(7, *(len(self.class_names[j]) for j in shown if j is not None))
        lines.append(f"  {'class':>{width}} {'examples':>9} {'margin':>8} {'weight':>8}")
        for j in shown:
            if j is None:
                lines.append(f"  {'…':>{width}}")
                continue
            lines.append(
                f"  {self.class_names[j]:>{width}} {self.counts[j]:>9,} {self.margins[j]:>8.4f} "
                f"{self.class_weights[j]:>8.4g}"
            )
        return "\n".join(lines)


def _some(counts: np.ndarray, most: int = 24) -> list[int | None]:
    """Classes to show: all, or the most frequent and the rarest with None between."""
    order = np.argsort(-counts, kind="stable")
    if len(order) <= most:
        return list(order.tolist())
    return [*order[: most // 2].tolist(), None, *order[-most // 2 :].tolist()]


def advise(counts: Sequence[int] | np.ndarray | Mapping[Any, int], *, epochs: int = 200) -> Advice:
    """Suggests margins, weights and hyper-parameters from class counts alone.

    The suggestions are a start, not the best values: tune them on a validation split by balanced
    error.

    Args:
        counts: Training examples per class, shape `(num_classes,)`, each at least 1; or a mapping
            from the classes, or their names, to them.
        epochs: Number of epochs you will train for, at least 1.

    Returns:
        An `Advice`; print it.

    Raises:
        ValueError: if `counts` or `epochs` are out of range; a class without examples is named.

    Example:

    >>> advice = advise([12500, 1250], epochs=10)
    >>> advice.strength, advice["start_epoch"], advice["max_margin"]
    ('moderate', 8, 0.5)
    >>> advise([100, 90, 95]).worthwhile
    False

    References:
        Cao et al., 2019; Cui et al., 2019; and the constants of the official LDAM code.
    """
    names, counts = _named(counts)
    counts = class_counts.check_counts(counts, names)
    class_counts.check_whole("epochs", epochs, 1)
    ratio = float(counts.max() / counts.min())
    strength = next(name for below, name in _STRENGTHS if ratio < below)
    margin = _max_margin(counts)
    beta = _beta(counts)
    starts = list(_start_epoch(counts, int(epochs)))
    proposals = [
        margin,
        _scale(counts, margin.value, int(epochs)),
        beta,
        *starts,
    ]
    return Advice(
        counts=counts,
        class_names=class_counts.ClassNumbers(len(counts))
        if names is None
        else tuple(map(str, names)),
        imbalance_ratio=ratio,
        strength=strength,
        worthwhile=strength != "none",
        constant=float(margin.value * counts.min() ** 0.25),
        margins=class_counts.margins(counts, max_margin=margin.value),
        class_weights=class_counts.class_weights(counts, beta=beta.value),
        groups={name: len(classes) for name, classes in class_counts.shot_groups(counts).items()},
        proposals=tuple(proposals),
        remarks=tuple(_remarks(counts, ratio, strength, int(epochs), starts)),
    )


def _named(counts: Any) -> tuple[list[str] | None, Any]:
    """Names of the classes, if there are any but their numbers, and the counts in class order."""
    if not hasattr(counts, "items"):
        return None, counts
    pairs = _by_name(counts.items())
    if set(pairs) == set(range(len(pairs))):  # True and 1.0 are numbers of classes too.
        return None, [pairs[key] for key in range(len(pairs))]
    numbers = {key: int(key) for key in pairs if str(key).isascii() and str(key).isdigit()}
    if sorted(numbers.values()) == list(range(len(pairs))):
        return None, [pairs[key] for key in sorted(pairs, key=lambda key: numbers[key])]
    return [str(key) for key in pairs], list(pairs.values())


def _max_margin(counts: np.ndarray) -> Proposal:
    if len(counts) >= _MANY_CLASSES:
        return Proposal(
            "max_margin",
            0.3,
            f"With {len(counts):,} classes a larger margin under-fits; the rarest class gets this "
            f"one, the most frequent {0.3 * (counts.min() / counts.max()) ** 0.25:.3f}.",
            "Cao et al., 2019, appendix B: 0.3 for iNaturalist",
        )
    return Proposal(
        "max_margin",
        0.5,
        "As large as training can still fit; the rarest class gets this one, the most frequent "
        f"{0.5 * (counts.min() / counts.max()) ** 0.25:.3f}. Lower it if the training error of "
        "the rare classes stays high.",
        "Cao et al., 2019, appendix B: 0.5 for CIFAR and Tiny ImageNet",
    )


def _scale(counts: np.ndarray, margin: float, epochs: int) -> Proposal:
    num_classes = len(counts)
    # K unit vectors are at best 1 + 1/(K-1) apart in cosine; the margin is taken off that.
    gap = 1 + 1 / (num_classes - 1) - margin
    least = math.log(99 * (num_classes - 1)) / gap
    reason = (
        f"Cosines are at most 1, so the softmax needs a scale: below {least:.1f} an example of the "
        "rarest class cannot reach probability 0.99 after its margin, even with the "
        f"{num_classes:,} class vectors as far apart as possible. {_SCALES[0]} is this "
        f"library's default, {_SCALES[1]} that of the official code, for more classes"
    )
    few = least > _SCALES[0] and epochs < _FEW_EPOCHS
    if few:
        reason += (
            f"; in {epochs:,} epochs a network hardly gets that far, and with 100 classes and 12 "
            f"epochs {_SCALES[1]} made all features of a plain CNN zero"
        )
    return Proposal(
        "scale",
        _SCALES[0] if least <= _SCALES[0] or few else _SCALES[1],
        f"{reason}.",
        "benchmarks of this project; official LDAM code; the lower bound is calculated",
    )


def _beta(counts: np.ndarray) -> Proposal:
    for value in _BETAS:
        weights = class_counts.class_weights(counts, beta=value)
        ratio = float(weights.max() / weights.min())
        if ratio <= _LARGEST_WEIGHT_RATIO:
            break
    used = {0.9999: "; 0.9999 in the official LDAM code", 0.999: "; 0.999 is theirs on iNaturalist"}
    return Proposal(
        "beta",
        value,
        f"The rarest class then weighs {ratio:,.3g} times the most frequent one (1/n would make "
        f"it {counts.max() / counts.min():,.4g}); classes beyond about {1 / (1 - value):,.0f} "
        f"examples weigh alike. Of {', '.join(map(str, _BETAS))} it is the largest at which no "
        f"class weighs more than {_LARGEST_WEIGHT_RATIO} times another.",
        f"Cui et al., 2019, who try 0.9 to 0.9999{used.get(value, '')}; the bound is this "
        "project's own",
    )


def _start_epoch(counts: np.ndarray, epochs: int) -> Iterator[Proposal]:
    if epochs < 2:
        return
    # Many classes with few images: 60 of 90 epochs; otherwise 160 of 200.
    share, source = (
        (2 / 3, "60 of 90 epochs on iNaturalist, Cao et al., 2019, appendix B")
        if len(counts) >= _MANY_CLASSES
        else (0.8, "160 of 200 epochs in the official LDAM code")
    )
    start = min(max(1, round(share * epochs)), epochs - 1)
    yield Proposal(
        "start_epoch",
        start,
        f"Of {epochs:,} epochs, counted from zero: class weights are enabled when the learning "
        "rate drops, after the features have been learned from all examples alike.",
        source,
    )


def _remarks(
    counts: np.ndarray, ratio: float, strength: str, epochs: int, starts: list[Proposal]
) -> Iterator[str]:
    spread = ratio**0.25
    if strength == "none":
        yield (
            f"The imbalance is too mild for any of this to matter: the margins differ by a factor "
            f"of {spread:.2f} only. Plain cross-entropy will do; look at the balanced error all "
            "the same."
        )
    elif strength == "mild":
        yield (
            f"A mild imbalance: the margins differ by a factor of {spread:.2f}. A gain may well "
            "drown in the spread over seeds; the paper's smallest ratio is 10."
        )
    most = counts.max()
    if len(counts) > 2 and 2 * most == counts.sum():
        yield (
            f"The largest count, {most:,}, equals the sum of all others: if it is a total and no "
            "class, remove it."
        )
    lonely = int(np.sum(counts < 5))
    if lonely:
        yield (
            f"{lonely:,} of {len(counts):,} classes have fewer than 5 examples: a margin keeps "
            "what is learned of them apart, but it cannot replace examples."
        )
    if strength != "none" and len(counts) >= _MANY_OF_FEW_EPOCHS and epochs < _FEW_EPOCHS:
        yield (
            f"{len(counts):,} classes in {epochs:,} epochs: with 100 classes and 8 epochs "
            "CrossEntropy with DRW was ahead of LDAM with DRW; try both, or train longer."
        )
    steps = math.ceil(counts.sum() / _BATCH) * sum(int(start.value) for start in starts)
    if strength != "none" and starts and steps < _SLOW_START:
        yield (
            f"With batches of {_BATCH} there are only {steps:,} steps before class weights come "
            f"on. Text networks predict one class for their first {_SLOW_START} steps and more, "
            "whatever the loss: use smaller batches or more epochs, and look at "
            "keras_ldam.ClassErrors."
        )
    if epochs < 2:
        yield "With one epoch there is no time to defer re-weighting."


def read_counts(path: str | Path) -> np.ndarray | dict[str, int]:
    """Reads class counts from a file.

    What could be read in two ways is refused with its line: more than one number after a name, a
    comma or a point that may or may not group thousands, a name that appears twice, a total.

    Args:
        path: Text with a line per class, `COUNT` or `NAME,COUNT` (tabs and semicolons separate as
            well), with or without a line of headings; or all counts in one line; or JSON: a list,
            an object of names and counts, or a run's `data.json`.

    Returns:
        What `advise` takes: int64 array of shape `(num_classes,)`, or counts by name.

    Raises:
        ValueError: if the file cannot be read, or does not hold a count of at least 1 for each of
            at least two classes.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ValueError(f"{path} cannot be read: {reason}.") from None
    try:
        values = _from_json(text) if text.lstrip().startswith(("[", "{")) else _from_lines(text)
        if not isinstance(values, dict):
            return class_counts.check_counts(values)
        counts = class_counts.check_counts(list(values.values()), list(values))
        return dict(zip(values, counts.tolist(), strict=True))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _from_json(text: str) -> Any:
    try:
        values = json.loads(text, object_pairs_hook=_by_name)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("it is not valid JSON.") from None
    if isinstance(values, dict) and isinstance(values.get("counts"), list):
        names, counts = values.get("class_names"), values["counts"]
        if names is None:
            return counts
        if not isinstance(names, list) or len(names) != len(counts):
            raise ValueError(
                f"class_names must be a list of {len(counts)} names, as many as counts."
            )
        for name in names:
            if not isinstance(name, str):
                raise ValueError(f"class_names must be text. Received: {name!r:.60}")
        return _by_name(zip(names, counts, strict=True))
    return values


def _from_lines(text: str) -> Any:
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    for n, line in lines:
        if "\0" in line:
            raise ValueError(f"line {n} holds a NUL character: the file is not text in UTF-8.")
    grouped = [line for _, line in lines if _GROUPED.fullmatch(line)]
    if lines and len(grouped) == len(lines):
        raise ValueError(
            f"line 1 is ambiguous: {grouped[0]!r} may be one count or several; write counts "
            "without separators of thousands."
        )
    if len(lines) == 1:
        return [_count(part, 1) for part in re.split(r"[\s,;]+", lines[0][1].strip(" ,;"))]
    fields = [(n, _fields(line)) for n, line in lines]
    if len(fields) > 1 and _is_heading(fields[0][1]):
        if len(fields[0][1]) != len(fields[1][1]):
            raise ValueError(f"line {fields[0][0]} does not end in a count: {fields[0][1][-1]!r}.")
        del fields[0]
    for n, parts in fields:
        if len(parts) > 2:
            raise ValueError(
                f"line {n} has {len(parts)} fields, so its count is ambiguous; leave a name and "
                "a count, and put a name that holds a comma in quotes."
            )
    counts = [_count(parts[-1], n) for n, parts in fields]
    names = [parts[0] if len(parts) == 2 else "" for _, parts in fields]
    if not any(names):
        return counts
    for (n, _), name, count in zip(fields, names, counts, strict=True):
        if not name:
            raise ValueError(f"line {n} has no class name, as other lines do.")
        if name.lower() in _TOTALS and 2 * count == sum(counts):
            raise ValueError(f"line {n} ({name}) is the sum of the other counts: remove it.")
    return _by_name(zip(names, counts, strict=True))


def _is_heading(fields: list[str]) -> bool:
    last = fields[-1].lower()
    words = re.fullmatch(r"[^\W\d]+([ _][^\W\d]+)*", last) is not None
    return words and last not in ("nan", "na", "none", "null", "inf", "unknown")


def _fields(line: str) -> list[str]:
    delimiter = next((mark for mark in "\t;," if mark in line), ",")
    # In quotes a delimiter separates nothing.
    (fields,) = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
    quoted = re.search(r'"\d{1,3}(,\d{3})+"\s*$', line)
    if quoted:  # As spreadsheets write thousands.
        fields[-1] = fields[-1].replace(",", "")
    return [field.strip(" '") for field in fields]


def _count(text: str, line: int) -> float:
    if _GROUPED.fullmatch(text):
        raise ValueError(
            f"line {line} is ambiguous: {text!r} may group thousands; write the count without "
            "separators."
        )
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"line {line} does not end in a count: {text!r}.") from None


def _by_name(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} appears twice.")
        found[name] = value
    return found
