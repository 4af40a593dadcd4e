"""An exported model: which version is loaded, and how a batch with a bad input is answered."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_ldam import cells, extras, files

with extras.needed("export", by="an exported model"):
    import tensorflow as tf

IMAGE_SIGNATURE, TEXT_SIGNATURE = "serving_bytes", "serving_default"


class RefusedError(ValueError):
    """The model does not accept an input; the message is the reason in one sentence."""


class Signature:
    """One signature of an exported model: from a batch of inputs to a batch of answers.

    Args:
        function: The signature as TensorFlow loads it.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        ((self.argument, spec),) = function.structured_input_signature[1].items()
        self.dtype, self.shape = spec.dtype, spec.shape

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        """Answers a batch.

        Args:
            inputs: Strings `(batch,)` or pixels `(batch, height, width, channels)`.

        Returns:
            The outputs by name, each of shape `(batch, …)`.

        Raises:
            RefusedError: if an input is bad; one fails the whole batch.
        """
        try:
            outputs = self._function(**{self.argument: tf.constant(inputs, self.dtype)})
        except tf.errors.InvalidArgumentError as error:
            raise RefusedError(reason_of(error)) from None
        return {name: value.numpy() for name, value in outputs.items()}

    def answers(self, inputs: list[Any]) -> Iterator[dict[str, np.ndarray] | RefusedError]:
        """Answers inputs in order, in as few batches as the bad ones among them allow.

        A batch that is refused is halved until the bad input is alone. Files of several sizes may
        be refused together although each can be answered.

        Args:
            inputs: Texts, image files or rows.

        Yields:
            The outputs for the next one or more of the inputs; or why the next one is refused.
        """
        refused = None
        try:
            yield self(inputs)
        except RefusedError as error:
            refused = error
        if refused is None:
            return
        if len(inputs) < 2:
            yield refused
            return
        half = len(inputs) // 2
        yield from self.answers(inputs[:half])
        yield from self.answers(inputs[half:])


class RowSignature(Signature):
    """The signature of a model of tables: from rows by column to a batch of answers.

    Args:
        function: The signature as TensorFlow loads it, with an argument for each column.
        columns: What `export.json` says of the columns.
    """

    def __init__(self, function: Any, columns: Sequence[Mapping[str, str]]) -> None:
        self._function = function
        self._columns = {column["name"]: column for column in columns}

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        """Answers rows.

        Args:
            inputs: Dictionaries from the names of columns to numbers and texts. A column that is
                absent, or None, is a missing value.

        Raises:
            RefusedError: as for texts; also for a column that is unknown or of another kind.
        """
        for row in inputs:
            if not isinstance(row, dict):
                raise RefusedError("a row must be a JSON object of columns and values")
            unknown = [name for name in row if name not in self._columns]
            if unknown:
                known = ", ".join(map(repr, list(self._columns)[:20]))
                raise RefusedError(f"unknown column {unknown[0][:100]!r}; known: {known}")
        tensors = {}
        for name, column in self._columns.items():
            values = [row.get(name) for row in inputs]
            if column["kind"] == "number":
                numbers = np.array([_number(name, value) for value in values], np.float32)
                tensors[column["argument"]] = tf.constant(numbers)
            else:
                texts = [_text(name, value) for value in values]
                tensors[column["argument"]] = tf.constant(texts, tf.string)
        try:
            outputs = self._function(**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise RefusedError(reason_of(error)) from None
        return {name: value.numpy() for name, value in outputs.items()}


def _number(name: str, value: Any) -> float:
    try:
        number = cells.number(value)  # One in quotes comes from CSV.
    except (TypeError, ValueError):
        raise RefusedError(f"column {name!r} must be a number, not {repr(value)[:100]}") from None
    if abs(number) > np.finfo(np.float32).max:
        raise RefusedError(f"column {name!r} is infinite or beyond 3.4e38")
    return number


def _text(name: str, value: Any) -> bytes:
    if value is None:
        return b""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, float):  # Not as 1e-07, which no table holds.
        value = np.format_float_positional(value, trim="-")
    if not isinstance(value, (str, int)):
        raise RefusedError(f"column {name!r} must be a text, not {repr(value)[:100]}")
    try:
        return str(value).encode()
    except UnicodeEncodeError:
        raise RefusedError(f"column {name!r} cannot be written as UTF-8") from None


@dataclasses.dataclass(frozen=True)
class Exported:
    """A loaded exported model.

    Args:
        path: The folder of the version.
        signatures: The signatures by name.
        holder: TensorFlow's object, which the signatures hold only weakly.
    """

    path: Path
    signatures: dict[str, Signature]
    holder: Any

    @property
    def takes_images(self) -> bool:
        """Whether the inputs are images."""
        return IMAGE_SIGNATURE in self.signatures

    @property
    def takes_rows(self) -> bool:
        """Whether the inputs are rows of a table."""
        return isinstance(self.signatures[TEXT_SIGNATURE], RowSignature)


def load(path: str | os.PathLike[str]) -> Exported:
    """Loads an exported model. A SavedModel is a program: load only what you trust.

    Args:
        path: `DIR/NAME` for its highest version, or `DIR/NAME/VERSION`.

    Raises:
        ValueError: if there is no exported model, it cannot be loaded, or it was not written by
            `export_saved_model`.
    """
    path = _newest_version(Path(path))
    # The ops must be registered before a graph with them is loaded; images need none of them.
    with contextlib.suppress(ImportError):
        import tensorflow_text  # noqa: F401

    try:
        holder = tf.saved_model.load(str(path))
    except Exception as error:  # TensorFlow raises whatever it met first.
        reason = files.reason(error)
        raise ValueError(f"{path} cannot be loaded as a SavedModel: {reason}") from None
    functions = dict(holder.signatures)
    columns = _columns(path)
    if columns is not None and TEXT_SIGNATURE in functions:
        rows = RowSignature(functions[TEXT_SIGNATURE], columns)
        return Exported(path, {TEXT_SIGNATURE: rows}, holder)
    if TEXT_SIGNATURE not in functions or not all(map(_is_ours, functions.values())):
        raise ValueError(f"{path} was not written by `export_saved_model`.")
    signatures = {name: Signature(function) for name, function in functions.items()}
    return Exported(path, signatures, holder)


def _columns(path: Path) -> list[dict[str, str]] | None:
    """The columns of a model of tables, as the file beside it says; None for another model."""
    try:
        facts = json.loads((path / "export.json").read_bytes())
        return facts["columns"] if facts["input"] == "row" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_ours(function: Any) -> bool:
    dtypes = [spec.dtype for spec in function.structured_input_signature[1].values()]
    return dtypes in ([tf.string], [tf.uint8]) and "probabilities" in function.structured_outputs


def _newest_version(path: Path) -> Path:
    if (path / "saved_model.pb").exists():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} is not the folder of an exported model: no such folder.")
    versions = [p for p in path.iterdir() if p.name.isdigit() and (p / "saved_model.pb").exists()]
    if not versions:
        raise ValueError(
            f"{path} is not the folder of an exported model: it has neither saved_model.pb nor a "
            "numbered version."
        )
    return max(versions, key=lambda version: int(version.name))


def reason_of(error: tf.errors.InvalidArgumentError) -> str:
    """Returns the sentence about the input in TensorFlow's long message."""
    text = error.message or str(error)
    found = re.search(r"assertion failed: \[(.*)\]", text)
    if found:
        sentence, between, details = found[1].rpartition("] [")
        if not between:
            return details
        sentence, _, place = sentence.partition(": number in the batch")
        return sentence if place else f"{sentence} {details}"
    noise = ("Graph execution", "Detected at", "<stack", "\t", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith(noise)]
    return (lines[0] if lines else text)[:300]
