"""What the guide on stronger training takes from its benchmark of costs.

python docs/ingredients_table.py    # prints the table
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
MADE = {
    "autoaugment": "AutoAugment",
    "cutout": "cutout",
    "autoaugment, cutout": "both",
    "mixup": "mixup",
    "cutmix, rare partners": "CutMix, rare partners",
}


def table() -> str:
    """Returns the rows of `benchmarks/ingredients.json` in Markdown."""
    found = json.loads((ROOT / "benchmarks" / "ingredients.json").read_text())
    steps, batches = (
        {name: times["median"] for name, times in found[key].items()}
        for key in ("step_ms", "batch_ms")
    )
    whole = steps["published"]
    more = {title: batches[name] - batches["published"] for name, title in MADE.items()}
    more["sharpness-aware steps"] = steps["sharpness"] - whole
    more["averaged weights"] = steps["average"] - whole
    lines = [
        f"| ingredient | CPU time on top of a step's {whole:.0f} ms | % |",
        "|---|---|---|",
        *(f"| {name} | {ms:.1f} ms | {100 * ms / whole:.1f} |" for name, ms in more.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
