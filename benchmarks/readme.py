"""Writes `benchmarks/README.md` from the JSON files beside it.

    python benchmarks/readme.py

`training.py` and `recurrence.py` do so when they have measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).resolve().parent
TABLES = {"shuttle": "Statlog Shuttle", "solar_flare": "Solar Flare, flares of class C"}

TRAINING_ROWS = {
    "ours_float32": "keras_ldam, float32",
    "ours_bfloat16": "keras_ldam, bfloat16",
    "torch_float32": "PyTorch, channels last, float32",
    "torch_bfloat16": "PyTorch, channels last, bfloat16 autocast",
    "keras_float32": "plain Keras `fit`, float32",
    "keras_bfloat16": "plain Keras `fit`, bfloat16",
    "convolutions_float32": "the network's convolutions alone, TensorFlow, float32",
    "ours_float32_xla": "keras_ldam, float32, XLA (`--jit on`)",
    "ours_float32_cross_entropy": "keras_ldam, float32, cross-entropy instead of LDAM",
    "ours_float32_from_pipeline": "keras_ldam, float32, from its input pipeline",
    "ours_cores_float32": "keras_ldam, cores divided, float32",
    "ours_cores_bfloat16": "keras_ldam, cores divided, bfloat16",
    "torch_cores_float32": "PyTorch, cores divided, float32",
    "torch_cores_bfloat16": "PyTorch, cores divided, bfloat16 autocast",
    "ours_cores_float32_xla": "keras_ldam, cores divided, float32, XLA",
}
TRAINING_BARS = [
    ("float32_to_torch", "float32, to PyTorch", ">=", 1.1),
    ("bfloat16_to_torch", "bfloat16, to PyTorch's autocast", ">=", 1.0),
    ("float32_to_keras", "float32, to plain Keras `fit`", ">=", 1.5),
    ("convolutions_to_torch", "if all but the convolutions cost nothing: to PyTorch", "", None),
    ("convolutions_to_keras", "the same: to plain Keras `fit`", "", None),
    ("bfloat16_to_keras", "bfloat16, to plain Keras `fit` in bfloat16", ">=", 1.5),
    ("ldam_more_of_a_step_percent", "LDAM more than cross-entropy, % of a step", "<=", 3),
    ("ldam_to_cross_entropy_8142_time", "LDAM to cross-entropy, 8,142 classes: time", "<=", 1.3),
    ("ldam_to_cross_entropy_8142_memory", "the same: memory", "<=", 1.3),
    ("pipeline_to_cached_batch", "input pipeline to a cached batch", ">=", 0.95),
    ("cores_to_one_device", "two replicas on two cores to one device, float32", ">=", 0.9),
    ("cores_to_one_device_bfloat16", "the same, bfloat16", ">=", 0.9),
    ("cores_to_torch", "two replicas, float32, to PyTorch", ">=", 1.1),
    ("cores_to_torch_bfloat16", "the same, bfloat16, to its autocast", ">=", 1.0),
    ("cores_to_torch_cores", "two replicas, float32, to PyTorch's two", "", None),
    ("cores_to_torch_cores_bfloat16", "the same, bfloat16", "", None),
    ("cores_to_keras", "two replicas, float32, to plain Keras `fit`", ">=", 1.5),
    ("cores_to_keras_bfloat16", "the same, both bfloat16", ">=", 1.5),
    ("xla_to_none", "XLA to none on this CPU, on which `--jit auto` goes", "", None),
    ("bfloat16_to_float32", "bfloat16 to float32", "", None),
]
LOSSES = ("keras_cross_entropy", "cross_entropy", "ldam")

RECURRENCE_ROWS = {
    "ours_one_batch": "keras_ldam, one batch padded to 200 words",
    "torch_padded_one_batch": "PyTorch, the same batch, padded, oneDNN",
    "torch_plain_one_batch": "PyTorch, the same batch, padded, without oneDNN",
    "torch_packed_one_batch": "PyTorch, the same batch, packed",
    "torch_patient_one_batch": "PyTorch, the same batch, padded, oneDNN, threads that do not spin",
    "keras_one_batch": "plain Keras `fit` with masks, the same batch",
    "ours_real_lengths": "keras_ldam, reviews of like length together",
    "torch_padded_real_lengths": "PyTorch, the same batches, padded, oneDNN",
    "torch_patient_real_lengths": "PyTorch, the same batches, padded, oneDNN, no spinning",
    "torch_packed_real_lengths": "PyTorch, the same batches, packed",
    "ours_from_pipeline": "keras_ldam, these batches from its input pipeline",
    "pipeline_alone": "the input pipeline without training",
}
RECURRENCE_BARS = [
    ("one_batch_to_torch", "one padded batch, to PyTorch; target for CPUs with AVX2", ">=", 1.1),
    ("real_lengths_to_torch", "batches of like length, to PyTorch; target for AVX2", ">=", 1.5),
    ("real_lengths_to_torch", "the same; target for CPUs with AMX", ">=", 4),
    (
        "real_lengths_to_torch_one_batch",
        "batches of like length, to PyTorch on reviews in random order, padded; target for AVX2",
        ">=",
        1.5,
    ),
    ("real_lengths_to_torch_one_batch", "the same; target for AMX", ">=", 4),
    ("one_batch_to_keras", "one padded batch, to plain Keras `fit`", "", None),
    ("real_lengths_to_keras_one_batch", "batches of like length, to plain Keras `fit`", "", None),
    ("pipeline_to_memory", "input pipeline to the same batches in memory", ">=", 0.95),
]


def write() -> None:
    """Writes the README from whatever has been measured."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `benchmarks/readme.py` from the JSON files here; do not edit. Each benchmark",
        "is one program, whose first lines say what it measures, and how. How files are read from",
        "disk is in [jpeg_pipeline.json](jpeg_pipeline.json), by `jpeg_pipeline.py`; how fast",
        "`bin/predict` answers is in [prediction.json](prediction.json), by `prediction.py`; time",
        "and memory of 10,000 to 1,000,000 classes are in [many_classes.json](many_classes.json),",
        "by `many_classes.py`, and what counts of 10,000,000 cost alone in",
        "[class_counts.json](class_counts.json), by `class_counts.py`; devices on JAX are in",
        "[jax_devices.json](jax_devices.json), by `jax_devices.py`; what augmentation, mixtures,",
        "sharpness-aware steps and averages add to a step is in",
        "[ingredients.json](ingredients.json), by `ingredients.py`.",
    ]
    sections = {
        "training.json": training,
        "recurrence.json": recurrence,
        "table.json": table,
        "pretrained.json": pretrained,
    }
    for file, section in sections.items():
        if (HERE / file).exists():
            lines += ["", *section(json.loads((HERE / file).read_text()))]
    (HERE / "README.md").write_text("\n".join([*lines, ""]))


def training(results: dict) -> list[str]:
    """The section about ResNet-32 and the losses."""
    lines = [
        f"## Training ResNet-32, batch {results['batch']}",
        "",
        *circumstances(results),
        "",
        *bars(TRAINING_BARS, results["ratios"]),
        "",
        *rates("images/s", TRAINING_ROWS, results["images_per_second"]),
        "",
        "The loss alone, forward and backward:",
        "",
        "| classes | batch | Keras' cross-entropy, ms | ours | LDAM | time, LDAM/Keras' | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for k, of in results["loss_milliseconds"].items():
        times = " | ".join(f"{of[name]['median']:.2f}" for name in LOSSES)
        lines.append(
            f"| {int(k):,} | {results['loss_batches'][k]} | {times} | "
            f"{results['ratios'][f'ldam_to_cross_entropy_{k}_time']} | "
            f"{results['ratios'][f'ldam_to_cross_entropy_{k}_memory']} |"
        )
    return [*lines, "", "Memory: the peak of a pass beyond its inputs, on 40 million scores."]


def recurrence(results: dict) -> list[str]:
    """The section about the network for reviews."""
    reviews, memory, found = results["reviews"], results["peak_memory_gb"], results["ratios"]
    lines = [
        f"## Training two bidirectional LSTMs, batch {reviews['batch']}",
        "",
        *circumstances(results),
        "",
        f"The CPU has {', '.join(results['instructions'])}: {kind_of(results['instructions'])}",
        "",
        f"Reviews: {reviews['source']}; half of them have at most {reviews['median_length']:.0f} "
        f"words, {reviews['cut_percent']} % are cut at 200. Beside others of like length they are "
        f"padded to {reviews['mean_padded_length']} words in the mean. The ratios are to PyTorch's "
        "fastest way.",
        "",
        *bars(RECURRENCE_BARS, found),
    ]
    if memory is not None:
        verdict = "met" if memory < 4 else "**missed**"
        lines.append(f"| peak memory of `bin/train`, GB | {memory} | under 4 | {verdict} |")
    return [*lines, "", *rates("reviews/s", RECURRENCE_ROWS, results["reviews_per_second"])]


def table(results: dict) -> list[str]:
    """The section about tables of one's own, beside gradient boosting."""
    seeds = results["seeds"]
    lines = [
        "## Tables: a perceptron and gradient boosting",
        "",
        f"    {results['command']}",
        "",
        f"{machine(results)}. Mean ± standard deviation over {seeds} seeds, each of "
        "which divides the table anew; percent.",
    ]
    for name, found in results["tables"].items():
        counts = ", ".join(f"{n:,}" for n in found["counts"].values())
        lines += [
            "",
            f"{TABLES[name]}: {found['rows']:,} rows, {found['columns']} columns, classes of "
            f"{counts} rows.",
            "",
            "| | mean error | error on the rarest class | average precision | CPU seconds |",
            "|---|---|---|---|---|",
        ]
        rarest = min(range(len(found["counts"])), key=list(found["counts"].values()).__getitem__)
        means = {}
        for way, runs in found["found"].items():
            measures = [
                [run["mean_error"] for run in runs],
                [run["per_class_error"][rarest] for run in runs],
                [run["average_precision"] for run in runs],
            ]
            cells = map(spread, measures)
            seconds = mean([run["cpu_seconds"] for run in runs])
            lines.append(f"| {way} | {' | '.join(cells)} | {seconds:.0f} |")
            means[way] = mean(measures[0])
        best = min(means, key=means.get)
        lines += ["", f"The smallest mean error is that of {best}."]
    memory, space = results["memory_mb"], results["feature_space"]
    (few, small), (many, large) = memory.items()
    return [
        *lines,
        "",
        f"Loading {int(few):,} rows leaves {small:.0f} MB in the memory, {int(many):,} rows "
        f"{large:.0f} MB, beside pages of the temporary file that the system may drop. Keras' "
        f"`FeatureSpace` read a table of {space['columns']} columns {space['passes_of_adapt']} "
        f"times to adapt, and made {100 * space['nan_share_of_that_column']:.0f} % of the column "
        "with one missing number NaN.",
    ]


def pretrained(results: dict) -> list[str]:
    """The sections about heads on pretrained encoders."""
    titles = {
        "texts": (
            "Heads on a pretrained text encoder",
            "IMDB with one negative training review for 10 positive ones; frozen means of "
            "{words:,} word vectors.",
        ),
        "tuned": (
            "The same encoder, tuned",
            "As above, the first 256 words of each review; the head alone, then the word vectors "
            "too.",
        ),
        "images": (
            "Heads on a pretrained image network",
            "CIFAR-100 with 500 to 5 images of a class, scaled up to {size} × {size}; the "
            "{features:,} features of a frozen EfficientNet-Lite0. Many: more than 100 images, "
            "few: fewer than 20.",
        ),
    }
    lines = []
    for part, (title, text) in titles.items():
        if part not in results:
            continue
        measured = results[part]
        names = list(next(iter(measured["found"].values()))[0])
        lines += [
            *([""] if lines else []),
            f"## {title}",
            "",
            f"    {measured['command']}",
            "",
            f"{machine(measured)}. {text.format(**measured)} Errors in percent, mean ± standard "
            f"deviation over {measured['seeds']} seeds.",
            "",
            f"| head | {' | '.join(name.replace('_', ' ') for name in names)} |",
            f"|---|{'---|' * len(names)}",
        ]
        for way, runs in measured["found"].items():
            measures = [[run[name] for run in runs] for name in names]
            lines.append(f"| {way} | {' | '.join(map(spread, measures))} |")
    return lines


def machine(results: dict) -> str:
    """What it was measured on, and with."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{results['hardware']}; {versions}"


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"


def kind_of(instructions: list[str]) -> str:
    """Which of the targets a processor is to be held to."""
    if "amx_bf16" in instructions:
        return "the targets for AMX apply."
    if "avx512f" not in instructions:
        return "the targets for AVX2 apply."
    return "AVX-512 without AMX, of neither of the kinds that the targets were set for."


def circumstances(results: dict) -> list[str]:
    """The command, the machine, and how busy it was."""
    least, most = min(results["load_average"]), max(results["load_average"])
    return [
        f"    {results['command']}",
        "",
        f"{machine(results)}; {results['rounds']} rounds in turn. The machine was "
        f"shared: its load was {least} to {most} meanwhile.",
    ]


def bars(listed: list[tuple], found: dict) -> list[str]:
    """The table of ratios beside what was aimed at, and what they are."""
    lines = ["Ratios are of speeds unless a row says otherwise: above 1, ours is faster.", ""]
    lines += ["| | ratio | target | |", "|---|---|---|---|"]
    for name, text, sign, bar in listed:
        if name not in found:
            continue
        value, verdict, shown = found[name], "", ""
        if bar is not None:
            verdict = "met" if (value >= bar if sign == ">=" else value <= bar) else "**missed**"
            shown = f"{'at least' if sign == '>=' else 'at most'} {bar}"
        lines.append(f"| {text} | {value} | {shown} | {verdict} |")
    return lines


def rates(unit: str, rows: dict, found: dict) -> list[str]:
    """The table of what each contestant did."""
    lines = [f"| | {unit}, median | smallest – largest |", "|---|---|---|"]
    for name, text in rows.items():
        if name in found:
            of = found[name]
            lines.append(
                f"| {text} | {of['median']:.0f} | {of['smallest']:.0f} – {of['largest']:.0f} |"
            )
    return lines


if __name__ == "__main__":
    write()
