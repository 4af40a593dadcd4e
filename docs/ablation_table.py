"""What the guide on stronger training takes from the ablations on validation images.

python docs/ablation_table.py    # prints the tables of CIFAR-10
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent


def table(dataset: str, recipe: str) -> str:
    """Returns the changes of a recipe that were tried on a dataset, best first, in Markdown."""
    file = ROOT / "results" / "tuning" / f"{dataset}_ablation.json"
    found = json.loads(file.read_text())
    failed = [run for run in found["failed"] if run["recipe"] == recipe]
    lines = [
        "| changes | epochs | mean error | minutes |",
        "|---|---|---|---|",
        *(
            f"| {run['row']} | {run['epochs']} | {run['mean_error']:.2f} "
            f"| {run['seconds'] / 60:.0f} |"
            for run in found["runs"]
            if run["recipe"] == recipe
        ),
        *(f"| {run['row']} | {run['epochs']} | failed: {run['reason']} | |" for run in failed),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    for recipe in ("", "fast"):
        print(table("cifar10", recipe), end="\n\n")
