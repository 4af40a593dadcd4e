"""Answers of an exported model to lines of text or image files, as they come in.

Needs TensorFlow, and tensorflow_text for text; neither Keras' model nor its class is looked at.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

IMAGE_SIGNATURE, TEXT_SIGNATURE = "serving_bytes", "serving_default"
_AHEAD = 4
"""How many batches of texts are read ahead."""


class Exported(NamedTuple):
    """An exported model that has been loaded."""

    path: Path
    """The folder of the version."""
    signatures: dict[str, Callable]
    """What can be asked, by name."""
    holder: object
    """Must be kept for as long as the signatures, which hold it only weakly."""


def load(path: str | os.PathLike) -> Exported:
    """Loads an exported model.

    Args:
        path: `DIR/NAME`, of which the highest version is taken, or `DIR/NAME/VERSION`.

    Raises:
        ValueError: if there is no exported model, it cannot be loaded, or it is of another making.
    """
    path = _newest_version(Path(path))
    # Its ops have to be there before a graph that uses them is loaded; images need none of them.
    with contextlib.suppress(ImportError):
        import tensorflow_text  # noqa: F401

    try:
        holder = tf.saved_model.load(str(path))
    except Exception as error:  # TensorFlow raises whatever it met first.
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise ValueError(f"{path} cannot be loaded as a SavedModel: {reason}") from None
    signatures = dict(holder.signatures)
    if TEXT_SIGNATURE not in signatures or not all(map(_made_here, signatures.values())):
        raise ValueError(f"{path} is not a model that bin/export has written.")
    return Exported(path, signatures, holder)


def _made_here(serve):
    """Whether a signature is one of `export_saved_model`."""
    dtypes = [spec.dtype for spec in serve.structured_input_signature[1].values()]
    return dtypes in ([tf.string], [tf.uint8]) and "probabilities" in serve.structured_outputs


class Predictor:
    """An exported model, ready to answer.

    Args:
        path: See `load`.

    Raises:
        ValueError: as `load` does.
    """

    def __init__(self, path: str | os.PathLike):
        self._exported = load(path)
        signatures = self._exported.signatures
        self.takes_images = IMAGE_SIGNATURE in signatures
        self._serve = signatures[IMAGE_SIGNATURE if self.takes_images else TEXT_SIGNATURE]
        (self._input,) = self._serve.structured_input_signature[1]

    def predict(
        self, lines: Iterable[bytes], *, batch_size: int = 64, probabilities: bool = True
    ) -> Iterator[dict]:
        """Answers each line, in order, as soon as it can.

        Whatever lines are there already are answered together, up to four batches; nothing waits
        for a batch to fill.

        Args:
            lines: Texts, or paths of image files.
            batch_size: How many to answer together at most.
            probabilities: Whether to give the probability of every class.

        Yields:
            `{"line", "label", "class_index", "probability", "probabilities"}`, for images also
            `"path"`; for a line that cannot be answered `{"line", "error"}`. Lines count from 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; received {batch_size}.")
        # More texts than one batch, so that those of like length can share one.
        together = batch_size if self.takes_images else _AHEAD * batch_size
        number = 0
        for group in _arriving(lines, together):
            for line, answer in zip(group, self._answer_lines(group, batch_size), strict=True):
                number += 1
                record = {"line": number}
                if self.takes_images:
                    record["path"] = os.fsdecode(line)
                if not probabilities:
                    answer.pop("probabilities", None)
                yield {**record, **answer}

    def _answer_lines(self, lines, batch_size):
        answers, inputs = [None] * len(lines), []
        for index, line in enumerate(lines):
            if self.takes_images:
                try:
                    line = Path(os.fsdecode(line)).read_bytes()
                except (OSError, ValueError) as error:
                    reason = getattr(error, "strerror", None) or str(error)
                    answers[index] = {"error": f"cannot be read: {reason}"}
                    continue
            inputs.append((index, line))
        if not self.takes_images:
            inputs.sort(key=lambda each: len(each[1]))
        for start in range(0, len(inputs), batch_size):
            indices, batch = zip(*inputs[start : start + batch_size], strict=True)
            for index, answer in zip(indices, self._answer(list(batch)), strict=True):
                answers[index] = answer
        return answers

    def _answer(self, inputs):
        """Answers of a batch; one that is refused is halved until the input at fault is alone."""
        try:
            out = self._serve(**{self._input: tf.constant(inputs, tf.string)})
        except tf.errors.InvalidArgumentError as error:
            if len(inputs) == 1:
                return [{"error": reason_of(error)}]
            half = len(inputs) // 2
            return self._answer(inputs[:half]) + self._answer(inputs[half:])
        rows = out["probabilities"].numpy().tolist()
        indices = out["class_index"].numpy().tolist()
        labels = out["label"].numpy().tolist()
        return [
            {
                "label": label.decode(),
                "class_index": index,
                "probability": row[index],
                "probabilities": row,
            }
            for row, index, label in zip(rows, indices, labels, strict=True)
        ]


def lines_of(file) -> Iterator[bytes]:
    """The lines of a binary file, without their ends."""
    for line in file:
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def _newest_version(path):
    if (path / "saved_model.pb").exists():
        return path
    if not path.is_dir():
        raise ValueError(f"{path} is not the folder of an exported model: no such folder.")
    versions = [p for p in path.iterdir() if p.name.isdigit() and (p / "saved_model.pb").exists()]
    if not versions:
        raise ValueError(
            f"{path} is not the folder of an exported model: it has neither saved_model.pb nor a "
            "numbered version. bin/export makes one from a run folder."
        )
    return max(versions, key=lambda version: int(version.name))


def _arriving(lines, most):
    """Groups of the lines that are there; reads ahead in a thread."""
    waiting: queue.Queue = queue.Queue(maxsize=most)
    end = object()
    failure = []

    def read():
        try:
            for line in lines:
                waiting.put(line)
        except Exception as error:
            failure.append(error)
        waiting.put(end)

    threading.Thread(target=read, daemon=True).start()
    item = None
    while item is not end:
        group = []
        item = waiting.get()
        while item is not end:
            group.append(item)
            if len(group) == most:
                break
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                break
        if group:
            yield group
    if failure:
        raise failure[0]


def reason_of(error: tf.errors.InvalidArgumentError) -> str:
    """What is wrong with an input: the sentence in TensorFlow's long message."""
    text = error.message or str(error)
    found = re.search(r"assertion failed: \[(.*)\] \[([^\[\]]*)\]", text)
    if found:
        sentence, details = found.groups()
        sentence, _, place = sentence.partition(": number in the batch")
        return sentence if place else f"{sentence} {details}"
    noise = ("Graph execution", "Detected at", "<stack", "\t", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith(noise)]
    return (lines[0] if lines else text)[:300]
