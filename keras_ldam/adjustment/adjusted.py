"""A trained model becomes one of probabilities; what is unknown is fitted on held-out data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_ldam import counts as class_counts
from keras_ldam.adjustment.criteria import CRITERIA, Criterion, Decisions
from keras_ldam.adjustment.fitting import FEW, Examples, Fit, Fitter
from keras_ldam.adjustment.held_out import Form, check_presence, examples_of, held_out
from keras_ldam.adjustment.measures import Interval, measured, remarks_on
from keras_ldam.adjustment.outputs import Output, read, softmax_scale
from keras_ldam.adjustment.priors import learned_prior, prior_shift
from keras_ldam.layers import Probabilities, cosine_heads

FOLDS = 5
"""Into how many parts cross-fitting divides the held-out examples, if every class has as many."""

_USUAL_SCALE = 30.0
"""Where cosines of an unknown scale begin."""


@dataclasses.dataclass(frozen=True)
class Adjustment:
    """What `adjust` made and found. `str()` gives it as text, `to_json()` as plain values.

    Args:
        model: The adjusted model, which gives probabilities.
        criterion: What was fitted for; None without held-out data.
        scale: s.
        temperature: T.
        tau: τ, given or fitted and kept; None for none.
        offsets: All that is added to the logits, of shape `(num_scores,)`: the shift to another
            prior, -τ log n and per-class offsets together.
        thresholds: For sigmoids and for two classes: the threshold on the probability *before* the
            adjustment that equals 0.5 after it, one for each decision. None for more classes.
        prior: The class frequencies for which the outputs are probabilities. None where that is
            unknown: for several labels, beside given `offsets`, and where neither `tau`, priors nor
            a fit say it.
        source_prior: The class frequencies that the scores have learned, for a `target_prior`.
        examples: Held-out examples of each class, or for several labels of those that have each.
        before: Measures of the model as it was, by name, with intervals.
        after: The same after the adjustment, each example being adjusted by a fit that has not
            seen it.
        difference: After - before, with intervals of the difference itself.
        remarks: What else there is to know, each in one sentence.
    """

    model: keras.Model
    criterion: str | None
    scale: float
    temperature: float
    tau: float | None
    offsets: np.ndarray
    thresholds: np.ndarray | None
    prior: np.ndarray | None
    source_prior: np.ndarray | None
    examples: np.ndarray | None
    before: dict[str, Interval]
    after: dict[str, Interval]
    difference: dict[str, Interval]
    remarks: tuple[str, ...]

    @property
    def layer(self) -> Probabilities:
        """The layer at the end of the model."""
        return self.model.layers[-1]

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the model as JSON can hold it."""

        def plain(value: Any) -> Any:
            if isinstance(value, (np.ndarray, np.generic)):
                return value.tolist()
            return value if not isinstance(value, dict) else {k: list(v) for k, v in value.items()}

        return {
            field.name: plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name != "model"
        }

    def __str__(self) -> str:
        lines = [f"scale {self.scale:g}, temperature {self.temperature:.4g}"]
        if self.tau is not None:
            lines[0] += f", tau {self.tau:.3g}"
        for name in ("offsets", "thresholds", "prior"):
            values = getattr(self, name)
            if values is not None and np.any(values):
                shown = np.array2string(values, precision=3, threshold=12, suppress_small=True)
                lines.append(f"{name} {shown}")
        if self.examples is not None:
            shown = np.array2string(self.examples, threshold=12)
            held_out = f"held-out examples of each class {shown}"
            lines.insert(0, f"adjusted for {self.criterion}, on {held_out}")
            width = max(map(len, self.before))
            lines.append(f"{'':{width}}  {'before':24}  {'after':24}  difference")
            lines += [
                f"{name:{width}}  {self.before[name]!s:24}  {self.after[name]!s:24}  "
                f"{self.difference[name]}"
                for name in self.before
            ]
        return "\n".join([*lines, *self.remarks])


def adjust(
    model: keras.Model,
    data: Any = None,
    *,
    criterion: str = "nll",
    precision: float | None = None,
    class_id: int | None = None,
    costs: Sequence[Sequence[float]] | np.ndarray | None = None,
    scale: float | None = None,
    temperature: float | None = None,
    tau: float | None = None,
    offsets: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    counts: Sequence[int] | np.ndarray | Mapping[Any, int] | None = None,
    target_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    source_prior: Sequence[float] | np.ndarray | Mapping[Any, float] | None = None,
    output: str | int | None = None,
    activation: str | None = None,
    from_logits: bool | None = None,
    class_names: Sequence[Any] | Mapping[Any, Any] | np.ndarray | None = None,
    seed: int = 0,
) -> Adjustment:
    """Makes of a trained model one that gives probabilities for other class frequencies or costs.

    The model may be any Keras model: of scores, cosines or probabilities, with a softmax over K
    classes, one sigmoid for two classes, or a sigmoid for each of several labels. It gets one layer
    more, `keras_ldam.layers.Probabilities`, which gives softmax or sigmoid of

    s z_j / T + log π_j - log ρ_j - τ log n_j + b_j

    where z are scores (of probabilities their logarithms or logits), s is `scale`, T is
    `temperature`, π is `target_prior`, ρ is `source_prior`, n are `counts` and b are `offsets`. In
    the adjusted model a class is decided for where its probability is the largest, or above 0.5
    for a sigmoid. It can be saved as `.keras`, goes through `export_saved_model`, and is served.

    What is not given is fitted on held-out `data`, if there are any:

    * T minimizes the negative log-likelihood.
    * Then τ is chosen, and kept if the criterion gains more than one standard error by it on
      halves of the data that it was not chosen on.
    * Then offsets of the classes are fitted, if each class has at least 20 examples, and kept by
      the same rule; for other criteria than `"nll"` only up to 200 classes. Two classes, and each
      of several labels, have one threshold, which is fitted in place of τ and offsets, exactly,
      over all breakpoints.

    The measures after the adjustment are those on data that the fit has not seen: the whole fit is
    repeated on four fifths of the held-out examples for each fifth (cross-fitting; on fewer parts
    if a class has fewer than 5 examples). Intervals are of 500 bootstrap draws within the classes.
    With `target_prior` the examples are weighted as if their classes were so frequent, and with a
    given `tau` as frequent as it leaves them, ∝ ρ_j n_j^-τ. All scores of the held-out examples are
    kept in memory, and a fit takes about 90 bytes for each of them: there may be at most 2·10⁸.

    Args:
        model: The trained model.
        data: Held-out examples, which training has not seen: `(x, y)`, `(x, y, sample_weight)`, or
            batches of these, such as a `tf.data.Dataset` or a `keras.utils.PyDataset`. Labels of
            several outputs may come by name or in a tuple. Labels are as for Keras' losses: whole
            numbers, one-hot rows, or zeros and ones for several labels; the `ignore_class` of the
            model's loss stands for an unknown one. None: nothing is fitted.
        criterion: What to fit for. `"nll"`: the negative log-likelihood, for probabilities that can
            be relied on. `"balanced_accuracy"`: the mean over classes of the share that is right.
            `"macro_f1"`: the mean over classes of F1 (for several labels, the mean over labels).
            `"recall_at"`: the recall of one class, or of each label, where its precision is at
            least `precision`. `"cost"`: the expected cost by `costs`.
        precision: For `"recall_at"`, in (0, 1].
        class_id: For `"recall_at"` among more than two classes: which class. Defaults to 1 for two.
        costs: For `"cost"`: row the label, column the decision, `(K, K)`; for several labels
            `(2, 2)`. Finite, and not below 0 off the diagonal.
        scale: s > 0. Defaults to that of the head or the loss, or 1; cosines of an unknown scale
            begin at 30 if `temperature` is to be fitted.
        temperature: T > 0. Defaults to 1 without data.
        tau: τ ≥ 0: 1 takes the class frequencies of training off completely, 0 not at all,
            whatever those of the held-out examples are. Not beside `target_prior`, which says the
            same more exactly. A fitted τ may be below 0: the model then decided for rare classes
            too often.
        offsets: b, one number per class; for a single sigmoid one number.
        counts: Training examples per class n. Defaults to those of the loss that the model was
            compiled with, else to those of the held-out labels.
        target_prior: Class frequencies where the model is used, numbers above 0, normalized here.
        source_prior: Class frequencies that the scores have learned. Defaults to n_j^(1-τ) w_j, by
            class weights w and τ of the model's loss, if it has any. Without it the shift to the
            target prior is left to the fit.
        output: Which output of several, by name or number; the adjusted model has it alone.
        activation: `"softmax"` or `"sigmoid"`, where neither model nor loss tells.
        from_logits: Whether the model gives scores, `False` for probabilities, where neither model
            nor loss tells.
        class_names: Names that may stand for the classes in what has one value per class, in class
            order: a sequence, an array, or what has the classes as keys.
        seed: Seed of folds and bootstrap draws.

    Returns:
        An `Adjustment`: its `model`, what was fitted, measures before and after, and remarks.

    Raises:
        ValueError: for an argument out of range or that the model has no use for, held-out data
            that lack a class or have only one example of it, scores that are not finite,
            probabilities where scores are expected and the reverse, and a precision that no
            threshold reaches.

    Example:

    ```python
    found = keras_ldam.adjust(model, (x_validation, y_validation), criterion="macro_f1")
    print(found)
    found.model.save("adjusted.keras")
    ```

    References:
        Guo et al., 2017, "On Calibration of Modern Neural Networks", for T; Menon et al., 2021,
        "Long-tail learning via logit adjustment", for τ; Saerens et al., 2002, "Adjusting the
        Outputs of a Classifier to New a Priori Probabilities", for π and ρ.
    """
    found = read(model, output=output, activation=activation, from_logits=from_logits)
    held = None if data is None else held_out(found, data)
    if held is None:
        names = class_names if found.num_scores else None
        form = Form(found, found.num_scores or 2, found.decides_about_several, names)
        given = (tau, offsets, counts, target_prior, source_prior)
        if found.num_scores is None and any(each is not None for each in given):
            raise ValueError(
                "The number of classes is unknown: pass `data`, or build the model as a functional "
                "one: inputs = keras.Input(shape); keras.Model(inputs, model(inputs))."
            )
    else:
        found = found.seen(held.values, several=held.several)
        form = Form(found, held.values.shape[1], held.several, class_names)
    goal = _goal(criterion, precision, class_id, costs, form)
    remarks: list[str] = []
    s = _scale(found, scale, remarks, fitted=held is not None and temperature is None)
    if temperature is not None:
        class_counts.check_range("temperature", temperature, 0, np.inf, open_low=True)
        class_counts.check_range("scale / temperature", s / temperature, 0, 1e6, open_low=True)
    factor = None if temperature is None else 1 / temperature
    base, counts, target, source = _given(
        form, tau, offsets, counts, target_prior, source_prior, fitted=held is not None
    )
    if held is None:
        fit = Fit(factor or 1.0, base, tau, np.zeros(len(base)), base, True)
        prior = target if offsets is None else None
        return _adjustment(form, fit, s, prior, source, remarks, criterion=None)
    examples = examples_of(held, form, s, target)
    present = check_presence(examples, form)
    shifted = target is not None and (tau is not None or source is not None)
    if target is not None and not shifted:
        remarks.append(
            "The class frequencies that the scores have learned are unknown, so the shift to "
            "`target_prior` was left to the fit."
        )
    direction = None
    if tau is None and not held.several:
        direction = -np.log(present if counts is None else counts)
        direction -= direction.mean()
        if not np.any(abs(direction) > 1e-9):
            direction = None
    fitter = Fitter(
        criterion=goal,
        base=base,
        direction=direction,
        factor=factor,
        offsets=offsets is None,
        seed=seed,
    )
    fit = fitter.fit(examples)
    _check_reached(goal, fit, examples, given=offsets is not None)
    after = fitter.cross_fitted(examples, min(FOLDS, examples.fewest()))
    changes = measured(examples, after, goal, seed)
    remarks += remarks_on(goal, fit, fitter, form, present, changes)
    # Without a shift the probabilities are those for the held-out frequencies only if they fit.
    fits = direction is not None or form.num_classes == 2 or examples.fewest() >= FEW
    known = offsets is None and not form.several and (shifted or fits)
    return _adjustment(
        form,
        fit if tau is None else dataclasses.replace(fit, tau=tau),
        s,
        _prior(fit, examples, goal) if known else None,
        source,
        remarks,
        criterion=criterion,
        examples=present,
        changes=changes,
    )


# ----------------------------------------------------------------------------- what is known


def _goal(
    criterion: str,
    precision: float | None,
    class_id: int | None,
    costs: Any,
    form: Form,
) -> Criterion:
    if criterion not in CRITERIA:
        raise ValueError(f"Unknown criterion {criterion!r}; available: {', '.join(CRITERIA)}.")
    needs = {"precision": "recall_at", "class_id": "recall_at", "costs": "cost"}
    given = {"precision": precision, "class_id": class_id, "costs": costs}
    for name, needed in needs.items():
        if given[name] is not None and criterion != needed:
            raise ValueError(
                f'`{name}` is for criterion="{needed}". Received: criterion={criterion!r}'
            )
    num_classes = form.num_classes
    if criterion == "recall_at":
        if precision is None:
            raise ValueError("The criterion recall_at needs `precision`, the least one accepted.")
        class_counts.check_range("precision", precision, 0, 1, open_low=True)
        if num_classes > 2 and class_id is None:
            raise ValueError(
                f"The criterion recall_at needs `class_id` for {num_classes} classes: which one is "
                "to be recalled."
            )
        chosen = 1 if class_id is None else class_id
        if chosen != int(chosen) or not 0 <= chosen < num_classes:
            raise ValueError(
                f"`class_id` must be a class in 0 … {num_classes - 1}. Received: {class_id!r}"
            )
        return Criterion(criterion, precision=float(precision), class_id=int(chosen))
    if criterion == "cost":
        if costs is None:
            raise ValueError(
                "The criterion cost needs `costs`, row the label, column the decision."
            )
        matrix = np.asarray(costs, dtype=np.float64)
        shape = (num_classes, num_classes)
        if matrix.shape != shape:
            raise ValueError(
                f"`costs` must have shape {shape}, row the label, column the decision. Received: "
                f"shape {matrix.shape}"
            )
        apart = matrix[~np.eye(num_classes, dtype=bool)]
        if not np.all(np.isfinite(matrix)) or np.any(apart < 0) or not np.any(apart > 0):
            raise ValueError(
                "`costs` must be finite, not below 0 off the diagonal, and not all 0 there. "
                f"Received: {matrix.tolist()}"
            )
        return Criterion(criterion, costs=matrix)
    return Criterion(criterion, positive_only=form.several)


def _scale(output: Output, scale: float | None, remarks: list[str], *, fitted: bool) -> float:
    if output.applied is not None:
        if scale is not None:
            raise ValueError(
                "`scale` is for scores, and the model gives probabilities. Received: "
                f"scale={scale!r}"
            )
        return 1.0
    heads = cosine_heads(output.model)
    scales = [getattr(each, "scale", None) for each in (*heads, output.loss)]
    if fitted and scale is None and heads and all(each is None for each in scales):
        remarks.append(
            f"The softmax scale of the cosines is unknown: it was taken as {_USUAL_SCALE:g}, and "
            "divided by the temperature that fits the data."
        )
        return _USUAL_SCALE
    return softmax_scale(output.model, scale, loss=output.loss)


def _given(
    form: Form,
    tau: float | None,
    offsets: Any,
    counts: Any,
    target_prior: Any,
    source_prior: Any,
    *,
    fitted: bool,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """What is added to the logits in any case, `(L, C)`; counts, target and source prior."""
    num_classes, loss = form.num_classes, form.output.weighted_loss
    base = np.zeros((form.num_scores if form.several else 1, num_classes))
    for name, value in (
        ("tau", tau),
        ("counts", counts),
        ("target_prior", target_prior),
        ("source_prior", source_prior),
    ):
        if form.several and value is not None:
            raise ValueError(
                f"`{name}` is for one class among several, and the model decides about each label "
                "by itself: pass `offsets`, or held-out data that they are fitted on."
            )
    if tau is not None:
        class_counts.check_range("tau", tau, 0, np.inf)
        if target_prior is not None:
            raise ValueError(
                "`tau` and `target_prior` are two ways to say for which class frequencies the "
                f"probabilities are meant: pass one. Received: tau={tau}"
            )
    if counts is None and loss is not None and not form.several:
        counts = loss.counts.reshape(-1) if loss.counts.size == num_classes else None
    if counts is not None:
        counts = class_counts.in_class_order("counts", counts, num_classes, form.class_names)
        counts = class_counts.check_counts(counts, form.class_names)
    target = source = None
    if target_prior is not None:
        target = class_counts.check_prior(
            "target_prior", target_prior, num_classes, class_names=form.class_names
        )
        if source_prior is None:
            try:
                source_prior = learned_prior(loss, counts)
            except ValueError:  # It is unknown; a fit finds the shift without it.
                if not fitted:
                    raise
    if tau is not None and counts is not None:
        target = np.asarray(counts, dtype=np.float64)  # What a plain model has learned.
        with contextlib.suppress(ValueError):
            target = learned_prior(loss, counts)
        target = target * np.exp(-tau * np.log(counts))
        base, target = base - tau * np.log(counts), target / target.sum()
    elif tau:
        raise ValueError("`tau` needs `counts`, the training examples per class.")
    if source_prior is not None:
        shift, _, learned = prior_shift(
            num_classes,
            target_prior=target_prior,
            source_prior=source_prior,
            class_names=form.class_names,
        )
        source, base = np.asarray(learned), base + shift
    if offsets is not None:
        numbers = class_counts.per_class(
            "offsets",
            offsets,
            form.num_scores,
            form.class_names if form.num_scores > 1 else None,
        )
        if not np.all(np.isfinite(numbers)):
            raise ValueError(f"`offsets` must be finite numbers. Received: {numbers.tolist()}")
        base = base + form.spread(numbers)
    return base, counts, target, source


def _check_reached(goal: Criterion, fit: Fit, examples: Examples, *, given: bool) -> None:
    if goal.name != "recall_at":
        return
    guesses = fit.logits(examples.scores).argmax(axis=2)
    found = goal.of(Decisions(examples.labels, guesses, examples.weights, examples.scores.shape[2]))
    if found.min() < 0:
        what = "The given `offsets` do not reach" if given else "No threshold reaches"
        raise ValueError(
            f"{what} `precision` on the held-out data. Received: "
            f"precision={goal.precision:g}; the best is {goal.precision + found.min():.4g}"
        )


def _prior(fit: Fit, examples: Examples, goal: Criterion) -> np.ndarray:
    """The class frequencies for which the adjusted logits are those of probabilities."""
    prior = examples.frequencies()[0]
    if goal.name != "nll":
        # Logits that fit these frequencies are `calibrating`; what is added is another prior.
        prior = prior * np.exp(fit.offsets[0] - fit.calibrating[0])
    return prior / prior.sum()


def _adjustment(
    form: Form,
    fit: Fit,
    scale: float,
    prior: np.ndarray | None,
    source_prior: np.ndarray | None,
    remarks: list[str],
    *,
    criterion: str | None,
    examples: np.ndarray | None = None,
    changes: tuple[dict[str, Interval], ...] = ({}, {}, {}),
) -> Adjustment:
    output = form.output
    offsets = form.joined(fit.offsets)
    layer = Probabilities(
        scale * fit.factor,
        offsets=offsets if np.any(offsets) else None,
        activation=output.activation,
        applied=output.applied,
        name=output.new_name("probabilities"),
    )
    thresholds = None
    if form.num_classes == 2:
        thresholds = 1 / (1 + np.exp((fit.offsets[:, 1] - fit.offsets[:, 0]) / fit.factor))
    return Adjustment(
        model=output.with_layer(layer),
        criterion=criterion,
        scale=scale,
        temperature=1 / fit.factor,
        tau=fit.tau,
        offsets=offsets,
        thresholds=thresholds,
        prior=prior,
        source_prior=source_prior,
        examples=examples,
        before=changes[0],
        after=changes[1],
        difference=changes[2],
        remarks=tuple(remarks),
    )
