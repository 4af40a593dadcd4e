"""One typed configuration for a run: its fields, their ranges, and the paper's methods by name."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import typing
from pathlib import Path

DATASETS = ("digits", "imdb", "cifar10", "cifar100", "inaturalist2018", "folder")
IMAGE_DATASETS = ("inaturalist2018", "folder")
"""Datasets of image files of any size."""
LOSSES = (
    "cross_entropy",
    "focal",
    "sigmoid_focal",
    "ldam",
    "uniform_margin",
    "ldam_hinge",
    "hinge",
)
RULES = ("none", "rs", "rw", "cb_rs", "cb_rw", "drs", "drw")
COSINE_LOSSES = ("ldam", "uniform_margin", "ldam_hinge", "hinge")
"""Losses that measure a margin, and so need cosines from the model's head."""


class Method(typing.NamedTuple):
    """A row of the paper's tables: what is minimised, and how classes are balanced."""

    loss: str
    rule: str


METHODS = {
    "erm": Method("cross_entropy", "none"),
    "rs": Method("cross_entropy", "rs"),
    "rw": Method("cross_entropy", "rw"),
    "cb_rs": Method("cross_entropy", "cb_rs"),
    "cb_rw": Method("cross_entropy", "cb_rw"),
    "ce_drs": Method("cross_entropy", "drs"),
    "ce_drw": Method("cross_entropy", "drw"),
    "focal": Method("sigmoid_focal", "none"),
    "cb_focal": Method("sigmoid_focal", "cb_rw"),
    "m": Method("uniform_margin", "none"),
    "m_drw": Method("uniform_margin", "drw"),
    "hg_drs": Method("hinge", "drs"),
    "ldam": Method("ldam", "none"),
    "ldam_rs": Method("ldam", "rs"),
    "ldam_rw": Method("ldam", "rw"),
    "ldam_drs": Method("ldam", "drs"),
    "ldam_drw": Method("ldam", "drw"),
    "ldam_hg_drs": Method("ldam_hinge", "drs"),
}
"""The methods of the paper and their close relatives, by the name that `--method` takes."""


def _option(default, help, *, low=None, high=None, choices=None):
    """A field with its help text, range (both ends included) or choices."""
    return dataclasses.field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "choices": choices},
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run. Each field is a flag of the programs; see its help there.

    Build one, then call `resolve()`: it fills what other fields decide (`loss` and `rule` from
    `method`, `start_epoch` from the drops of the learning rate) and checks every field.

    Raises:
        ValueError: from `resolve()`, naming the field, what was received and what is accepted.
    """

    # What is learned, and how.
    dataset: str = _option("digits", "data to train on", choices=DATASETS)
    method: str = _option(
        "ldam_drw",
        "row of the paper's tables; decides loss and rule",
        choices=tuple(METHODS),
    )
    loss: str = _option("", "loss; empty: the method's", choices=("", *LOSSES))
    rule: str = _option(
        "",
        "how classes are balanced: rs/cb_rs sample, rw/cb_rw weight (cb: by the effective number), "
        "drs/drw do so from start_epoch on; empty: the method's",
        choices=("", *RULES),
    )
    seed: int = _option(0, "seed of everything random: subset, weights, order", low=0, high=2**31)

    # The data.
    data_dir: str = _option("", "where the dataset lies; empty: TFDS' own folder")
    imbalance: str = _option(
        "longtail",
        "profile of the class counts: longtail (exponential), step, or none (as the data are)",
        choices=("longtail", "step", "none"),
    )
    imbalance_ratio: float = _option(
        100.0, "largest class count divided by the smallest", low=1.0, high=1e6
    )
    validation_fraction: float = _option(
        0.0,
        "share of each class's training examples held out and evaluated in place of the test "
        "split: for choosing hyper-parameters",
        low=0.0,
        high=0.9,
    )

    evaluate_every: int = _option(
        1,
        "epochs from one evaluation to the next; the last epoch is always evaluated, and the best "
        "epoch is the best of those that were",
        low=1,
        high=100_000,
    )

    # The optimisation.
    epochs: int = _option(200, "passes over the training examples", low=1, high=100_000)
    steps_per_epoch: int = _option(
        0,
        "batches of an epoch, to try things out; 0: as many as hold all examples",
        low=0,
        high=10**7,
    )
    batch_size: int = _option(
        128, "examples a step, over all devices and machines together", low=1, high=10**6
    )
    optimizer: str = _option("sgd", "sgd (with momentum) or adam", choices=("sgd", "adam"))
    learning_rate: float = _option(0.1, "learning rate before any drop", low=0.0, high=100.0)
    warmup_epochs: int = _option(0, "epochs of linear warm-up", low=0, high=10_000)
    drop_at: tuple[float, ...] = _option(
        (0.8, 0.9), "when the learning rate drops, as shares of the epochs", low=0.0, high=1.0
    )
    drop_factor: float = _option(
        0.01, "what the learning rate is multiplied by at each drop", low=0.0, high=1.0
    )
    momentum: float = _option(0.9, "momentum of sgd", low=0.0, high=0.9999)
    weight_decay: float = _option(
        2e-4, "factor of the weights that is added to their gradient, for sgd", low=0.0, high=1.0
    )
    clipnorm: float = _option(
        0.0, "largest norm of the whole gradient; 0: no clipping", low=0.0, high=1e6
    )

    # The method's own constants.
    max_margin: float = _option(
        0.5, "largest margin, that of the rarest class, in cosine units", low=0.0, high=2.0
    )
    scale: float = _option(
        30.0, "inverse temperature s of the softmax over cosines", low=1e-3, high=1e6
    )
    gamma: float = _option(1.0, "focus of the focal losses", low=0.0, high=100.0)
    weighting: str = _option(
        "effective",
        "balancing of drs and drw: effective number of examples, or inverse count",
        choices=("effective", "inverse"),
    )
    beta: float = _option(0.9999, "beta of the effective number", low=0.0, high=0.9999999)
    start_epoch: int = _option(
        -1,
        "first epoch, from zero, with drs or drw on; -1: the drop of the learning rate that "
        "start_drop tells",
        low=-1,
        high=100_000,
    )
    start_drop: int = _option(
        1, "which drop of the learning rate drs or drw wait for, the last if fewer", low=1, high=100
    )

    # The network; only for the datasets that use it.
    max_tokens: int = _option(256, "imdb: last words of a review that are read", low=1, high=10**5)
    vocabulary_size: int = _option(20_000, "imdb: words that are known", low=10, high=10**7)
    embedding_dim: int = _option(65, "imdb: size of a word vector", low=2, high=10_000)
    units: int = _option(48, "imdb: LSTM units in each direction", low=1, high=10_000)
    dropout: float = _option(
        0.3, "imdb: share of word vectors' components and of states dropped", low=0, high=0.95
    )
    head_dropout: float = _option(
        0.5, "imdb: share of features dropped before the head", low=0, high=0.95
    )

    # Images that are read from disk: inaturalist2018 and folder.
    image_size: int = _option(
        224,
        "inaturalist2018, folder: side of the square cut out of an image, whose shorter side is "
        "scaled to 8/7 of it before",
        low=32,
        high=4096,
    )
    network: str = _option(
        "resnet50",
        "inaturalist2018, folder: resnet50, or small_cnn to try things out",
        choices=("resnet50", "small_cnn"),
    )
    weights: str = _option(
        "",
        "inaturalist2018, folder: weights of Keras' ResNet-50 without its top, an .h5 file, to "
        "start from; empty: random ones",
    )
    skip_corrupt: bool = _option(
        False,
        "inaturalist2018, folder: decode every image once before training, and leave out and "
        "count those that cannot be read; otherwise they are an error",
    )

    # The machine.
    precision: str = _option(
        "float32",
        "precision of the arithmetic; weights and losses stay in float32",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    strategy: str = _option(
        "none",
        "none: one device; cores: without an accelerator, replicas that have a part of the cores "
        "each; mirrored: the devices of this machine; multiworker: those of several machines, each "
        "started with this command and its own TF_CONFIG, and a run_dir that all of them see; with "
        "replicas, batch normalisation is by each one's part of the batch",
        choices=("none", "cores", "mirrored", "multiworker"),
    )
    replicas: int = _option(
        0,
        "mirrored: over how many devices; 0: all that there are; cores: how many; 0: two",
        low=0,
        high=10_000,
    )
    worker_timeout: int = _option(
        300, "multiworker: seconds to wait for a machine before giving up", low=1, high=86_400
    )
    jit: str = _option(
        "auto",
        "compile with XLA; auto: where there is an accelerator, since on CPUs it is slower",
        choices=("auto", "on", "off"),
    )
    steps_per_execution: int = _option(
        1, "steps that run without a return to Python", low=1, high=100_000
    )

    def resolve(self) -> Config:
        """Returns the config with derived fields filled in, or raises `ValueError`."""
        for field in dataclasses.fields(self):
            _check_field(field, getattr(self, field.name))
        method = METHODS[self.method]
        config = dataclasses.replace(
            self, loss=self.loss or method.loss, rule=self.rule or method.rule
        )
        if config.start_epoch < 0:
            drops = config.drop_epochs
            start = drops[min(config.start_drop, len(drops)) - 1] if drops else config.epochs
            config = dataclasses.replace(config, start_epoch=start)
        config._check_whole()
        return config

    @property
    def drop_epochs(self) -> tuple[int, ...]:
        """Epochs, from zero, at whose start the learning rate drops."""
        return tuple(round(share * self.epochs) for share in self.drop_at)

    @property
    def deferred(self) -> bool:
        """Whether the rule waits for `start_epoch`."""
        return self.rule in ("drs", "drw")

    @property
    def balancing(self) -> tuple[str, str]:
        """How classes are balanced: `("none" | "sample" | "weight", weighting)`."""
        if self.rule == "none":
            return "none", self.weighting
        how = "sample" if self.rule.endswith("rs") else "weight"
        if self.deferred:
            return how, self.weighting
        return how, "effective" if self.rule.startswith("cb_") else "inverse"

    def _check_whole(self):
        if list(self.drop_at) != sorted(self.drop_at):
            raise ValueError(f"drop_at must rise; received {self.drop_at}.")
        if self.deferred and self.start_epoch >= self.epochs:
            raise ValueError(
                f"rule {self.rule} starts at start_epoch={self.start_epoch}, but training ends "
                f"after epochs={self.epochs}: choose a start_epoch below {self.epochs} or -1 for "
                "a drop of the learning rate."
            )
        if self.precision == "mixed_float16" and self.strategy != "none":
            raise ValueError(
                f"precision mixed_float16 does not work with strategy {self.strategy}; choose "
                "mixed_bfloat16 or float32, or strategy none."
            )
        if self.warmup_epochs >= self.epochs > 1:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} leaves nothing of epochs={self.epochs}."
            )

    def to_json(self) -> dict:
        """Returns the fields as JSON can hold them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict) -> Config:
        """Builds a config from `to_json()`; fields that it lacks take their defaults."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown config field {unknown[0]!r}; known: {', '.join(known)}.")
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        ).resolve()


def field_type(field: dataclasses.Field) -> type:
    """The Python type of a field's value (`tuple` for a tuple of floats)."""
    hint = typing.get_type_hints(Config)[field.name]
    return typing.get_origin(hint) or hint


def _check_field(field, value):
    expected = field_type(field)
    name, meta = field.name, field.metadata
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{name} must be of type {expected.__name__}; received {value!r}.")
    if meta["choices"] is not None and value not in meta["choices"]:
        known = ", ".join(choice for choice in meta["choices"] if choice)
        raise ValueError(f"unknown {name} {value!r}; known: {known}.")
    if meta["low"] is not None:
        for number in value if isinstance(value, tuple) else (value,):
            if not (math.isfinite(number) and meta["low"] <= number <= meta["high"]):
                raise ValueError(
                    f"{name} must be from {meta['low']:g} to {meta['high']:g}; received {number!r}."
                )


def load_recipe(dataset: str, method: str) -> Config:
    """The published recipe of a dataset, from `configs/DATASET.py`.

    Args:
        dataset: One of `DATASETS`.
        method: One of `METHODS`; a recipe may set a method's own constants.

    Returns:
        The config as the file writes it, not resolved yet, so that flags can still change it.

    Raises:
        ValueError: for an unknown dataset or method.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown dataset {dataset!r}; known: {', '.join(DATASETS)}.")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}.")
    package = Path(__file__).parent
    # In a checkout configs/ stands beside the package; an installed package carries it inside.
    for folder in (package.parent / "configs", package / "configs"):
        path = folder / f"{dataset}.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location(f"keras_ldam_recipe_{dataset}", path)
            recipe = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(recipe)
            return recipe.config(method)
    raise ValueError(f"no recipe configs/{dataset}.py was found beside or inside {package}.")
