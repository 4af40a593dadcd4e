"""The order of examples in an epoch: shuffled, re-sampled by class, bucketed by length.

All of it is a pure function of seed and epoch. So a resumed run sees the same examples as an
uninterrupted one, and the class frequencies of a rule can be counted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam import sampling
from keras_ldam.experiments.datasets.data import Ragged, Split
from keras_ldam.sampling import epoch_order, mixing


def batches_by_length(
    order: np.ndarray,
    lengths: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    window: int = 32,
) -> list[np.ndarray]:
    """Cuts an order into batches of similar length, so that little is padded.

    Examples are sorted by length within each `window` batches of the order; then the batches are
    shuffled. The examples of the epoch stay the same.
    """
    generator = np.random.default_rng([seed, epoch, 1])
    batches = []
    for start in range(0, len(order), window * batch_size):
        part = order[start : start + window * batch_size]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


class Pairs:
    """Two examples in the place of one: that of the epoch's order, and a partner.

    Partners are drawn with replacement: their class with P(j) ∝ n_j^(1 - power), and then any
    example of the class.

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`.
        power: From 0 to 2.
    """

    whole_batches = False
    """Whether an epoch ends without a batch that is not full."""

    def __init__(self, counts: np.ndarray, power: float):
        self.num_classes = len(counts)
        self._weights = sampling.class_chances(counts, power) / counts

    def partners(self, labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """Returns the indices of the partners of an epoch, as many as labels."""
        generator = np.random.default_rng([seed, epoch, 3])
        chances = self._weights[labels]
        return generator.choice(len(labels), size=len(labels), p=chances / chances.sum())

    def batch(
        self, examples: tuple, labels: tuple, *, epoch: int, generator: np.random.Generator
    ) -> tuple:
        """Returns what a model is trained on: inputs, and soft labels `(batch, num_classes)`.

        Args:
            examples: Those of the epoch, and their partners.
            labels: The classes of both.
            epoch: Epoch, from zero.
            generator: Gives random numbers for this batch.
        """
        raise NotImplementedError

    def logs(self, epoch: int) -> dict[str, float]:
        """Returns what the log of an epoch shows."""
        return {}

    def describe(self, drawn: tuple[str, str]) -> str:
        """Returns a line for people; `drawn` is what epoch 1 draws of each class, and partners."""
        raise NotImplementedError

    def _soft_labels(self, labels, shares):
        first, second = (mixing.one_hot(each, self.num_classes) for each in labels)
        return mixing.soft_labels(first, second, shares)


class Bilateral(Pairs):
    """The pairs of BBN (Zhou et al., 2020): partners come in reversed frequencies.

    In epoch e, counted from zero, an example weighs α = 1 - (e / T)² and its partner 1 - α, in
    soft labels, whose cross-entropy is α ℓ + (1 - α) ℓ', and in the network.

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`.
        length: T, in epochs, at least as many as are trained.
    """

    whole_batches = True

    def __init__(self, counts: np.ndarray, length: int):
        super().__init__(counts, power=2.0)
        self.length = length

    def alpha(self, epoch: int) -> float:
        """Returns the weight of the first example."""
        return 1.0 - (epoch / self.length) ** 2

    def batch(
        self, examples: tuple, labels: tuple, *, epoch: int, generator: np.random.Generator
    ) -> tuple:
        """Returns `(x, partners, α)`, where α has shape `(batch, 1)`, and soft labels."""
        alpha = np.full((len(labels[0]), 1), self.alpha(epoch), dtype=np.float32)
        return (*examples, alpha), self._soft_labels(labels, alpha[:, 0])

    def logs(self, epoch: int) -> dict[str, float]:
        """Returns α."""
        return {"alpha": self.alpha(epoch)}

    def describe(self, drawn: tuple[str, str]) -> str:
        """Returns what both samplers draw, and α."""
        return (
            f"Two images a step in the place of one: in epoch 1 the uniform sampler draws "
            f"{drawn[0]} per class, the reversed one {drawn[1]}. They weigh alpha and 1 - alpha, "
            f"alpha = 1 - (epoch / {self.length})²."
        )


class Mixtures(Pairs):
    """Examples mixed with their partners; see `keras_ldam.mixed`.

    Args:
        counts: Training examples per class n_j, shape `(num_classes,)`.
        power: From 0 to 2.
        how: `"mixup"` or `"cutmix"`.
        **settings: `alpha`, `probability` and `majority`.
    """

    def __init__(self, counts: np.ndarray, power: float, how: str, **settings: float):
        super().__init__(counts, power)
        self.how, self.settings = how, settings

    def batch(
        self, examples: tuple, labels: tuple, *, epoch: int, generator: np.random.Generator
    ) -> tuple:
        """Returns mixtures and their soft labels."""
        mixed, shares = mixing.mix(self.how, *examples, generator, **self.settings)
        return mixed, self._soft_labels(labels, shares)

    def describe(self, drawn: tuple[str, str]) -> str:
        """Returns of which classes the partners are."""
        return f"Mixtures by {self.how}: in epoch 1 partners are {drawn[1]} per class."


class Batches(keras.utils.PyDataset):
    """Batches of a training split, in an order that depends on the epoch alone.

    A `keras.utils.PyDataset`: pass it to `fit` on any backend, with `EpochClock`, which sets the
    epoch, among its callbacks.

    Args:
        split: Examples and labels.
        batch_size: Examples in a batch; the last one of an epoch can be smaller.
        seed: Seed of the order.
        resample: `"inverse"` or `"effective"` to draw examples with P ∝ 1/n_class or 1/effective
            number. Defaults to no re-sampling.
        counts: Training examples per class, shape `(num_classes,)`; needed to re-sample.
        beta: β of the effective number. Defaults to 0.9999.
        start_epoch: First epoch, from zero, with re-sampling on; later than 0 for DRS. Defaults to
            0.
        replicas: Number of consecutive shares that each batch is cut into. Of a small batch, such
            as the last one of an epoch, the last shares can be smaller, or empty. Defaults to 1.
        own: The shares that this process yields, in their order. Defaults to all.
        steps: Batches of an epoch, the first of its order; 0, the default, for all.
        pairs: Puts two examples in the place of one. Defaults to single examples.
        augment: Changes the examples of a batch, by a generator of random numbers for it, before
            they are put into pairs. Defaults to none.

    Raises:
        ValueError: if `batch_size` is not a multiple of `replicas`.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int,
        resample: str | None = None,
        counts: np.ndarray | None = None,
        beta: float = 0.9999,
        start_epoch: int = 0,
        replicas: int = 1,
        own: range | None = None,
        steps: int = 0,
        pairs: Pairs | None = None,
        augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.start_epoch = start_epoch
        if batch_size % replicas:
            raise ValueError(
                f"`batch_size` must be a multiple of the number of replicas, {replicas}. "
                f"Received: batch_size={batch_size}"
            )
        self.share_size = batch_size // replicas
        self.own = range(replicas) if own is None else own
        self.pairs, self.augment = pairs, augment
        self.steps = -(-len(split) // batch_size)
        if pairs is not None and pairs.whole_batches:
            self.steps = max(1, len(split) // batch_size)
        if steps:
            self.steps = min(self.steps, steps)
        self._weights = None
        if resample is not None:
            self._weights = class_counts.class_weights(counts, kind=resample, beta=beta)
        self.epoch = 0
        self._planned = None

    def order(self, epoch: int) -> np.ndarray:
        """Returns the indices of the epoch's examples."""
        weights = self._weights if epoch >= self.start_epoch else None
        return epoch_order(self.split.labels, seed=self.seed, epoch=epoch, weights=weights)

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Returns the indices of each batch of the epoch, or of this process's shares of them.

        Those of pairs have shape `(batch, 2)`.
        """
        order = self.order(epoch)
        if self.pairs is not None:
            partners = self.pairs.partners(self.split.labels, seed=self.seed, epoch=epoch)
            order = np.stack([order, partners], axis=1)
        if isinstance(self.split.examples, Ragged):
            batches = batches_by_length(
                order, self.split.examples.lengths, self.batch_size, seed=self.seed, epoch=epoch
            )
        else:
            batches = [
                order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)
            ]
        return self.shares(batches[: self.steps])

    def shares(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """Returns this process's shares of batches, in order; a small batch leaves some empty."""
        size = self.share_size
        return [batch[share * size : (share + 1) * size] for batch in batches for share in self.own]

    def whole(self) -> Batches:
        """Returns the same batches, not cut into shares."""
        whole = copy.copy(self)
        whole.share_size, whole.own, whole._planned = self.batch_size, range(1), None
        return whole

    def __len__(self):
        return self.steps * len(self.own)

    def __getitem__(self, index):
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self.plan(self.epoch)
        indices = self._planned[1][index]
        examples = tuple(self.split.examples[each] for each in np.atleast_2d(indices.T))
        if self.augment is not None:
            generator = self.generator(5, self.epoch, index)
            examples = tuple(self.augment(each, generator) for each in examples)
        if self.pairs is None:
            return examples[0], self.split.labels[indices]
        return self.pairs.batch(
            examples,
            tuple(self.split.labels[each] for each in indices.T),
            epoch=self.epoch,
            generator=self.generator(4, self.epoch, index),
        )

    def generator(self, stream: int, epoch: int, index: int) -> np.random.Generator:
        """Returns one of the streams of random numbers for a batch, or a share of one."""
        # Of the step and the share, so that it is the same on however many machines.
        step, share = divmod(index, len(self.own))
        return np.random.default_rng([self.seed, epoch, stream, step, self.own[share]])

    def describe_pairs(self) -> str:
        """Returns a line on the pairs of the first epoch, for people."""
        both = self.split.labels[np.concatenate(self.plan(0))].T
        counts = (np.bincount(labels, minlength=self.pairs.num_classes) for labels in both)
        return self.pairs.describe(
            tuple(np.array2string(row, threshold=24, max_line_width=10**6) for row in counts)
        )


class EpochClock(sampling.EpochClock):
    """Tells `Batches` which epoch begins, and seeds every layer that draws random numbers.

    Dropout and augmentation start each epoch from a state that depends on seed and epoch alone.
    Keras saves no random state with a model's weights, so without this a resumed run would draw
    other masks than an uninterrupted one.

    Args:
        batches: The batches of `fit`.
    """

    def on_train_begin(self, logs=None):
        """Checks nothing: the pipeline may make one step of several shares."""

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the epoch, and every random state."""
        super().on_epoch_begin(epoch, logs)
        for place, state in enumerate(_random_states(self.model)):
            entropy = np.random.SeedSequence([self.batches.seed, epoch, 2, place])
            # 31 bits, which the integers of every backend can hold.
            state.assign((entropy.generate_state(2) >> 1).astype(state.dtype))

    def on_epoch_end(self, epoch, logs=None):
        """Adds to the logs what there is to say of pairs, such as `alpha`."""
        if logs is not None and self.batches.pairs is not None:
            logs.update(self.batches.pairs.logs(epoch))


def _random_states(model):
    """The states of a model's seed generators, those of its own layers first."""
    states = list(_of_layers(model))
    known = {id(state) for state in [*states, *model.weights]}
    # Keras counts them among the variables that are no weights, with those of metrics.
    others = (state for state in model.variables if id(state) not in known)
    return states + [state for state in others if "int" in str(state.dtype) and state.shape == (2,)]


def _of_layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _of_layers(layer)
        elif getattr(layer, "seed_generator", None) is not None:
            yield layer.seed_generator.state
