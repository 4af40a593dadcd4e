"""What the guide on devices says by calculation: time, memory and traffic of large trainings.

python docs/scaling.py    # prints the tables

Measured are the reading of images, in `benchmarks/jpeg_pipeline.json`, and the temporary memory of
the loss, in `benchmarks/jax_devices.json`. The rest are published numbers and assumptions, which
the first table names.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
BATCH = 64
"""Images a GPU in a step."""
FEATURES = 2048
BODY = 23.5e6
"""Parameters of ResNet-50 below its head."""
WORK = 3 * 8.2e9
"""Floating-point operations of ResNet-50 for an image of 224², forward and twice that backward."""
PEAK, USED = 989e12, 0.3
"""bfloat16 operations a second of an H100 or H200, and the assumed part of them that is used."""
INSIDE, OUTSIDE = 450e9, 50e9
"""Bytes a second and GPU between GPUs of one machine, and between machines."""
CORES = 12
"""CPU cores beside each GPU, for the images."""
CASES = (
    ("iNaturalist 2018, 90 epochs", 8_142, 437_513, 90),
    ("10⁶ classes, 10⁷ images, 30 epochs", 1_000_000, 10_000_000, 30),
    ("10⁶ classes, 10⁹ images, 1 epoch", 1_000_000, 1_000_000_000, 1),
)


def read() -> float:
    """Returns the measured images a second and core."""
    found = json.loads((ROOT / "benchmarks" / "jpeg_pipeline.json").read_text())
    return 1000 / float(found["images_per_second"]["keras_ldam"]["cpu_ms_per_image"])


def scores() -> float:
    """Returns the measured bytes for each score of a batch, with what is computed of it."""
    found = json.loads((ROOT / "benchmarks" / "jax_devices.json").read_text())["memory"]
    return found["rows"][0]["temporary"] / found["classes"] / found["batch"]


ENGINES = {
    "tensorflow": "TensorFlow",
    "jax": "JAX, `ShardedBatches`",
    "classes": "JAX, `ShardedClasses`",
}


def steps(classes: int, examples: int, epochs: int, gpus: int, engine: str) -> dict:
    """Returns seconds, bytes and hours of a training with SGD and momentum.

    Args:
        classes: K.
        examples: Images of an epoch.
        epochs: Epochs.
        gpus: Number of GPUs, eight in a machine.
        engine: `"classes"`: the eight GPUs of a machine divide the classes, and have one batch,
            which each of them computes, but for the scores. Otherwise every GPU has all classes
            and its own batch. On JAX every machine reads all batches.
    """
    parts = 8 if engine == "classes" else 1
    head, replicas = 4 * FEATURES * classes / parts, gpus // parts
    body = 4 * BODY
    work = WORK + 3 * 2 * FEATURES * classes / parts
    compute = BATCH * work / (PEAK * USED)
    readers = gpus if engine == "tensorflow" else 8
    reading = BATCH * replicas / (readers * CORES * read())
    # A ring: each sends and receives nearly everything twice.
    sent = 2 * (replicas - 1) / replicas * (body + head)
    wire = sent / (OUTSIDE if gpus > 8 else INSIDE)
    step = max(compute, reading) + wire
    number = epochs * examples / (BATCH * replicas)
    # Weights, gradient and momentum; scores.
    memory = 3 * (body + head) + scores() * BATCH * classes / parts
    return {
        "compute": compute,
        "reading": reading,
        "wire": wire,
        "sent": sent,
        "memory": memory,
        "hours": number * step / 3600,
    }


def assumptions() -> str:
    """Returns what is calculated with, in Markdown."""
    rows = [
        ("images per second and CPU core", f"{read():.0f}", "measured, `jpeg_pipeline.json`"),
        ("bytes per score, with its gradient", f"{scores():.1f}", "measured, `jax_devices.json`"),
        ("operations per image, ResNet-50 at 224²", f"{WORK:.3g}", "published, times 3"),
        ("operations per second, H100 or H200", f"{PEAK:.3g}", "published, bfloat16"),
        ("part of them that is used", f"{USED:.0%}", "assumed"),
        ("bytes per second and GPU, in a machine", f"{INSIDE:.2g}", "published, NVLink"),
        ("the same, between machines", f"{OUTSIDE:.2g}", "assumed, 400 Gbit/s"),
        ("CPU cores beside each GPU", f"{CORES}", "assumed"),
        ("batch a GPU; optimizer", f"{BATCH}; SGD with momentum", "chosen"),
    ]
    lines = ["| | | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def table() -> str:
    """Returns the calculation, in Markdown."""
    lines = [
        "| training | GPUs | engine | compute, ms a step | reading | all-reduce | sent, GB a step "
        "| memory, GB | hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, classes, examples, epochs in CASES:
        for gpus in (8, 64):
            for engine in ENGINES if classes > 10_000 else ("tensorflow", "jax"):
                found = steps(classes, examples, epochs, gpus, engine)
                times = [f"{1000 * found[key]:,.0f}" for key in ("compute", "reading", "wire")]
                sizes = [f"{found[key] / 1e9:.2g}" for key in ("sent", "memory")]
                cells = [name, str(gpus), ENGINES[engine], *times, *sizes, f"{found['hours']:,.1f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(assumptions())
    print()
    print(table())
