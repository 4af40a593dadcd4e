"""Deferred re-weighting."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam import guards
from keras_ldam.callbacks.drops import Drops
from keras_ldam.layers import applied_activation, outputs_of
from keras_ldam.losses import ClassWeightedLoss, compile_again, weighted_losses
from keras_ldam.wrappers import ChunkedTraining, TwoPasses

LR_DROP = "lr_drop"


class DRW(keras.callbacks.Callback):
    """Deferred re-weighting: class weights are enabled late, after the learning rate has dropped.

    Before the start every class weighs 1, and the network learns features from all examples as
    they come. From the start on the rare classes weigh more, and the boundaries move.
    `start_epoch=0` is plain re-weighting (RW).

    The start is one of

    - `start_epoch`, an epoch counted from zero;
    - `start=0.8`, a share of the epochs of `fit`;
    - `start="lr_drop"`, the first epoch that is trained at a learning rate of at most half of the
      highest one before it, whatever has lowered it: a schedule, `LearningRateScheduler` or
      `ReduceLROnPlateau`. With `drop=2` it is the second such drop, and so on.

    The weights are set before the first step of an epoch, in the loss's variable, which a compiled
    step reads; on the JAX backend, where a compiled step keeps the value that it was compiled with,
    the step is compiled again at the start. A run that is resumed with `fit(initial_epoch=…)` or
    `BackupAndRestore` has the right weights at once. The start is printed, and the logs hold
    `reweighted` (0 or 1) for each epoch, for callbacks that come after this one. All losses of a
    model that have class weights are switched together, each by its own counts.

    **Validation** uses the class weights from the first epoch on. So `val_loss` means the same
    before and after the start: it does not jump, and `EarlyStopping`, `ModelCheckpoint` and
    `ReduceLROnPlateau` may watch it. (`val_balanced_error` of `keras_ldam.ClassErrors` with
    `mode="min"` is the better judge.) Training that another callback stops before the start ends
    with a warning; `EarlyStopping` has `start_from_epoch` for this.

    With an optimizer that has `gradient_accumulation_steps` give the loss
    `reduction="mean_over_data"`, or rare classes count less than their weight; a warning says so.

    Do not also pass `class_weight` to `fit`: the two multiply. The weights stay enabled in the loss
    afterwards, so create a new loss for each model.

    Args:
        start_epoch: First epoch, counted from zero, with the weights enabled. The official code has
            160 of 200, the epoch of the first drop of the learning rate.
        start: In place of `start_epoch`: a share of the epochs in (0, 1), or `"lr_drop"`.
        drop: Which drop `"lr_drop"` waits for, at least 1.
        weights: `"effective"` (inverse effective number of examples) or `"inverse"` (1/n). The
            paper finds them equally good when deferred.
        beta: β of the effective number, in [0, 1).
        counts: Training examples per class, or per label and side; those of each loss by default.
        loss: The loss, or a list of losses, where they are not those that the model is compiled
            with: of a `train_step` of your own.
        allow_unreached: Whether `fit` may end before the start, as when `fit` is called in pieces,
            `fit(initial_epoch=e, epochs=e + 1)`: without `initial_epoch` each would restart at
            epoch 0. By default it is an error, since otherwise nothing would tell you.
        verbose: 1 to print a line at the start, 0 for silence.

    Raises:
        ValueError: for arguments out of range; when `fit` starts, for a model none of whose losses
            has class weights, one that ends in a softmax or a sigmoid (after the first step, if
            that builds the model), counts that differ from a loss's in length, or a start that
            training will not reach.

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
        start_epoch: int | None = None,
        *,
        start: float | str | None = None,
        drop: int = 1,
        weights: str = "effective",
        beta: float = 0.9999,
        counts: Sequence[int] | Mapping[int, int] | np.ndarray | None = None,
        loss: ClassWeightedLoss | Sequence[ClassWeightedLoss] | None = None,
        allow_unreached: bool = False,
        verbose: int = 1,
    ):
        super().__init__()
        if (start_epoch is None) == (start is None):
            raise ValueError(
                "Give either `start_epoch` or `start`. Received: "
                f"start_epoch={start_epoch!r}, start={start!r}"
            )
        if start is None:
            class_counts.check_whole("start_epoch", start_epoch, 0)
        elif start != LR_DROP and not (isinstance(start, numbers.Real) and 0 < float(start) < 1):
            raise ValueError(
                "`start` must be a share of the epochs in (0, 1), or "
                f"{LR_DROP!r}. Received: {start!r}"
            )
        class_counts.check_whole("drop", drop, 1)
        self.start_epoch = None if start_epoch is None else int(start_epoch)
        self.start, self.drop = start, int(drop)
        self.weights, self.beta = weights, beta
        self.counts: Any = None
        if counts is not None:
            self.counts = class_counts.check_counts(counts, multi_label=True)
        # Raises now, not after hours of training.
        class_counts.class_weights(
            [1, 1] if self.counts is None else self.counts, kind=weights, beta=beta
        )
        self.loss = loss
        self.allow_unreached, self.verbose = allow_unreached, verbose
        self._rate: Drops | None = None
        self._on = self._undecided = False
        self._epoch: int | None = None
        self._before: tuple[Any, int | None] = (None, None)
        self._validation: Any = None  # The compiled steps of validation, and those besides.
        self._other: Any = None
        self._stuck, self._broken, self._fitting, self._unseen = 0, False, False, False

    def weights_at(self, epoch: int, loss: ClassWeightedLoss | None = None) -> np.ndarray:
        """Returns the class weights of an epoch, of the shape of the counts; ones before the start.

        Args:
            epoch: Epoch, counted from zero.
            loss: Which of the model's losses they are for; by default the first with weights.

        Raises:
            ValueError: if the start depends on the training: a share of its epochs, or a drop of
                the learning rate.
        """
        if self.start_epoch is None:
            raise ValueError(
                f"With start={self.start!r} the first epoch with weights is unknown before `fit`."
            )
        return self._weights_for(loss, epoch >= self.start_epoch)

    def set_model(self, model: keras.Model) -> None:
        """Keeps the model, and the learning rate that it is compiled with."""
        super().set_model(model)
        optimizer = getattr(model, "optimizer", None)
        if self.start == LR_DROP:
            if optimizer is None:
                raise ValueError(f"start={LR_DROP!r} needs a model that has an optimizer.")
            if self._rate is None or not self._rate.watches(optimizer):
                self._rate = Drops(optimizer, self.drop)

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks losses, counts, head and start."""
        self._epoch, self._stuck, self._broken, self._validation = None, 0, False, None
        self._fitting = True
        if any(loss.validates for loss in self._losses()):  # A validation was interrupted.
            compile_again(self.model, ["test"])
        for loss in self._losses():
            loss.validate_by(None)
            if self.counts is not None and self.counts.shape != loss.counts.shape:
                what = "labels and two sides" if loss.multi_label else "classes"
                raise ValueError(
                    f"`counts` of `DRW` must have {len(loss.counts)} {what}, as those of the loss "
                    f"{loss.name!r}. Received: {len(self.counts)}"
                )
        self._check_reachable()
        for found in (
            *guards.of_corrections(self._losses()),
            *guards.of_accumulation(self.model, self._losses()),
        ):
            warnings.warn(found, stacklevel=2)
        self._unseen = True
        self._check_head()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the class weights of the epoch."""
        if self._epoch is None:
            self._warn_of_no_progress(epoch)
        self._epoch = epoch
        # What lowers the rate may come after this callback: look at it in the first step.
        self._undecided = self._rate is not None
        if self._rate is None:
            self._set(epoch >= (self.start_epoch or 0))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Decides by the learning rate, once all callbacks have set it."""
        self._check_head()
        if self._undecided:
            self._undecided = False
            assert self._rate is not None and self._epoch is not None
            self._set(self._rate.has_dropped(self._epoch, (self.params or {}).get("steps")))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Adds `reweighted` to the logs, and warns where predictions are one class."""
        self._check_head(built=True)  # It may never call itself, and never be built.
        if logs is None:
            return
        logs["reweighted"] = float(self._on)
        # Before the start it is no fault: many networks begin so.
        self._stuck = self._stuck + 1 if self._on and guards.predicts_one_class(self.model) else 0
        if self._stuck == 2:  # Once may be chance, where there are few examples.
            warnings.warn(
                f"After epoch {epoch + 1}, with class weights enabled, all predictions are one "
                "class. Train longer before the start, and use `CosineDense` and `LDAM` with their "
                "defaults.",
                stacklevel=2,
            )
        broken = None if self._broken else guards.not_finite(self.model, logs)
        if broken:
            self._broken = True
            warnings.warn(
                f"After epoch {epoch + 1} {broken}: look for NaN in the examples, lower the "
                "learning rate, and let keras.callbacks.TerminateOnNaN() stop training.",
                stacklevel=2,
            )

    def on_test_begin(self, logs: Any = None) -> None:
        """Enables the class weights for validation."""
        for loss in self._losses():
            loss.validate_by(self._weights_for(loss, True))
        if keras.backend.backend() != "jax":
            return
        # There a step keeps the weights that it was compiled with.
        self._other = self.model.test_function
        if self._validation is None:
            compile_again(self.model, ["test"])
            self._validation = self.model.test_function
        self.model.test_function = self._validation

    def on_test_end(self, logs: Any = None) -> None:
        """Restores the class weights of the epoch."""
        for loss in self._losses():
            loss.validate_by(None)
        if self._validation is not None:
            self.model.test_function = self._other
        # JAX would take a step that is kept for one of a model that is compiled anew.
        self._other = None
        if not self._fitting:
            self._validation = None

    def on_train_end(self, logs: Any = None) -> None:
        """Warns if the class weights were never enabled."""
        epoch = self._epoch
        self._before = self.model, epoch
        self._fitting, self._validation = False, None
        if epoch is None or self._on or self.allow_unreached:
            return
        if self._rate is not None:
            why = "the learning rate never fell to half of its highest value"
            if self.drop > 1:
                why += f" {self.drop} times"
        else:
            why = (
                f"training was stopped after epoch {epoch + 1}, and the class weights are enabled "
                f"at epoch {(self.start_epoch or 0) + 1}; EarlyStopping has start_from_epoch for "
                "this"
            )
        warnings.warn(f"DRW never enabled the class weights: {why}.", stacklevel=2)

    def _set(self, on: bool) -> None:
        self._on, changed = on, False
        for loss in self._losses():
            weights = self._weights_for(loss, on)
            if np.array_equal(keras.ops.convert_to_numpy(loss.class_weights), weights):
                continue
            loss.class_weights.assign(weights)
            changed = True
            if self.verbose:
                state = "on" if on else "off"
                shown = np.array2string(weights, precision=4, threshold=12, max_line_width=10**6)
                print(
                    f"\nEpoch {(self._epoch or 0) + 1}: DRW {state}, class weights {shown}",
                    flush=True,
                )
        if changed:
            compile_again(self.model)

    def _weights_for(self, loss: ClassWeightedLoss | None, on: bool) -> np.ndarray:
        counts = self.counts
        if counts is None:
            counts = (self._losses()[0] if loss is None else loss).counts
        if not on:
            return np.ones(counts.shape, dtype=np.float32)
        return class_counts.class_weights(counts, kind=self.weights, beta=self.beta)

    def _check_head(self, *, built: bool = False) -> None:
        """Looks at the layers once, as soon as they are built: on TensorFlow by the first step."""
        wrapped = isinstance(self.model, (TwoPasses, ChunkedTraining))
        model = self.model.model if wrapped else self.model
        if not self._unseen or not (built or model.built):
            return
        self._unseen = False
        compiled = getattr(self.model, "loss", None)
        outputs = outputs_of(model, compiled)
        for name, output, loss in outputs:
            ours = isinstance(loss, ClassWeightedLoss) or len(outputs) == 1
            if ours and applied_activation(output):
                what = "The model" if len(outputs) == 1 else f"The output {name!r}"
                raise ValueError(
                    f"{what} ends in probabilities, but the losses of keras_ldam take scores, of "
                    "which they compute the softmax themselves; train it without that activation."
                )
        for found in guards.of_layers(model, self._losses(), compiled=compiled):
            warnings.warn(found, stacklevel=3)

    def _check_reachable(self) -> None:
        epochs = (self.params or {}).get("epochs")
        if self._rate is not None:
            steps = (self.params or {}).get("steps")
            if not self.allow_unreached and self._rate.never_drops(epochs, steps):
                raise ValueError(
                    f"DRW would never enable the class weights: with start={LR_DROP!r} and "
                    f"drop={self.drop} it waits for a drop that the learning rate schedule does "
                    f"not have within {epochs} epochs."
                )
            return
        if self.start is not None:
            if epochs is None:
                raise ValueError(
                    f"start={self.start!r} needs the number of epochs, which is unknown."
                )
            self.start_epoch = int(float(self.start) * epochs + 1e-9)
            if not self.start_epoch:
                raise ValueError(
                    f"start={self.start!r} leaves no epoch before the start. Received: epochs="
                    f"{epochs}; where `fit` is called in pieces, give `start_epoch`."
                )
        if epochs is not None and epochs <= (self.start_epoch or 0) and not self.allow_unreached:
            raise ValueError(
                f"DRW would never enable the class weights: start_epoch={self.start_epoch}, but "
                f"training ends after {epochs} epochs. Choose a `start_epoch` below {epochs}, or, "
                "if you call `fit` in pieces, pass `allow_unreached=True`, and `initial_epoch` to "
                "`fit`."
            )

    def _warn_of_no_progress(self, epoch: int) -> None:
        """Where `fit` is called in pieces each of which counts its epochs from zero."""
        model, last = self._before
        epochs = (self.params or {}).get("epochs")
        again = model is self.model and last is not None and epoch <= last
        early = self._rate is None and epochs is not None and epochs <= (self.start_epoch or 0)
        if again and early:
            warnings.warn(
                "The class weights will never be enabled, because every `fit` restarts at epoch "
                f"{epoch}: pass `initial_epoch` to `fit`.",
                stacklevel=2,
            )

    def _losses(self) -> list[ClassWeightedLoss]:
        given = getattr(self.model, "loss", None) if self.loss is None else self.loss
        losses = weighted_losses(given)
        if not losses:
            names = [str(getattr(x, "name", x)) for x in keras.tree.flatten(given) if x is not None]
            raise ValueError(
                "DRW sets the class weights of a loss, and there is none that has any. Compile "
                "with a loss of keras_ldam that has `counts`, such as keras_ldam.LDAM, or, for a "
                f"`train_step` of your own, pass `loss=`. Received: {', '.join(names) or None}"
            )
        return losses
