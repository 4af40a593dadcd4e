"""What the guide on very many classes takes from its benchmark.

python docs/many_classes.py    # prints the table
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
CASES = {
    "keras_one_hot": "`Dense`, Keras' cross-entropy, one-hot labels",
    "keras": "`Dense`, Keras' sparse cross-entropy",
    "chunked_cross_entropy": "`Dense`, `CrossEntropy` in chunks",
    "ldam": "`CosineDense`, `LDAM`",
    "chunked_ldam": "`CosineDense`, `LDAM` in chunks",
    "sampled_ldam": "`CosineDense`, `LDAM`, sampled negatives",
}


def table() -> str:
    """Returns the rows of `benchmarks/many_classes.json` in Markdown."""
    found = json.loads((ROOT / "benchmarks" / "many_classes.json").read_text())
    rows = {(row["backend"], row["classes"], row["case"]): row for row in found["rows"]}
    lines = ["| backend | classes | head and loss | seconds | MB |", "|---|---|---|---|---|"]
    for backend, classes in sorted({key[:2] for key in rows}):
        for case, name in CASES.items():
            row = rows.get((backend, classes, case))
            if row is None:
                continue
            memory = "" if row["megabytes"] is None else f"{row['megabytes']:,}"
            seconds = f"{row['seconds']:.3g}"
            lines.append(f"| {backend} | {classes:,} | {name} | {seconds} | {memory} |")
    low, high = found["load"]
    lines += [
        "",
        f"One forward and backward pass of head and loss, batch {found['batch']}, "
        f"{found['features']} features, chunks of {found['chunk']:,}, as many negatives.",
        "MB: temporary memory that JAX's compiler plans, without inputs and outputs (class vectors "
        "and their gradient).",
        f"Machine: {found['machine']}, shared; load average {low} to {high} during the runs.",
    ]
    return "\n".join(
        [*lines, "", *(_in_chunks(rows, backend) for backend in ("jax", "tensorflow"))]
    )


def _in_chunks(rows: dict, backend: str) -> str:
    """Returns what chunks cost with 10⁶ classes, in proportion to all scores at once."""
    parts = []
    for whole, chunked, name in (
        ("keras", "chunked_cross_entropy", "`CrossEntropy`"),
        ("ldam", "chunked_ldam", "`LDAM`"),
    ):
        one, other = rows[backend, 10**6, whole], rows[backend, 10**6, chunked]
        part = f"{other['seconds'] / one['seconds']:.2f} times the time"
        if one["megabytes"]:
            part += f" and {other['megabytes'] / one['megabytes']:.3f} times the memory"
        parts.append(f"{name} {part}")
    named = {"jax": "JAX", "tensorflow": "TensorFlow"}[backend]
    return (
        f"- On {named}, with 1,000,000 classes, chunks take, compared with all scores at once: "
        f"{'; '.join(parts)}."
    )


def sharded() -> str:
    """Returns what `benchmarks/jax_devices.json` says of divided classes, in Markdown."""
    found = json.loads((ROOT / "benchmarks" / "jax_devices.json").read_text())["memory"]
    lines = [
        "| devices | class vectors, MB a device | their gradient | temporary | loss, difference | "
        "gradient, largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        sizes = (row[name] / 1e6 for name in ("variables", "gradient", "temporary"))
        cells = [str(row["devices"]), *(f"{size:,.0f}" for size in sizes)]
        cells += [f"{row['loss_difference']:.1g}", f"{row['gradient_difference']:.1g}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"`LDAM` on a `CosineDense`, {found['classes']:,} classes, {found['features']} features, "
        f"batch {found['batch']}, on virtual devices of a CPU: what JAX's compiler plans for each "
        "device, and loss and gradient against those of one device, whose gradient is at most "
        f"{found['rows'][0]['largest_gradient']:.2g}.",
    ]
    return "\n".join(lines)


def counted() -> str:
    """Returns what `benchmarks/class_counts.json` says of counts alone, in Markdown."""
    found = json.loads((ROOT / "benchmarks" / "class_counts.json").read_text())
    names = {
        "import": "importing Keras and the library, and the counts",
        "advise": "`advise`, as text",
        "LDAM": "`LDAM`, its class weights set",
        "ClassErrors": "`ClassErrors`, three compiled steps and results",
        "ClassErrors, not compiled": "the same, not compiled",
        "report": "report of two models, 1,000,000 test examples",
    }
    sizes = sorted({row["classes"] for row in found["rows"]})
    rows = {(row["case"], row["classes"]): row for row in found["rows"]}
    heads = [f"{size:,} classes: {what}" for size in sizes for what in ("seconds", "MiB")]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for case, name in names.items():
        cells = (
            f"{rows[case, size][what]:,}" for size in sizes for what in ("seconds", "mebibytes")
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Processor seconds without imports, and the most memory that the process had, imports "
        f"included. Machine: {found['machine']}; Keras {found['versions']['keras']} on JAX.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
    print()
    print(counted())
    print()
    print(sharded())
