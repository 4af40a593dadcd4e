"""Published errors, in percent: the paper's tables, and other people's runs of its methods.

The key of a column is what a table of this project calls it: `(imbalance, ratio, measure)`, with
the measure as in `results.json` (`"class 1"` is the error of class 1). Values only.
"""

from __future__ import annotations

PAPER_SOURCE = (
    'Cao et al., 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss" '
    "(NeurIPS), tables 1 to 3 and, for CE-DRW and CE-DRS, table 5"
)


def _cifar(*errors: float | None) -> dict[tuple, float]:
    profiles = (("longtail", 100), ("longtail", 10), ("step", 100), ("step", 10))
    return {
        (profile, ratio, "mean_error"): error
        for (profile, ratio), error in zip(profiles, errors, strict=True)
        if error is not None
    }


def _imdb(positive: float, negative: float, mean: float) -> dict[tuple, float]:
    key = ("longtail", 10)
    return {
        (*key, "class 1"): positive,
        (*key, "class 0"): negative,
        (*key, "mean_error"): mean,
    }


def _inaturalist(top1: float, top5: float | None) -> dict[tuple, float]:
    errors = {("none", 0, "error"): top1}
    if top5 is not None:
        errors["none", 0, "top5_error"] = top5
    return errors


PAPER: dict[str, dict[str, dict[tuple, float]]] = {
    "imdb": {
        "erm": _imdb(2.86, 70.78, 36.82),
        "rs": _imdb(7.12, 45.88, 26.50),
        "rw": _imdb(5.20, 42.12, 23.66),
        "ldam_drw": _imdb(4.91, 30.77, 17.84),
    },
    "cifar10": {
        "erm": _cifar(29.64, 13.61, 36.70, 17.50),
        "focal": _cifar(29.62, 13.34, 36.09, 16.36),
        "ldam": _cifar(26.65, 13.04, 33.42, 15.00),
        "cb_rs": _cifar(29.45, 13.21, 38.14, 15.41),
        "cb_rw": _cifar(27.63, 13.46, 38.06, 16.20),
        "cb_focal": _cifar(25.43, 12.90, 39.73, 16.54),
        "hg_drs": _cifar(27.16, 14.03, 29.93, 14.85),
        "ldam_hg_drs": _cifar(24.42, 12.72, 24.53, 12.82),
        "ce_drw": _cifar(25.14, 13.12, 28.40, 14.49),
        "ce_drs": _cifar(25.50, 13.28, 27.97, 14.83),
        "m_drw": _cifar(24.94, 13.57, 27.67, 13.17),
        "ldam_drw": _cifar(22.97, 11.84, 23.08, 12.19),
    },
    "cifar100": {
        "erm": _cifar(61.68, 44.30, 61.45, 45.37),
        "focal": _cifar(61.59, 44.22, 61.43, 46.54),
        "ldam": _cifar(60.40, 43.09, 60.42, 43.73),
        "cb_rs": _cifar(66.56, 44.94, 66.23, 46.92),
        "cb_rw": _cifar(66.01, 42.88, 78.69, 47.52),
        "cb_focal": _cifar(63.98, 42.01, 80.24, 49.98),
        "ce_drw": _cifar(59.34, 42.68, 58.86, 42.78),
        "ce_drs": _cifar(59.67, 42.74, 58.65, 43.21),
        "m_drw": _cifar(59.49, 43.78, 58.91, 44.72),
        "ldam_drw": _cifar(57.96, 41.29, 54.64, 40.54),
    },
    "inaturalist2018": {
        "erm": _inaturalist(42.86, 21.31),
        "cb_focal": _inaturalist(38.88, 18.97),
        "ce_drw": _inaturalist(36.27, 16.55),
        "ldam": _inaturalist(35.42, 16.48),
        "ldam_drw": _inaturalist(32.00, 14.82),
    },
}
"""`{dataset: {method: {(imbalance, ratio, measure): error}}}`."""

RERUN_SOURCES = {
    "Remix": "Chou et al., 2020, Remix; its own runs, 90 epochs on iNaturalist",
    "imbalanced-DL": "README of the imbalanced-DL toolbox, one seed, best epoch",
    "Bag of Tricks": "Zhang et al., 2021, Bag of Tricks for Long-Tailed Visual Recognition",
    "OFBD": "OFBD, 2026; official LDAM code with fixed seeds, batch 256",
    "BBN": (
        "Zhou et al., 2020, BBN; its own runs: BBN itself by its best epoch, 90 on iNaturalist; "
        "LDAM-DRW with the authors' code (on iNaturalist DRW may not have come on: by BBN's "
        "defaults it starts at epoch 160, and there are 90)"
    ),
    "IB": "Park et al., 2021, influence-balanced loss",
    "Logit adjustment": "Menon et al., 2021, Long-Tail Learning via Logit Adjustment; its own runs",
}

RERUNS: dict[str, dict[str, dict[str, dict[tuple, float]]]] = {
    "cifar10": {
        "erm": {
            "Bag of Tricks": _cifar(28.05, None, None, None),
            "imbalanced-DL": _cifar(28.77, None, None, None),
            "Remix": _cifar(28.14, None, None, None),
            "IB": _cifar(29.13, None, None, None),
            "Logit adjustment": _cifar(27.16, None, None, None),
        },
        "ce_drw": {
            "BBN": _cifar(23.66, None, None, None),
            "imbalanced-DL": _cifar(24.92, None, None, None),
        },
        "ldam_drw": {
            "Remix": _cifar(23.43, 13.30, 24.06, None),
            "imbalanced-DL": _cifar(22.25, None, None, None),
            "Bag of Tricks": _cifar(22.27, None, None, None),
            "OFBD": _cifar(22.94, 11.98, None, None),
        },
        "la": {
            "Logit adjustment": _cifar(22.33, None, 27.57, None),
            "Bag of Tricks": _cifar(22.46, None, None, None),
        },
        "bbn": {"BBN": _cifar(20.18, 11.68, None, None)},
    },
    "cifar100": {
        "erm": {"Logit adjustment": _cifar(61.64, None, None, None)},
        "ce_drw": {
            "BBN": _cifar(58.49, None, None, None),
            "imbalanced-DL": _cifar(59.60, None, None, None),
        },
        "ldam_drw": {
            "Remix": _cifar(57.36, 42.82, 54.60, None),
            "imbalanced-DL": _cifar(58.72, None, None, None),
            "Bag of Tricks": _cifar(57.53, None, None, None),
            "OFBD": _cifar(57.91, 41.36, None, None),
        },
        "la": {
            "Logit adjustment": _cifar(56.11, None, 55.52, None),
            "Bag of Tricks": _cifar(57.01, None, None, None),
        },
        "bbn": {"BBN": _cifar(57.44, 40.88, None, None)},
    },
    "inaturalist2018": {
        "erm": {
            "Remix": _inaturalist(40.19, None),
            "Bag of Tricks": _inaturalist(40.55, None),
            "Logit adjustment": _inaturalist(38.66, None),
        },
        "ldam_drw": {"Remix": _inaturalist(32.89, None), "BBN": _inaturalist(35.42, None)},
        "la": {"Logit adjustment": _inaturalist(33.64, None)},
        "ldam_la": {"Logit adjustment": _inaturalist(31.56, None)},
        "bbn": {"BBN": _inaturalist(33.71, None)},
    },
}
"""`{dataset: {method: {who: {(imbalance, ratio, measure): error}}}}`. None prints a spread."""
