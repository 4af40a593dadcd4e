"""What the guide on data of your own takes from the benchmark of pretrained encoders.

python docs/pretrained_table.py    # prints the table
"""

import json
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).parent.parent
PARTS = {
    "texts": "IMDB, word vectors, frozen",
    "tuned": "IMDB, word vectors, tuned",
    "images": "CIFAR-100, EfficientNet-Lite0, frozen",
}
HEADS = {"erm": "plain (ERM)", "ce_drw": "CE-DRW", "la": "logit-adjusted", "ldam_drw": "LDAM-DRW"}


def table() -> str:
    """Returns the mean errors of `benchmarks/pretrained.json` in Markdown."""
    results = json.loads((ROOT / "benchmarks" / "pretrained.json").read_text())
    lines = [f"| | {' | '.join(PARTS.values())} |", f"|---|{'---|' * len(PARTS)}"]
    for head, name in HEADS.items():
        cells = []
        for part in PARTS:
            errors = [run["mean_error"] for run in results[part]["found"][head]]
            cells.append(f"{mean(errors):.2f} ± {stdev(errors):.2f} (n={len(errors)})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
