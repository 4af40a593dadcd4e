"""Callbacks: deferred re-weighting."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.layers import gives_probabilities
from keras_ldam.losses import ClassWeightedLoss


class DRW(keras.callbacks.Callback):
    """Deferred re-weighting: class weights come on at `start_epoch`, after the rate has dropped.

    Before `start_epoch` every class weighs 1 and the network learns features from all examples as
    they come. From then on the rare classes weigh more and the boundaries move. `start_epoch=0`
    is plain re-weighting (RW).

    The weights are a pure function of the epoch, set before its first step: a run that is resumed
    with `fit(initial_epoch=…)` has the right ones at once. They are written into the loss's
    variable, which a compiled step reads; on the JAX backend, where a compiled step keeps the
    value it was compiled with, the step is compiled anew at the switch. What happened is printed,
    and stands in the logs as `reweighted` (0 or 1) for every epoch. A model with several losses has
    them switched together, each by its own counts; those of other kinds are left alone.

    The weights are in `val_loss` too, which therefore jumps at the switch. `EarlyStopping` on it
    would stop there and go back to the model before: let it watch `val_balanced_error` of
    `keras_ldam.ClassErrors`, with `mode="min"` and `start_from_epoch=start_epoch`. Training that
    ends before the switch, stopped by another callback, ends with a warning.

    Leave `class_weight` out of `fit`: it multiplies with these weights, and is on from the first
    epoch. The weights stay on in the loss afterwards, so make a new loss for each model.

    Args:
        start_epoch: First epoch, counted from zero, with the weights on. The official code has
            160 of 200, the epoch of the first drop of the learning rate.
        weights: `"effective"` (inverse effective number of examples) or `"inverse"` (1/n). The
            paper finds them equally good when deferred.
        beta: β of the effective number, 0 to below 1.
        counts: Training examples per class; those of each loss by default.
        allow_unreached: Whether `fit` may end before `start_epoch`, as when `fit` is called in
            pieces, `fit(initial_epoch=e, epochs=e + 1)`: without `initial_epoch` each would begin
            at epoch 0 again. By default it is an error, since otherwise nothing would tell you.
        verbose: 1 to print a line at the start and at the switch, 0 for silence.

    Raises:
        ValueError: for arguments out of range; when `fit` starts, for a model none of whose losses
            has class weights, one that ends in a softmax or a sigmoid, counts that differ from a
            loss's in length, or a `start_epoch` that will not be reached.

    Example:

    ```python
    model.compile("sgd", loss=keras_ldam.LDAM(counts))
    model.fit(x, y, epochs=200, callbacks=[keras_ldam.DRW(start_epoch=160)])
    ```

    References:
        Cao et al., 2019, algorithm 1. The weights sum to the number of classes, and the loss
        divides by their sum in the batch, as the official code does; algorithm 1 read literally
        has another factor 1/m.
    """

    def __init__(
        self,
        start_epoch: int,
        *,
        weights: str = "effective",
        beta: float = 0.9999,
        counts: Sequence[int] | np.ndarray | None = None,
        allow_unreached: bool = False,
        verbose: int = 1,
    ):
        super().__init__()
        whole = isinstance(start_epoch, numbers.Real) and float(start_epoch).is_integer()
        if isinstance(start_epoch, bool) or not whole or start_epoch < 0:
            raise ValueError(
                f"start_epoch must be a whole number of at least 0; received {start_epoch!r}."
            )
        self.start_epoch = int(start_epoch)
        self.weights, self.beta, self.counts = weights, beta, counts
        # Both raise now, not after hours of training.
        class_counts.class_weights([1, 1] if counts is None else counts, weights, beta)
        self.allow_unreached, self.verbose = allow_unreached, verbose
        self._before, self._last_epoch = (None, None), None

    def weights_at(self, epoch: int, loss: ClassWeightedLoss | None = None) -> np.ndarray:
        """Class weights of an epoch (from zero), shape `[num_classes]`; ones before the start.

        Args:
            epoch: Epoch, from zero.
            loss: Which of the model's losses they are for; by default the first with weights.
        """
        loss = self._losses()[0] if loss is None else loss
        counts = loss.counts if self.counts is None else self.counts
        if epoch < self.start_epoch:
            return np.ones(len(counts), dtype=np.float32)
        return class_counts.class_weights(counts, self.weights, self.beta)

    def on_train_begin(self, logs=None):
        self._last_epoch = None
        for loss in self._losses():
            if self.counts is not None and len(self.counts) != len(loss.counts):
                raise ValueError(
                    f"DRW has counts of {len(self.counts)} classes, the loss {loss.name} of "
                    f"{len(loss.counts)}."
                )
        epochs = (self.params or {}).get("epochs")
        if epochs is not None and epochs <= self.start_epoch and not self.allow_unreached:
            raise ValueError(
                f"DRW would never come on: start_epoch={self.start_epoch}, but training ends "
                f"after {epochs} epochs. Choose a start_epoch below {epochs}, or, if you call fit "
                "in pieces, pass allow_unreached=True, and initial_epoch to fit."
            )
        if len(getattr(self.model, "outputs", None) or ()) == 1 and gives_probabilities(self.model):
            raise ValueError(
                "the model ends in probabilities, and the losses of keras_ldam take scores, of "
                "which they compute the softmax themselves; train it without that activation."
            )

    def on_epoch_begin(self, epoch, logs=None):
        if self._last_epoch is None:
            self._warn_of_no_progress(epoch)
        self._last_epoch, changed = epoch, False
        for loss in self._losses():
            weights = self.weights_at(epoch, loss)
            if np.array_equal(loss.class_weights.numpy(), weights):
                continue
            loss.class_weights.assign(weights)
            changed = True
            if self.verbose:
                state = "on" if epoch >= self.start_epoch else "off"
                shown = np.array2string(weights, precision=4, threshold=12, max_line_width=10**6)
                print(f"\nEpoch {epoch + 1}: DRW {state}, class weights {shown}", flush=True)
        if changed and keras.backend.backend() == "jax":
            _compile_anew(self.model)

    def _warn_of_no_progress(self, epoch):
        """Where `fit` is called in pieces each of which counts its epochs from zero."""
        model, last = self._before
        epochs = (self.params or {}).get("epochs")
        again = model is self.model and last is not None and epoch <= last
        if again and epochs is not None and epochs <= self.start_epoch:
            warnings.warn(
                f"fit begins again at epoch {epoch + 1}, so the class weights, which come on at "
                f"epoch {self.start_epoch + 1}, are no nearer than before: pass initial_epoch "
                "to fit.",
                stacklevel=2,
            )

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["reweighted"] = float(epoch >= self.start_epoch)

    def on_train_end(self, logs=None):
        epoch = self._last_epoch
        self._before = self.model, epoch
        if epoch is not None and epoch < self.start_epoch and not self.allow_unreached:
            warnings.warn(
                f"DRW never came on: training was stopped after epoch {epoch + 1}, and the class "
                f"weights come on at epoch {self.start_epoch + 1}. EarlyStopping has "
                "start_from_epoch for this.",
                stacklevel=2,
            )

    def _losses(self):
        given = keras.tree.flatten(getattr(self.model, "loss", None))
        losses = [loss for loss in given if isinstance(loss, ClassWeightedLoss)]
        losses = [loss for loss in dict.fromkeys(losses) if loss.class_weights is not None]
        if not losses:
            shown = ", ".join(repr(getattr(loss, "name", loss)) for loss in given)
            raise ValueError(
                f"DRW sets the class weights of the model's loss, but the loss {shown} has "
                "none. Compile with keras_ldam.LDAM, LDAMHinge, Focal or CrossEntropy, with counts."
            )
        return losses


def _compile_anew(model):
    """Makes the JAX trainer trace its steps again, with the loss's variables as they are now."""
    model.make_train_function(force=True)
    if model.test_function is not None:
        model.make_test_function(force=True)
