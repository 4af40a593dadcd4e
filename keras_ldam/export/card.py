"""The model card of an export: what it is, its training data, its errors, its limits."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ldam.export.limits import MAX_IMAGE_PIXELS

_FREQUENCIES = {
    "learned": "the scores have learned (learned_frequencies in export.json)",
    "target_prior": "they are where the model is used (target_prior in export.json)",
}

CLASSES = 100
"""Number of classes that the card lists."""


def model_card(facts: dict[str, Any]) -> str:
    """Returns the text of the card, in Markdown.

    Args:
        facts: The contents of `export.json`; `dataset`, `results`, `calibration`, `config`,
            `adjusted`, `several_labels`, `offsets` and `limits` are optional.
    """
    return (
        "\n\n".join(
            [
                f"# {facts['name']}, version {facts['version']}",
                _summary(facts),
                "## Intended use",
                _use(facts),
                "## Classes and errors" if _results(facts) else "## Classes",
                _classes(facts),
                "## Probabilities",
                _probabilities(facts),
                "## Limits",
                _limits(facts),
                "## Versions",
                "\n".join(f"- {name}: {version}" for name, version in facts["versions"].items()),
                *_config(facts),
            ]
        )
        + "\n"
    )


def _summary(facts: dict[str, Any]) -> str:
    kind = {"image": "images", "row": "rows of a table"}.get(facts["input"], "texts")
    kind = f"the pixels of {kind}" if facts.get("of_pixels") else kind
    text = f"A classifier of {kind} with {len(facts['class_names'])} classes"
    if {"dataset", "method", "config", "seed"} <= facts.keys():
        text += (
            f", trained on {facts['dataset']} by the method {facts['method']} "
            f"(loss {facts['config']['loss']}, rule {facts['config']['rule']}, seed "
            f"{facts['seed']})"
        )
    return f"{text}. Exported {facts['created']}."


def _use(facts: dict[str, Any]) -> str:
    if facts["input"] == "image":
        pixels = "the pixels of " if facts.get("of_pixels") else ""
        kind = f"{pixels}images like those of its training data"
    elif facts["input"] == "row":
        kind = "rows like those of its training data"
    else:
        kind = "texts like those of its training data, in the same language"
    if facts.get("several_labels"):
        return f"Deciding about each of the labels below, for {kind}."
    if facts["target_prior"]:
        where = ", where classes are as frequent as target_prior in export.json says"
    elif facts.get("adjusted") or facts.get("offsets"):
        where = ""
    else:
        where = " where every class matters equally, however rare it was in training"
    return (
        f"Classifying {kind}{where}. The model returns one of the classes below for any "
        "input: it was not trained to recognize that an input belongs to none of them."
    )


def _classes(facts: dict[str, Any]) -> str:
    names, counts, results = facts["class_names"], facts["counts"], _results(facts)
    head, rule = "| class | name |", "|---|---|"
    if counts:
        head, rule = f"{head} training {_unit(facts)} |", rule + "---|"
    if results:
        head, rule = head + f" error on {results['split']}, % |", rule + "---|"
    rows = []
    for j, name in enumerate(names[:CLASSES]):
        row = f"| {j} | {_cell(name)} |"
        if counts:
            row += f" {counts[j]} |"
        if results:
            error = results["per_class_error"][j]
            row += f" {'' if error is None else f'{error:.2f}'} |"
        rows.append(row)
    lines = [head, rule, *rows]
    if len(names) > CLASSES:
        lines += ["", f"export.json lists the other {len(names) - CLASSES} classes."]
    if results:
        lines += [
            "",
            f"Mean error over classes: {results['mean_error']:.2f} %. The errors are those of the "
            "model as trained, after its last epoch"
            + (", before the shift to another prior." if facts["target_prior"] else "."),
        ]
    return "\n".join(lines)


def _results(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The errors of a run; None of an export that has none, or others under this name."""
    found = facts.get("results")
    known = isinstance(found, dict) and {"split", "mean_error", "per_class_error"} <= found.keys()
    return found if known else None


def _cell(value: Any) -> str:
    """A value as a cell of a table, on one line."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _unit(facts: dict[str, Any]) -> str:
    """What has one of the classes."""
    return "pixels" if facts.get("of_pixels") else "examples"


def _probabilities(facts: dict[str, Any]) -> str:
    kind = "sigmoid of each" if facts.get("several_labels") else "softmax"
    text = (
        f"The {kind} of the model's scores, multiplied by {facts['scale']:g} and divided by the "
        f"temperature {facts['temperature']:.4g}"
    )
    if facts["target_prior"]:
        text += ", shifted from the class frequencies that the scores have learned to others"
    elif facts.get("offsets"):
        text += ", plus an offset for each class (offsets in export.json)"
    found = facts.get("calibration")
    if not found:
        if facts.get("adjusted"):
            return f"{text}. `keras_ldam.adjust` has made them so."
        if facts["temperature"] != 1:
            return f"{text}. The temperature was given to the export."
        return f"{text}. They are not calibrated: a probability of 0.9 may be right less often."
    return (
        f"{text}. The temperature was fitted on {found['fitted_on']}. Expected calibration error "
        f"on {found['measured_on']}: {found['ece_before']:.2f} % before, "
        f"{found['ece_after']:.2f} % after. For both, the examples are weighted as if the classes "
        f"were as frequent as {_FREQUENCIES[found['class_frequencies']]}."
    )


def _limits(facts: dict[str, Any]) -> str:
    limits = []
    counts = facts["counts"]
    if counts:
        rare = int(np.argmin(counts))
        limits.append(
            f"- The rarest class, {facts['class_names'][rare]}, had {counts[rare]} training "
            f"{_unit(facts)}, the most frequent {max(counts)}."
        )
    if _results(facts):
        limits.append("- The errors are those of a single run; they vary with the seed.")
    limits += [f"- {sentence}" for sentence in facts.get("limits", ())]
    if facts["input"] == "text":
        wordless = ", contain no word" if facts["refuses_wordless"] else ""
        limits.append(
            f"- Refused: texts that are empty{wordless}, contain a NUL byte, exceed "
            f"{facts['max_text_bytes']} bytes, or are not UTF-8."
        )
    elif facts["input"] == "row":
        limits.append("- Refused: infinite numbers.")
        if any(column["kind"] == "text" for column in facts["columns"]):
            limits.append(
                "- Refused: texts that contain a NUL byte, exceed "
                f"{facts['max_text_bytes']} bytes, or are not UTF-8."
            )
    else:
        resized = "arrays of a wrong shape; files of other sizes are resized"
        shape = resized if facts.get("resize") else "images of a wrong shape"
        limits.append(
            f"- Refused: files that cannot be decoded completely, {shape}, and images of more than "
            f"{MAX_IMAGE_PIXELS} pixels."
        )
    limits.append("- Its behavior toward groups of people that the data do not name is unknown.")
    return "\n".join(limits)


def _config(facts: dict[str, Any]) -> list[str]:
    if "config" not in facts:
        return []
    items = facts["config"].items()
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in items if value != ""]
    return ["## Configuration", "\n".join(["| field | value |", "|---|---|", *rows])]
