"""What the first page takes from the committed results: its table, and its picture.

python docs/front_page.py    # prints the table, draws docs/groups.png
"""

import json
from pathlib import Path

import numpy as np

from keras_ldam.experiments.tables import published

ROOT = Path(__file__).parent.parent
TITLES = {
    "erm": "plain (ERM)",
    "rs": "re-sampling (RS)",
    "rw": "re-weighting (RW)",
    "ce_drw": "CE-DRW",
    "ldam": "LDAM",
    "ldam_drw": "LDAM-DRW",
}
DATASETS = {
    "imdb": (
        "IMDB, 12,500 : 1,250 reviews",
        ("longtail", 10.0),
        ("erm", "rs", "rw", "ce_drw", "ldam", "ldam_drw"),
    ),
    "cifar10": ("CIFAR-10, 5,000 … 50 images", ("longtail", 100.0), ("erm", "ce_drw", "ldam_drw")),
    "cifar100": ("CIFAR-100, 500 … 5 images", ("longtail", 100.0), ("erm", "ce_drw", "ldam_drw")),
}
GROUPS = {"many": "more than 100", "medium": "20 to 100", "few": "fewer than 20"}


def errors(dataset: str, method: str, measure: str = "mean_error") -> list[float]:
    """Returns an error in percent on the test split after the last epoch, one number a seed."""
    runs = json.loads((ROOT / "results" / f"{dataset}.json").read_text())["runs"]
    column = DATASETS[dataset][1]
    return [
        run["last"][measure]
        for run in runs
        if run["method"] == method
        and (run["config"]["imbalance"], run["config"]["imbalance_ratio"]) == column
    ]


def table() -> str:
    """Returns some rows a dataset, the paper's mean error and ours, in Markdown."""
    lines = ["| training examples per class | method | paper | ours |", "|---|---|---|---|"]
    for dataset, (title, column, methods) in DATASETS.items():
        for method in methods:
            found = errors(dataset, method)
            spread = f" ± {np.std(found, ddof=1):.2f}" if len(found) > 1 else ""
            ours = f"{np.mean(found):.2f}{spread} (n={len(found)})"
            paper = published.PAPER[dataset].get(method, {}).get((*column, "mean_error"))
            paper = "" if paper is None else f"{paper:.2f}"
            lines.append(f"| {title} | {TITLES[method]} | {paper} | {ours} |")
            title = ""
    return "\n".join(lines)


def draw(path: Path) -> None:
    """Draws the error on classes with many, medium and few examples: plain against LDAM-DRW."""
    import matplotlib.pyplot as plt

    plt.rcParams["font.size"] = 13
    figure, axes = plt.subplots(figsize=(6, 3.6), dpi=120, layout="constrained")
    methods = {"erm": ("plain training", "#9a9a9a"), "ldam_drw": ("LDAM-DRW", "#1f6fb4")}
    seeds = len(errors("cifar100", "erm"))
    for i, (method, (title, color)) in enumerate(methods.items()):
        heights = [np.mean(errors("cifar100", method, f"{group}_error")) for group in GROUPS]
        bars = axes.bar(np.arange(3) + 0.38 * (i - 0.5), heights, 0.36, label=title, color=color)
        axes.bar_label(bars, fmt="%.1f", padding=2)
    names = [f"{group}\n({count}\nimages)" for group, count in GROUPS.items()]
    axes.set_xticks(range(3), names)
    axes.set_ylabel("test error, %")
    axes.set_ylim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=False)
    axes.set_title(
        f"CIFAR-100, ratio 100, ResNet-32, n = {seeds} seed{'s' * (seeds > 1)}",
        fontsize=13,
    )
    figure.savefig(path)


if __name__ == "__main__":
    print(table())
    draw(ROOT / "docs" / "groups.png")
