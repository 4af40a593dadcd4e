"""Means over classes of what each class reaches, as one number each."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ldam.counts import check_range, check_whole
from keras_ldam.labels import check_classes, check_target, present
from keras_ldam.metrics.decisions import decisions
from keras_ldam.metrics.sums import ClassSums, mean_over


class ClassMean(keras.metrics.Metric):
    """Counts examples, guesses and right guesses of each class; subclasses make a number of them.

    It counts exactly beyond 2^24 examples. A class without an example is left out of the mean, and
    without any the result is NaN. An example is right if the score of its label is the best, and
    wrong if a score is NaN.

    Args:
        num_classes: K, at least 2.
        ignore_class: Integer label that counts nowhere, such as 255 for void pixels.
        axis: Axis of the classes in `y_pred`, and in one-hot labels.
        threshold: Of two classes, a single score above it means class 1: 0 for scores, 0.5 for
            probabilities of a sigmoid.
        name: Name of the metric.
        **kwargs: `dtype`.

    Raises:
        ValueError: if `num_classes` is not a whole number of at least 2, or not the length of
            `axis` of `y_pred`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_class: int | None = None,
        axis: int = -1,
        threshold: float = 0.0,
        name: str | None = None,
        **kwargs: Any,
    ):
        kwargs.setdefault("dtype", "float32")  # Whatever floatx is: it counts.
        super().__init__(name=name, **kwargs)
        check_whole("num_classes", num_classes, 2)
        self.ignore_class, self.axis = check_target(ignore_class, axis)
        check_range("threshold", threshold, -1e6, 1e6)
        self.num_classes, self.threshold = int(num_classes), float(threshold)
        self._total, self._guessed, self._right = (
            ClassSums(self, self.num_classes, each) for each in ("total", "guessed", "right")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch; see `ClassErrors.update_state`.

        Args:
            y_true: Labels `(…)` or `(…, 1)`, or one-hot `(…, num_classes)`.
            y_pred: Scores `(…, num_classes)`, or one score `(…, 1)` for two classes.
            sample_weight: Optional weights, `(…)` or, for dense predictions, `(batch,)`.
        """
        check_classes(self.name, y_pred, self.num_classes, axis=self.axis, given="num_classes")
        y_true, y_pred = present(
            y_true,
            y_pred,
            ignore_class=self.ignore_class,
            axis=self.axis,
            threshold=self.threshold,
        )
        labels, guesses, weights, guessed = decisions(y_true, y_pred, sample_weight)
        self._total.add(weights, labels)
        self._guessed.add(guessed, guesses)
        self._right.add(ops.where(labels == guesses, guessed, 0.0), labels)

    def _recalls(self) -> tuple[Any, Any]:
        """The recall of each class, and 1 for those that have examples."""
        total = self._total.value()
        return ops.divide_no_nan(self._right.value(), total), ops.cast(total > 0, "float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make an equal metric."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_class": self.ignore_class,
            "axis": self.axis,
            "threshold": self.threshold,
        }


@keras.saving.register_keras_serializable(package="keras_ldam")
class BalancedAccuracy(ClassMean):
    """The mean over classes of the share of their examples that is right.

    Also known as macro-averaged recall. `ClassErrors` has it too, beside the errors of groups of
    classes, but needs the counts of the training data.

    Args:
        num_classes: K, at least 2. Of two, a single value is a score, as for `ClassErrors`.
        name: Name of the metric.
        **kwargs: `ignore_class`, `axis` and `threshold`, as for `ClassErrors`, and `dtype`.

    Example:

    >>> metric = BalancedAccuracy(2)
    >>> metric.update_state([0, 0, 0, 1], [[1, 0], [1, 0], [1, 0], [1, 0]])
    >>> float(metric.result())
    0.5
    """

    def __init__(self, num_classes: int, *, name: str = "balanced_accuracy", **kwargs: Any):
        super().__init__(num_classes, name=name, **kwargs)

    def result(self) -> Any:
        """Returns the balanced accuracy so far."""
        return mean_over(*self._recalls())


@keras.saving.register_keras_serializable(package="keras_ldam")
class GMean(ClassMean):
    """The geometric mean over classes of the share of their examples that is right.

    It is 0 where a single class is never right, which the balanced accuracy hides among many.

    Args:
        num_classes: K, at least 2. Of two, a single value is a score, as for `ClassErrors`.
        name: Name of the metric.
        **kwargs: `ignore_class`, `axis` and `threshold`, as for `ClassErrors`, and `dtype`.

    Example:

    >>> metric = GMean(2)
    >>> metric.update_state([0, 0, 0, 1], [[1, 0], [1, 0], [1, 0], [1, 0]])
    >>> float(metric.result())
    0.0

    References:
        Kubat and Matwin, 1997, "Addressing the Curse of Imbalanced Training Sets: One-Sided
        Selection".
    """

    def __init__(self, num_classes: int, *, name: str = "g_mean", **kwargs: Any):
        super().__init__(num_classes, name=name, **kwargs)

    def result(self) -> Any:
        """Returns the geometric mean so far."""
        recalls, seen = self._recalls()
        never = ops.any(ops.logical_and(seen > 0, recalls == 0))
        logarithms = ops.log(ops.where(recalls > 0, recalls, 1.0))
        return ops.where(never, 0.0, ops.exp(mean_over(logarithms, seen)))


@keras.saving.register_keras_serializable(package="keras_ldam")
class MacroF1(ClassMean):
    """The mean over classes of F1, the harmonic mean of their precision and recall.

    F1 of a class is 2 right / (examples + guesses). Unlike Keras' `F1Score` it takes whole numbers
    as labels, scores of any kind, and masks. A class is left out of the mean if it has neither
    examples nor guesses, as scikit-learn does.

    Args:
        num_classes: K, at least 2. Of two, a single value is a score, as for `ClassErrors`.
        name: Name of the metric.
        **kwargs: `ignore_class`, `axis` and `threshold`, as for `ClassErrors`, and `dtype`.

    Example:

    >>> metric = MacroF1(2)
    >>> metric.update_state([0, 0, 0, 1], [[1, 0], [1, 0], [0, 1], [0, 1]])
    >>> round(float(metric.result()), 3)
    0.733
    """

    def __init__(self, num_classes: int, *, name: str = "macro_f1", **kwargs: Any):
        super().__init__(num_classes, name=name, **kwargs)

    def result(self) -> Any:
        """Returns the mean F1 so far."""
        both = self._total.value() + self._guessed.value()
        f1 = ops.divide_no_nan(2.0 * self._right.value(), both)
        return mean_over(f1, ops.cast(both > 0, "float32"))
