"""One typed configuration for a run: its fields, their ranges, and the paper's methods by name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_ldam.counts import shown
from keras_ldam.losses import LOSSES
from keras_ldam.sampling.mixing import MIXTURES

DATASETS = ("digits", "imdb", "cifar10", "cifar100", "inaturalist2018", "folder", "text", "table")
"""The datasets of this package; each has a file in `datasets/` and a recipe in `configs/`."""

RULES = ("none", "rs", "rw", "cb_rs", "cb_rw", "drs", "drw", "bilateral")


class Method(typing.NamedTuple):
    """A row of a table: loss, how classes are balanced, and whether the paper has such a row.

    A second stage, by the name of its function in the library, starts from the run of `erm`.
    """

    loss: str
    rule: str
    in_paper: bool = True
    second_stage: str = ""


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
    "la": Method("logit_adjusted", "none", in_paper=False),
    "vs": Method("vector_scaling", "none", in_paper=False),
    "ldam_la": Method("ldam_adjusted", "none", in_paper=False),
    "crt": Method("cross_entropy", "rs", in_paper=False, second_stage="retrain_head"),
    "lws": Method("cross_entropy", "rs", in_paper=False, second_stage="rescale_head"),
    "bbn": Method("cross_entropy", "bilateral", in_paper=False),
}
"""The methods of the paper, their close relatives, and what they are compared with, by the name
that `--method` takes."""


def _option(default, help, *, low=None, high=None, choices=None):
    """A field with its help text, range (both ends included) or choices."""
    return dataclasses.field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "choices": choices},
    )


def _absolute(path: str) -> str:
    """Returns a path that is not empty as an absolute one; a URL stays as it is."""
    return str(Path(path).absolute()) if path and "://" not in path else path


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run. Each field is a flag of the programs; see its help there.

    Build one, then call `resolve()`: it fills in what other fields decide (`loss` and `rule` from
    `method`, `start_epoch` from the drops of the learning rate) and checks every field.
    """

    # What is learned, and how.
    dataset: str = _option(
        "digits",
        f"dataset: {', '.join(DATASETS)}, or a Python file of your own, PATH.py; see "
        "docs/datasets.md",
    )
    method: str = _option(
        "ldam_drw",
        "row of the tables; decides loss and rule",
        choices=tuple(METHODS),
    )
    recipe: str = _option(
        "",
        "another recipe of the dataset's file than its first, such as bbn, whose settings stand in "
        "for those that no flag gives; empty: the first",
    )
    loss: str = _option("", "loss; empty: the method's", choices=("", *LOSSES))
    rule: str = _option(
        "",
        "how classes are balanced: rs/cb_rs re-sample, rw/cb_rw re-weight (cb: by the effective "
        "number), drs/drw do so from start_epoch on; bilateral takes two images in the place of "
        "one, of which the second is drawn in reversed frequencies and gains weight, through two "
        "branches of the network; empty: the method's",
        choices=("", *RULES),
    )
    seed: int = _option(
        0, "seed of all randomness: kept examples, initial weights, order", low=0, high=2**31
    )

    # The data.
    data_dir: str = _option(
        "",
        "folder of the dataset, or for text and table its file; empty: the default folder of TFDS",
    )
    text_column: str = _option("", "text: column of the texts; empty: the one with a usual name")
    label_column: str = _option(
        "", "text, table: column of the classes; empty: the one with a usual name"
    )
    category_columns: str = _option(
        "",
        "table: columns of categories that look like numbers or dates, separated by commas; "
        "1.1 and 1.10 are one category, and so are 1 and 1.0",
    )
    ignore_columns: str = _option("", "table: columns to leave out, separated by commas")
    imbalance: str = _option(
        "longtail",
        "profile of the class counts: longtail (exponential), step, or none (the data as they are)",
        choices=("longtail", "step", "none"),
    )
    imbalance_ratio: float = _option(
        100.0, "largest class count divided by the smallest", low=1.0, high=1e6
    )
    validation_fraction: float = _option(
        0.0,
        "share of each class's training examples that is held out and evaluated in place of the "
        "test split, to choose hyper-parameters",
        low=0.0,
        high=0.9,
    )
    left_out: bool = _option(
        False,
        "with validation_fraction: validates on the training examples that the imbalance leaves "
        "out too, of which the rare classes have most",
    )
    validation_fold: int = _option(
        0,
        "which part is held out, from zero: with validation_fraction 0.2, parts 0 to 4 hold out "
        "every training example once",
        low=0,
        high=1000,
    )

    evaluate_every: int = _option(
        1,
        "epochs between evaluations; the last epoch is always evaluated, and the best epoch is the "
        "best evaluated one",
        low=1,
        high=100_000,
    )

    # The optimization.
    epochs: int = _option(200, "passes over the training examples", low=1, high=100_000)
    steps_per_epoch: int = _option(
        0,
        "batches in an epoch, for trials; 0: as many as hold all examples",
        low=0,
        high=10**7,
    )
    batch_size: int = _option(
        128, "examples in a step, over all devices and machines together", low=1, high=10**6
    )
    optimizer: str = _option("sgd", "sgd (with momentum) or adam", choices=("sgd", "adam"))
    learning_rate: float = _option(0.1, "learning rate before any drop", low=1e-12, high=100.0)
    warmup_epochs: int = _option(0, "epochs of linear warm-up", low=0, high=10_000)
    warmup_start: float = _option(
        0.0,
        "share of the learning rate in the first epoch of a warm-up that ends after "
        "warmup_epochs; 0: 1 / warmup_epochs, for one that ends with the last of them",
        low=0.0,
        high=1.0,
    )
    decay: str = _option(
        "drops",
        "how the learning rate falls after the warm-up: drops, by drop_factor at each of drop_at; "
        "or cosine, half a cosine down to 0 (drop_at still says when drs and drw start)",
        choices=("drops", "cosine"),
    )
    drop_at: tuple[float, ...] = _option(
        (0.8, 0.9), "when the learning rate drops, as shares of the epochs", low=0.0, high=1.0
    )
    drop_factor: float = _option(
        0.01, "factor by which each drop multiplies the learning rate", low=1e-12, high=1.0
    )
    momentum: float = _option(0.9, "momentum of sgd", low=0.0, high=0.9999)
    nesterov: bool = _option(False, "sgd: whether to use Nesterov's momentum")
    weight_decay: float = _option(
        2e-4, "for sgd: multiple of the weights that is added to their gradient", low=0.0, high=1.0
    )
    clipnorm: float = _option(
        0.0, "largest norm of the whole gradient; 0: no clipping", low=0.0, high=1e6
    )
    adversarial: float = _option(
        0.0,
        "length of the perturbation of a text's word vectors that each batch is trained on too "
        "(adversarial training, twice the time); 0: none",
        low=0.0,
        high=1e6,
    )

    sharpness: float = _option(
        0.0,
        "length rho of the move to the worst weights nearby, at which each step takes its gradient "
        "(sharpness-aware training, SAM; twice the time); 0: none",
        low=0.0,
        high=1e6,
    )

    average: float = _option(
        0.0,
        "momentum of the exponential average of the weights, such as 0.999, that is evaluated and "
        "kept in their place, with statistics of batch normalization estimated anew on 50 batches "
        "before each evaluation (see evaluate_every); 0: none",
        low=0.0,
        high=0.999999,
    )

    # Changes and mixtures of images.
    augment: str = _option(
        "",
        "autoaugment: changes each training image by AutoAugment's policy for CIFAR-10, before it "
        "is mixed, shifted and mirrored; empty: none",
        choices=("", "autoaugment"),
    )
    cutout: int = _option(
        0,
        "side of the square that is cut out of each training image, in pixels, after augment; 16 "
        "is usual for images of 32; 0: none",
        low=0,
        high=4096,
    )
    mix: str = _option(
        "",
        "mixup or cutmix: mixes each training image with a partner, labels likewise; empty: none",
        choices=("", *MIXTURES),
    )
    mix_power: float = _option(
        1.0,
        "mix: partners of class j are drawn with P(j) ∝ n_j^(1 - mix_power): 0 as they are, 1 all "
        "classes equally often, 2 in reversed frequencies",
        low=0.0,
        high=2.0,
    )
    mix_alpha: float = _option(
        1.0, "mix: parameter of the Beta distribution of the shares", low=1e-3, high=100.0
    )
    mix_probability: float = _option(
        1.0, "mix: share of the images that are mixed", low=0.0, high=1.0
    )
    mix_majority: bool = _option(False, "mix: whether the partner is always the smaller part")

    # The method's own constants.
    max_margin: float = _option(
        0.5, "largest margin, that of the rarest class, in cosine units", low=0.0, high=2.0
    )
    scale: float = _option(
        30.0, "inverse temperature s of the softmax over cosines", low=1e-3, high=1e6
    )
    gradual: bool = _option(
        False, "ldam: whether the margins grow with what the network has learned; not in the paper"
    )
    head_bias: bool = _option(
        False, "ldam: whether a bias stands inside the cosine; not in the paper"
    )
    gamma: float = _option(1.0, "focusing parameter of the focal losses", low=0.0, high=100.0)
    vs_gamma: float = _option(
        0.3, "exponent gamma of the divisors of the logits by vs", low=0.0, high=1.0
    )
    tau: float = _option(
        1.0, "strength of the logit adjustment of la, vs and ldam_la", low=0.0, high=100.0
    )
    weighting: str = _option(
        "effective",
        "balancing by drs and drw: effective number of examples, or inverse count",
        choices=("effective", "inverse"),
    )
    beta: float = _option(0.9999, "beta of the effective number", low=0.0, high=0.9999999)
    start_epoch: int = _option(
        -1,
        "first epoch, from zero, with drs or drw on; -1: the drop of the learning rate that "
        "start_drop names",
        low=-1,
        high=100_000,
    )
    start_drop: int = _option(
        1,
        "number of the drop of the learning rate at which drs or drw start; the last, if there are "
        "fewer",
        low=1,
        high=100,
    )

    alpha_length: float = _option(
        1.0,
        "bilateral: T in the weight 1 - (epoch / T)² of the image drawn uniformly, as a multiple "
        "of the epochs",
        low=1.0,
        high=1000.0,
    )
    second_epochs: int = _option(
        10,
        "crt and lws: epochs of the second stage, in which the head is trained",
        low=1,
        high=10_000,
    )
    stage_one: str = _option(
        "",
        "crt and lws: run folder of the first stage, with the same settings and method erm; it is "
        "trained there unless it is complete; empty: the folder that bin/train gives it, beside "
        "this run's",
    )

    # The network.
    network: str = _option(
        "",
        "network: small_cnn, whitened_cnn, resnet32 or resnet50 for images, mlp for vectors, "
        "table_mlp for rows of tables, bilstm for sequences, or bilstm_ngrams, which has a "
        "weighted bag of n-grams beside it; empty: that of pretrained, the dataset's own, or else "
        "small_cnn, mlp, table_mlp or bilstm",
    )
    max_tokens: int = _option(
        256, "imdb, text: words read of a text, from its end", low=1, high=10**5
    )
    vocabulary_size: int = _option(20_000, "imdb, text: size of the vocabulary", low=10, high=10**7)
    embedding_dim: int = _option(65, "bilstm: size of a word vector", low=2, high=10_000)
    units: int = _option(48, "bilstm: LSTM units in each direction", low=1, high=10_000)
    dropout: float = _option(
        0.3, "bilstm: dropout of word vectors' components and of states", low=0, high=0.95
    )
    head_dropout: float = _option(
        0.5, "bilstm: dropout of the features before the head", low=0, high=0.95
    )
    projection: int = _option(
        0,
        "bilstm: units of a ReLU layer between the features and the head; 0: none",
        low=0,
        high=10_000,
    )

    # Images that are read from disk.
    image_size: int = _option(
        224,
        "inaturalist2018, folder: side of the square that is cropped from an image, after its "
        "shorter side is scaled to 8/7 of it",
        low=32,
        high=4096,
    )
    pretrained: str = _option(
        "",
        "model to start from: a .keras or .h5 file, or a preset folder of keras-hub, whose head is "
        "replaced, for images, vectors and texts; with resnet50 an .h5 file with the weights of "
        "Keras' ResNet-50 without its top; empty: random weights",
    )
    head_epochs: int = _option(
        10,
        "pretrained: epochs of the head alone before the first epoch, on features that are "
        "computed once; a cosine head starts from the class means",
        low=0,
        high=10_000,
    )
    frozen: str = _option(
        "batch_norm",
        "pretrained: what stays as it is: body, all but the head; batch_norm, the layers of batch "
        "normalization, which use their statistics in training too; or none",
        choices=("body", "batch_norm", "none"),
    )
    lora: int = _option(
        0,
        "pretrained: rank of the additions to the body's kernels that are trained in their place "
        "(LoRA), where layers offer them: Dense, EinsumDense, Embedding, convolutions; the rest of "
        "the body stays as it is; 0: none",
        low=0,
        high=1024,
    )
    skip_corrupt: bool = _option(
        False,
        "inaturalist2018, folder: decode every image once before training, and leave out and "
        "count the unreadable ones; text, table: leave out and count rows without a text or a "
        "label; otherwise they are an error",
    )

    # The machine.
    precision: str = _option(
        "float32",
        "precision of the arithmetic; weights and losses stay in float32",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    strategy: str = _option(
        "none",
        "none: one device; cores: replicas on parts of the cores, without an accelerator; "
        "mirrored: the devices of this machine; multiworker: those of several machines, each "
        "started with this command, its own TF_CONFIG and one shared run_dir; on TensorFlow "
        "replicas normalize batches by their own part",
        choices=("none", "cores", "mirrored", "multiworker"),
    )
    replicas: int = _option(
        0,
        "number of replicas: for mirrored, 0 means all devices; for cores, 0 means two",
        low=0,
        high=10_000,
    )
    worker_timeout: int = _option(
        300, "multiworker: seconds to wait for a machine before giving up", low=1, high=86_400
    )
    jit: str = _option(
        "auto",
        "compile with XLA; auto: only with an accelerator, since it is slower on CPUs",
        choices=("auto", "on", "off"),
    )
    steps_per_execution: int = _option(
        1, "steps that run without returning to Python", low=1, high=100_000
    )

    def resolve(self) -> Config:
        """Fills in the fields that others decide.

        Returns:
            The complete config.

        Raises:
            ValueError: if a field is out of its range or the fields contradict each other.
        """
        for field in dataclasses.fields(self):
            _check_field(field, getattr(self, field.name))
        method = METHODS[self.method]
        config = dataclasses.replace(
            self,
            # Absolute paths, for programs that are started in other folders later.
            dataset=str(Path(self.dataset).absolute()) if is_path(self.dataset) else self.dataset,
            data_dir=_absolute(self.data_dir),
            loss=self.loss or method.loss,
            rule=self.rule or method.rule,
        )
        if config.start_epoch < 0:
            drops = config.drop_epochs
            start = drops[min(config.start_drop, len(drops)) - 1] if drops else config.epochs
            config = dataclasses.replace(config, start_epoch=start)
        config._check_whole()
        return config

    @property
    def dataset_name(self) -> str:
        """The dataset's name; that of a user's own file is the file's, without its ending."""
        return Path(self.dataset.removesuffix(".py")).name

    @property
    def run_name(self) -> str:
        """What tells this run from others of the paper's tables: `cifar10-step-10-ldam_drw-0`.

        Without the imbalance and its ratio where the data are as they are, and with the recipe
        where it is not the first: `folder-ldam_drw-0`, `folder-bbn-own-0`.
        """
        profile = "" if self.imbalance == "none" else f"{self.imbalance}-{self.imbalance_ratio:g}-"
        recipe = f"{self.recipe}-" if self.recipe else ""
        return f"{self.dataset_name}-{profile}{self.method}-{recipe}{self.seed}"

    @property
    def score_scale(self) -> float:
        """Factor that turns the model's scores into logits: `scale` for cosines, else 1."""
        return self.scale if LOSSES[self.loss].wants_cosines else 1.0

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
        """How classes are balanced: `("none" | "sample" | "weight" | "pair", weighting)`."""
        if self.rule == "none":
            return "none", self.weighting
        if self.rule == "bilateral":
            return "pair", "inverse"
        how = "sample" if self.rule.endswith("rs") else "weight"
        if self.deferred:
            return how, self.weighting
        return how, "effective" if self.rule.startswith("cb_") else "inverse"

    @property
    def first_stage(self) -> Config | None:
        """The config of the run that a second stage starts from; None where there is none."""
        if not METHODS[self.method].second_stage:
            return None
        return dataclasses.replace(
            self,
            method="erm",
            rule=METHODS["erm"].rule,
            second_epochs=Config.second_epochs,
            stage_one=Config.stage_one,
        )

    def _check_whole(self):
        if not is_path(self.dataset) and self.dataset not in DATASETS:
            raise ValueError(unknown_dataset(self.dataset))
        if list(self.drop_at) != sorted(self.drop_at):
            raise ValueError(f"`drop_at` must increase. Received: drop_at={self.drop_at}")
        if self.deferred and self.start_epoch >= self.epochs:
            raise ValueError(
                f"`start_epoch` must be below `epochs`, or rule {self.rule} never begins: train "
                f"for more epochs, or start it earlier. Received: start_epoch={self.start_epoch}, "
                f"epochs={self.epochs}"
            )
        if self.precision == "mixed_float16" and self.strategy != "none":
            raise ValueError(
                "`precision` must be float32 or mixed_bfloat16 with a strategy. Received: "
                f"precision='mixed_float16', strategy={self.strategy!r}"
            )
        if self.sharpness and self.adversarial:
            raise ValueError(
                "`sharpness` must be 0 with `adversarial`. Received: "
                f"sharpness={self.sharpness:g}, adversarial={self.adversarial:g}"
            )
        if self.average and (self.rule == "bilateral" or self.strategy == "multiworker"):
            raise ValueError(
                "`average` must be 0 with rule bilateral, where two kinds of batches share the "
                "statistics, and with strategy multiworker. Received: "
                f"average={self.average:g}, rule={self.rule!r}, strategy={self.strategy!r}"
            )
        if self.mix and self.rule == "bilateral":
            raise ValueError(
                "`mix` must be empty with rule bilateral, whose steps take pairs already. "
                f"Received: mix={self.mix!r}"
            )
        if self.pretrained and self.strategy == "multiworker":
            raise ValueError(
                "`pretrained` must be empty with strategy multiworker. Received: "
                f"pretrained={self.pretrained!r}"
            )
        if self.lora and (not self.pretrained or self.frozen != "batch_norm"):
            raise ValueError(
                "`lora` must be 0 without `pretrained`, and with another `frozen` than batch_norm. "
                f"Received: lora={self.lora}, pretrained={self.pretrained!r}, "
                f"frozen={self.frozen!r}"
            )
        if METHODS[self.method].second_stage:
            if self.rule != "rs":
                raise ValueError(
                    f"`rule` must be rs for method {self.method}. Received: rule={self.rule!r}"
                )
            if self.loss != "cross_entropy":
                raise ValueError(
                    f"`loss` must be cross_entropy for method {self.method}. Received: "
                    f"loss={self.loss!r}"
                )
            if self.strategy == "multiworker":
                raise ValueError(
                    f"`strategy` must not be multiworker for method {self.method}: train method "
                    "erm so, and the second stage on one machine. Received: "
                    f"strategy={self.strategy!r}"
                )
        folds = math.floor(1 / (self.validation_fraction or 1) + 1e-9)
        if self.validation_fold >= folds:
            raise ValueError(
                f"`validation_fold` must be below {folds}, the number of such parts. Received: "
                f"validation_fold={self.validation_fold}, "
                f"validation_fraction={self.validation_fraction:g}"
            )
        if self.left_out and (not self.validation_fraction or self.imbalance == "none"):
            raise ValueError(
                "`left_out` needs a `validation_fraction` above 0, which the largest class is "
                "validated on, and an `imbalance`. Received: validation_fraction="
                f"{self.validation_fraction:g}, imbalance={self.imbalance!r}"
            )
        if self.decay == "cosine" and self.warmup_start:
            raise ValueError(
                "`warmup_start` must be 0 with decay cosine, whose warm-up starts from "
                f"1 / warmup_epochs. Received: warmup_start={self.warmup_start:g}"
            )
        if self.warmup_epochs >= self.epochs > 1:
            raise ValueError(
                f"`warmup_epochs` must be below `epochs`. Received: "
                f"warmup_epochs={self.warmup_epochs}, epochs={self.epochs}"
            )
        if self.decay == "drops" and self.drop_at and self.drop_epochs[0] < self.warmup_epochs:
            raise ValueError(
                "`drop_at` must begin after the warm-up. Received: "
                f"drop_at={self.drop_at}, so epoch {self.drop_epochs[0]} of {self.epochs}, "
                f"warmup_epochs={self.warmup_epochs}"
            )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as values that JSON can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def to_public_json(self) -> dict[str, Any]:
        """Returns what `to_json` does, without the folder of the data, for files to be shared."""
        return {**self.to_json(), "data_dir": Path(self.data_dir).name}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Config:
        """Builds a resolved config from `to_json()`; missing fields take their defaults."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            near = ", ".join(difflib.get_close_matches(unknown[0], known))
            hint = f"; known: {near}, …" if near else ""
            raise ValueError(f"unknown config field {unknown[0][:60]!r}{hint}.")
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        ).resolve()


def is_path(dataset: str) -> bool:
    """Whether a dataset is given by the path of a Python file, and not by its name."""
    return dataset.endswith(".py")


def unknown_dataset(dataset: str) -> str:
    """The sentence for a dataset that is neither a path nor a known name."""
    return (
        f"`dataset` must be one of {', '.join(DATASETS)}, or the path of a Python file, PATH.py. "
        f"Received: dataset={dataset!r}"
    )


def field_type(field: dataclasses.Field) -> type:
    """The Python type of a field's value (`tuple` for a tuple of floats)."""
    hint = _hints()[field.name]
    return typing.get_origin(hint) or hint


@functools.cache
def _hints():
    return typing.get_type_hints(Config)


def _check_field(field, value):
    expected = field_type(field)
    name, meta = field.name, field.metadata
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    received = f"Received: {name}={shown(value)}"
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"`{name}` must be of type {expected.__name__}. {received}")
    if meta["choices"] is not None and value not in meta["choices"]:
        known = ", ".join(choice for choice in meta["choices"] if choice)
        raise ValueError(f"`{name}` must be one of {known}. {received}")
    if meta["low"] is not None:
        for number in value if isinstance(value, tuple) else (value,):
            if not (math.isfinite(number) and meta["low"] <= number <= meta["high"]):
                raise ValueError(
                    f"`{name}` must be from {meta['low']:g} to {meta['high']:g}. {received}"
                )
