"""What the guide on probabilities takes from its benchmark.

python docs/adjustment_table.py    # prints the table
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
METHODS = {
    "erm": "ERM",
    "ce_drw": "CE-DRW",
    "ldam_drw": "LDAM-DRW",
    "la": "logit-adjusted loss (not in the paper)",
    "crt": "cRT (not in the paper)",
}


def table() -> str:
    """Returns the rows of `benchmarks/adjustment.json` in Markdown."""
    lines = [
        "| runs | balanced accuracy, % | after `adjust` | difference | negative log-likelihood "
        "| after | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = json.loads((ROOT / "benchmarks" / "adjustment.json").read_text())["rows"]
    order = list(METHODS)
    for row in sorted(rows, key=lambda each: (each["dataset"], order.index(each["method"]))):
        accuracy, nll = row["balanced_accuracy"], row["nll"]
        seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
        name = f"{row['dataset']}, {row['epochs']} epochs, {METHODS[row['method']]}, {seeds}"
        lines.append(
            f"| {name} | {accuracy['before']:.1f} | {accuracy['after']:.1f} "
            f"| {_difference(accuracy['difference'], '.1f')} | {nll['before']:.3f} "
            f"| {nll['after']:.3f} | {_difference(nll['difference'], '.3f')} |"
        )
    return "\n".join(lines)


def _difference(values: list[float], form: str) -> str:
    value, low, high = (f"{each:+{form}}" for each in values)
    mark = " (n.s.)" if values[1] <= 0 <= values[2] else ""
    return f"{value} [{low}, {high}]{mark}"


if __name__ == "__main__":
    print(table())
