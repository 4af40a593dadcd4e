"""What the guide on other networks takes from the benchmark: its table, and its picture.

python docs/networks.py    # prints the table, draws docs/networks.png
"""

import json
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
ROWS = ("CE", "CE-DRW", "LDAM-DRW, official", "LDAM-DRW")
LONGER = ("MobileNet, 100 classes", "MobileNet, 100 classes, 24 epochs")
"""The network whose second run is longer, and that run, which is none of the twelve."""

CAUSE = {  # Row, clipping norm: title, color, line.
    ("CE-DRW", None): ("cross-entropy", "#d55e00", "-"),
    ("LDAM-DRW, official", None): ("LDAM, official", "#8c8c8c", "--"),
    ("LDAM-DRW, official", 1.0): ("LDAM, official, clipped", "#e69f00", ":"),
    ("LDAM-DRW", None): ("LDAM", "#0072b2", "-"),
}


def runs(name: str) -> list[dict]:
    """Returns the runs of a results file in `benchmarks/`."""
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())["runs"]


def scores() -> dict[str, dict[str, list[float]]]:
    """Returns balanced accuracies in percent, one a seed, by network and row."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs("networks"):
        of_network = found.setdefault(run["network"], {row: [] for row in ROWS})
        of_network.setdefault(run["row"], []).append(100 * run["balanced_accuracy"])
    # A network counts where the rows that are compared have the same seeds.
    return {
        n: rows for n, rows in found.items() if len(rows["CE-DRW"]) == len(rows["LDAM-DRW"]) > 1
    }


def longer() -> str:
    """Returns what a longer training changes, in Markdown."""
    lines, found = ["| epochs | CE-DRW | LDAM-DRW |", "|---|---|---|"], scores()
    for epochs, name in zip((8, 24), LONGER, strict=True):
        rows = found[name]
        lines.append(f"| {epochs} | {_cell(rows['CE-DRW'])} | {_cell(rows['LDAM-DRW'])} |")
    return "\n".join(lines)


def table() -> str:
    """Returns the mean over seeds, standard deviation and number of runs, in Markdown."""
    lines = ["| network | " + " | ".join(ROWS) + " |", "|---|" + "---|" * len(ROWS)]
    found = scores()
    del found[LONGER[1]]
    for network, rows in found.items():
        cells = [_cell(rows[row]) for row in ROWS]
        lines.append(f"| {network} | " + " | ".join(cells) + " |")
    means = [np.mean([np.mean(rows[row]) for rows in found.values()]) for row in ROWS]
    lines.append("| **mean over networks** | " + " | ".join(f"**{m:.1f}**" for m in means) + " |")
    return "\n".join(lines)


def held_out() -> str:
    """Returns what was tried with 100 classes, judged by held-out examples, in Markdown."""
    titles = {
        "CE-DRW": "CE-DRW",
        "constant 1": "c = 1",
        "constant 3": "c = 3",
        "constant 5": "c = 5",
        "constant 10": "c = 10",
        "constant 1, margin 0": "c = 1, no margins",
        "constant 5, margin 0": "c = 5, no margins",
        "constant 1, length 3": "c = 1, class vectors of length 3",
    }
    lines = ["| network | " + " | ".join(titles.values()) + " |", "|---|" + "---|" * len(titles)]
    tried = [run for run in runs("networks_tried") if run["stage"] == "constant"]
    for network in ("plain CNN, 100 classes", "MobileNet, 100 classes"):
        cells = [
            _cell(
                [
                    100 * run["balanced_accuracy"]
                    for run in tried
                    if (run["network"], run["row"]) == (network, row)
                ]
            )
            for row in titles
        ]
        lines.append(f"| {network} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread} (n={len(values)})"


def draw(path: Path) -> None:
    """Draws the first 200 steps of the text CNN."""
    import matplotlib.pyplot as plt

    plt.rcParams["font.size"] = 11
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), dpi=120, layout="constrained")
    for run in runs("networks_cause"):
        look = CAUSE.get((run["row"], run["clip"]))
        if run["network"] != "text CNN" or look is None:
            continue
        title, color, line = look
        panels[0].plot(run["gradient_norm"], color=color, ls=line)
        panels[1].plot(run["towards_mean"], color=color, ls=line)
        panels[2].plot(run["step"], run["auc"], color=color, ls=line, label=title)
    panels[0].set_yscale("log")
    for axes, title in zip(
        panels,
        ("norm of the gradient", "rare class turns from the mean", "area under the ROC curve"),
        strict=True,
    ):
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    print(table(), held_out(), longer(), sep="\n\n")
    draw(ROOT / "docs" / "networks.png")
