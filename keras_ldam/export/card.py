"""The model card of an export: what it is, what it was trained on, how good it is, its limits."""

from __future__ import annotations

import numpy as np

_FREQUENCIES = {
    "learned": "the scores have learned (learned_frequencies in export.json)",
    "target_prior": "they are to be where the model is used (target_prior in export.json)",
}

CLASSES = 100
"""How many classes the card lists."""


def model_card(facts: dict) -> str:
    """The text of the card, in Markdown.

    Args:
        facts: What `export.json` holds; what a user's own model has not (`dataset`, `results`,
            `calibration`, `config`) is left out.
    """
    return (
        "\n\n".join(
            [
                f"# {facts['name']}, version {facts['version']}",
                _summary(facts),
                "## Intended use",
                _use(facts),
                "## Classes" if "results" not in facts else "## Classes and errors",
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


def _summary(facts):
    kind = "images" if facts["input"] == "image" else "texts"
    text = f"A classifier of {kind} into {len(facts['class_names'])} classes"
    if "dataset" in facts:
        text += (
            f", trained on {facts['dataset']} by the method {facts['method']} "
            f"(loss {facts['config']['loss']}, rule {facts['config']['rule']}, seed "
            f"{facts['seed']})"
        )
    return f"{text}. Written {facts['created']}."


def _use(facts):
    if facts["input"] == "image":
        kind = "images like those it was trained on"
    else:
        kind = "texts like those it was trained on, in the same language"
    return (
        f"To tell the classes below apart in {kind}, where every class matters as much as any "
        "other, however rare it was in training. It answers with one of these classes whatever "
        "it is given: it was not taught to say that something is none of them."
    )


def _classes(facts):
    names, counts, results = facts["class_names"], facts["counts"], facts.get("results")
    head, rule = "| class | name |", "|---|---|"
    if counts:
        head, rule = head + " training examples |", rule + "---|"
    if results:
        head, rule = head + f" error on {results['split']}, % |", rule + "---|"
    rows = []
    for j, name in enumerate(names[:CLASSES]):
        row = f"| {j} | {name.replace('|', chr(92) + '|')} |"
        if counts:
            row += f" {counts[j]} |"
        if results:
            error = results["per_class_error"][j]
            row += f" {'' if error is None else f'{error:.2f}'} |"
        rows.append(row)
    lines = [head, rule, *rows]
    if len(names) > CLASSES:
        lines += ["", f"The other {len(names) - CLASSES} classes are in export.json."]
    if results:
        lines += [
            "",
            f"Mean of the classes' errors: {results['mean_error']:.2f} %. These are errors of the "
            "model as trained, after its last epoch"
            + (", before the shift to another prior." if facts["target_prior"] else "."),
        ]
    return "\n".join(lines)


def _probabilities(facts):
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
        f"{found['ece_after']:.2f} % after. In both, examples are weighted as if the classes were "
        f"as frequent as {_FREQUENCIES[found['class_frequencies']]}."
    )


def _limits(facts):
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
        if "config" in facts:
            limits.append(f"- Only the last {facts['config']['max_tokens']} words of a text count.")
        limits.append(
            f"- Refused: empty texts, texts without a word, over {facts['max_text_bytes']} bytes, "
            "or not in UTF-8."
        )
    else:
        limits.append("- Refused: files that cannot be decoded whole, and images of a wrong shape.")
    limits.append("- Nothing is known of how it treats groups of people that the data do not name.")
    return "\n".join(limits)


def _config(facts):
    if "config" not in facts:
        return []
    rows = [f"| {name} | {value} |" for name, value in facts["config"].items() if value != ""]
    return ["## Configuration", "\n".join(["| field | value |", "|---|---|", *rows])]
