"""Scores of very many classes: a chunk of classes at a time, or of some of the classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

_LOW = -1e30
"""Below every logit, and finite, so that differences of it are no NaN."""


@dataclasses.dataclass(frozen=True)
class Chunks:
    """The scores of a head, in chunks of classes.

    z_j = ⟨u, v_j⟩ / ν_j, with v_j = (w_j, b_j). For a `Dense` head u = (x, 1) and ν_j = 1; for
    cosines u has length 1 and ν_j = ‖v_j‖.

    Args:
        kernel: Class vectors w, shape `(features, num_classes)`.
        bias: b, shape `(num_classes,)`; zeros for a head without.
        epsilon: Class vectors of at most this length count as zero; `None` for scores that are no
            cosines.
        size: Classes per chunk.
    """

    kernel: Any
    bias: Any
    epsilon: float | None
    size: int

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.kernel.shape[-1])

    def label_and_rest(
        self, features: Any, labels: Any, *, scale: float = 1.0, offsets: Any = None
    ) -> tuple[Any, Any]:
        """Returns the score of each label, z_y, and r = log Σ_{j≠y} exp(s z_j + o_j).

        Every softmax loss of an integer label is a function of the two: cross-entropy is
        log(1 + exp(r - s z_y - o_y)). The gradient computes each chunk's scores again, so that
        neither pass holds more of them than one chunk.

        Args:
            features: u, float32 of shape `(…, features + 1)`.
            labels: int32 of shape `(…)`; one that is no class has the score 0.
            scale: s.
            offsets: o, shape `(num_classes,)`; `None` for zeros.

        Returns:
            Two float32 tensors of shape `(…)`.
        """
        shape = ops.shape(labels)
        features = ops.reshape(features, (-1, features.shape[-1]))
        # Floats, since of integers there is no gradient; up to 2**24 they are exact.
        labels = ops.cast(ops.reshape(labels, (-1,)), "float32")
        if offsets is None:
            offsets = ops.zeros((self.num_classes,), "float32")
        # Reshaped to what they are, variables become tensors, without a copy.
        kernel, bias = (ops.reshape(part, part.shape) for part in (self.kernel, self.bias))
        given = (features, kernel, bias, labels, offsets)

        @ops.custom_gradient
        def computed(*given: Any) -> Any:
            both = self._forward(scale, *given)

            def gradient(*args: Any, upstream: Any = None) -> Any:
                slopes = args[0] if upstream is None else upstream
                return self._backward(scale, both[1], slopes[0], slopes[1], *given)

            return both, gradient

        both = computed(*(ops.convert_to_tensor(part) for part in given))
        return ops.reshape(both[0], shape), ops.reshape(both[1], shape)

    def best(self, features: Any, k: int = 1) -> tuple[Any, Any]:
        """Returns the k best scores of each example and their classes, `(n, k)`, best first.

        Args:
            features: u, float32 of shape `(n, features + 1)`.
            k: How many, at most `num_classes`.
        """
        # Nothing is learned here, so that no tape keeps the scores of all chunks.
        kernel, bias = ops.stop_gradient(self.kernel), ops.stop_gradient(self.bias)
        count = ops.shape(features)[0]

        def step(number: Any, best: Any) -> Any:
            scores, classes, fresh, *_ = self._chunk(number, features, kernel, bias)
            scores = ops.concatenate([best[0], ops.where(fresh, scores, -float("inf"))], axis=1)
            ids = ops.broadcast_to(classes, (count, self._width))
            ids = ops.concatenate([best[1], ids], axis=1)
            values, places = ops.top_k(scores, k)
            return values, ops.take_along_axis(ids, places, axis=1)

        none = ops.full((count, k), -float("inf")), ops.full((count, k), -1, dtype="int32")
        return self._loop(step, none)

    @property
    def _width(self) -> int:
        return min(self.size, self.num_classes)

    @property
    def _number(self) -> int:
        return -(-self.num_classes // self._width)

    def _loop(self, step: Callable[[Any, Any], Any], start: Any) -> Any:
        return ops.fori_loop(0, self._number, step, start)

    def _chunk(self, number: Any, features: Any, kernel: Any, bias: Any) -> Any:
        """Scores, classes, which of these are in no earlier chunk, and what scores are made of."""
        width = self._width
        # Chunks are of one size; where that does not divide K, the last begins in the one before.
        start = ops.minimum(ops.cast(number, "int32") * width, self.num_classes - width)
        classes = start + ops.arange(width, dtype="int32")
        vectors = ops.slice(kernel, (0, start), (kernel.shape[0], width))
        biases = ops.slice(bias, (start,), (width,))
        scores = ops.matmul(features[:, :-1], vectors) + features[:, -1:] * biases
        inverse = self._inverse(vectors, biases)
        scores = scores * inverse
        return scores, classes, classes >= number * width, vectors, biases, inverse, start

    def _inverse(self, vectors: Any, biases: Any) -> Any:
        """1/ν of class vectors."""
        if self.epsilon is None:
            return 1.0
        squares = ops.sum(ops.square(vectors), axis=0) + ops.square(biases)
        floor = self.epsilon**2
        inverse = ops.where(squares <= floor, 0.0, ops.rsqrt(ops.maximum(squares, floor)))
        # An infinite square is no length: NaN, and not scores of 0, is what shows it.
        return ops.where(squares < float("inf"), inverse, float("nan"))

    def _forward(
        self,
        scale: float,
        features: Any,
        kernel: Any,
        bias: Any,
        labels: Any,
        offsets: Any,
    ) -> Any:
        labels = ops.cast(labels, "int32")[:, None]

        def step(number: Any, state: Any) -> Any:
            own, highest, total = state
            scores, classes, fresh, *_, start = self._chunk(number, features, kernel, bias)
            is_label = ops.logical_and(labels == classes, fresh)
            own = own + ops.sum(ops.where(is_label, scores, 0.0), axis=1)
            logits = scale * scores + ops.slice(offsets, (start,), (self._width,))
            other = ops.logical_and(labels != classes, fresh)
            logits = ops.where(other, logits, _LOW)
            new = ops.maximum(highest, ops.max(logits, axis=1))
            part = ops.sum(ops.where(other, ops.exp(logits - new[:, None]), 0.0), axis=1)
            return own, new, total * ops.exp(highest - new) + part

        zeros = ops.zeros_like(features[:, 0])
        own, highest, total = self._loop(step, (zeros, zeros + _LOW, zeros))
        return ops.stack([own, highest + ops.log(total)])

    def _backward(
        self,
        scale: float,
        rest: Any,
        for_own: Any,
        for_rest: Any,
        features: Any,
        kernel: Any,
        bias: Any,
        labels: Any,
        offsets: Any,
    ) -> Any:
        labels = ops.cast(labels, "int32")[:, None]

        def slopes(number: Any) -> Any:
            scores, classes, fresh, vectors, biases, inverse, start = self._chunk(
                number, features, kernel, bias
            )
            logits = scale * scores + ops.slice(offsets, (start,), (self._width,))
            shares = scale * for_rest[:, None] * ops.exp(ops.minimum(logits - rest[:, None], 0.0))
            slope = ops.where(labels == classes, for_own[:, None], shares)
            slope = ops.where(fresh, slope, 0.0)
            of_product = slope * inverse
            for_vectors = ops.matmul(ops.transpose(features[:, :-1]), of_product)
            for_biases = ops.matmul(features[:, -1], of_product)
            if self.epsilon is not None:
                # A longer vector has no other cosine.
                along = ops.sum(slope * scores, axis=0) * ops.square(inverse)
                for_vectors = for_vectors - vectors * along
                for_biases = for_biases - biases * along
            for_features = ops.concatenate(
                [
                    ops.matmul(of_product, ops.transpose(vectors)),
                    ops.sum(of_product * biases, axis=1, keepdims=True),
                ],
                axis=1,
            )
            return for_features, for_vectors, for_biases, start

        if keras.backend.backend() == "tensorflow":
            # Where XLA does not compile it, an update of a slice copies all of the array.
            import tensorflow as tf

            def write(number: Any, state: Any) -> Any:
                total, kernels, biases = state
                part, more, more_bias, _ = slopes(number)
                return total + part, kernels.write(number, more), biases.write(number, more_bias)

            arrays = (
                tf.TensorArray("float32", self._number, element_shape=shape)
                for shape in ((kernel.shape[0], self._width), (self._width,))
            )
            total, kernels, biases = self._loop(write, (ops.zeros_like(features), *arrays))
            kernels = ops.reshape(ops.transpose(kernels.stack(), (1, 0, 2)), (kernel.shape[0], -1))
            biases = ops.reshape(biases.stack(), (-1,))
            return total, self._joined(kernels), self._joined(biases), None, None

        def add(number: Any, state: Any) -> Any:
            # In place. The overlap of the last chunk adds nothing to what is there.
            total, kernels, biases = state
            part, more, more_bias, start = slopes(number)
            if keras.backend.backend() == "torch":  # Its `slice_update` copies all of the array.
                columns = slice(int(start), int(start) + self._width)
                kernels[:, columns] += more
                biases[columns] += more_bias
                return total + part, kernels, biases
            more = more + ops.slice(kernels, (0, start), more.shape)
            more_bias = more_bias + ops.slice(biases, (start,), more_bias.shape)
            kernels = ops.slice_update(kernels, (0, start), more)
            return total + part, kernels, ops.slice_update(biases, (start,), more_bias)

        zeros = (ops.zeros_like(part) for part in (features, kernel, bias))
        return (*self._loop(add, tuple(zeros)), None, None)

    def _joined(self, columns: Any) -> Any:
        """Columns of all chunks, without the overlap of the last one."""
        overlap = self._number * self._width - self.num_classes
        if not overlap:
            return columns
        last = (self._number - 1) * self._width
        return ops.concatenate([columns[..., :last], columns[..., last + overlap :]], axis=-1)


class Negatives:
    """Draws of classes, in which class j is expected π_j times.

    A draw has one class of each of the cells [i, i + 1) of the cumulative sum of π: by a uniform
    number, so that classes come in proportion to their part of a cell. Classes with π_j = 1, each a
    cell of its own, come once in every draw; the others follow by π, so that common and rare ones
    have nearly the same part of each draw.

    Args:
        chances: Relative frequencies of the classes, shape `(num_classes,)`.
        number: Classes in a draw, m = Σ π, 1 to `num_classes`.
    """

    def __init__(self, chances: np.ndarray, number: int):
        self.number, self.expected = number, _at_most_one(chances, number)
        order = np.argsort(-self.expected, kind="stable")
        ends = np.cumsum(self.expected[order])
        starts = np.searchsorted(ends, np.arange(number) + 1e-9, side="right")
        self._order = order.astype("int32")
        self._first = np.minimum(starts, len(order) - 1).astype("int32")
        last = np.searchsorted(ends, np.arange(1, number + 1) - 1e-9, side="left")
        self._last = np.minimum(last, len(order) - 1).astype("int32")
        # Of the part in a cell 32 bits are enough; of a sum over all classes they are not.
        self._ends = (ends - np.floor(ends)).astype("float32")
        self._log = np.log(self.expected).astype("float32")

    def draw(self, uniform: Any) -> tuple[Any, Any]:
        """Returns the classes of a draw, int32 of shape `(m,)`, and the logarithms of their π.

        Args:
            uniform: Numbers from 0 to 1, shape `(m,)`.
        """
        uniform, ends = ops.convert_to_tensor(uniform), ops.convert_to_tensor(self._ends)
        last = ops.convert_to_tensor(self._last)
        low, high = ops.convert_to_tensor(self._first), last
        for _ in range(int(np.max(self._last - self._first)).bit_length()):
            middle = (low + high) // 2
            # The last class of a cell ends in a later one.
            before = ops.logical_and(ops.take(ends, middle) <= uniform, middle < last)
            low, high = ops.where(before, middle + 1, low), ops.where(before, high, middle)
        classes = ops.take(ops.convert_to_tensor(self._order), low)
        return classes, ops.take(ops.convert_to_tensor(self._log), classes)


def _at_most_one(chances: np.ndarray, number: int) -> np.ndarray:
    """min(1, c q_j), with the c for which the sum is a number."""
    chances = np.asarray(chances, "float64")
    order = np.argsort(-chances, kind="stable")
    shares = chances[order]
    rest = np.cumsum(shares[::-1])[::-1]  # Of this one and all smaller ones.
    # How many have to be 1, so that none of the others is above it.
    whole = int(np.argmax((number - np.arange(len(shares))) * shares <= rest * (1 + 1e-12)))
    expected = np.minimum(1.0, chances * ((number - whole) / rest[whole]))
    expected[order[:whole]] = 1.0
    return expected


@dataclasses.dataclass(frozen=True)
class SampledChunks(Chunks):
    """The scores of labels and of a draw of other classes.

    Args:
        classes: Classes of the draw, int32 of shape `(m,)`.
        log_expected: log π of each of them, float32 of shape `(m,)`.
    """

    classes: Any
    log_expected: Any

    def label_and_rest(
        self, features: Any, labels: Any, *, scale: float = 1.0, offsets: Any = None
    ) -> tuple[Any, Any]:
        """Returns the score of each label, and an estimate of r.

        r ≈ log Σ_k exp(s z_k + o_k - log π_k) over the classes k ≠ y of the draw. What the
        logarithm is taken of has the exact sum as its mean over draws.
        """
        shape = ops.shape(labels)
        features = ops.reshape(features, (-1, features.shape[-1]))
        labels = ops.reshape(labels, (-1,))
        inside = ops.clip(labels, 0, self.num_classes - 1)
        known = labels == inside
        own = self._scores(features, inside, pairs=True)
        scores = self._scores(features, self.classes, pairs=False)
        logits = scale * scores - self.log_expected
        if offsets is not None:
            logits = logits + ops.take(offsets, self.classes)
        logits = ops.where(labels[:, None] == self.classes, _LOW, logits)
        rest = ops.logsumexp(logits, axis=1)
        return ops.reshape(ops.where(known, own, 0.0), shape), ops.reshape(rest, shape)

    def _scores(self, features: Any, classes: Any, *, pairs: bool) -> Any:
        """Scores of all examples for classes, or of each for its own."""
        vectors = ops.take(ops.convert_to_tensor(self.kernel), classes, axis=1)
        biases = ops.take(ops.convert_to_tensor(self.bias), classes)
        if pairs:
            products = ops.sum(ops.transpose(features[:, :-1]) * vectors, axis=0)
            return (products + features[:, -1] * biases) * self._inverse(vectors, biases)
        products = ops.matmul(features[:, :-1], vectors) + features[:, -1:] * biases
        return products * self._inverse(vectors, biases)
