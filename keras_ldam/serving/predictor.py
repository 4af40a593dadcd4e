"""Answers of an exported model to lines of text, rows or image files, as they arrive."""

from __future__ import annotations

import codecs
import collections
import contextlib
import itertools
import json
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from keras_ldam.serving import exported
from keras_ldam.serving.exported import IMAGE_SIGNATURE, TEXT_SIGNATURE, RefusedError

_AHEAD = 4
"""Number of batches of texts that are read ahead."""


class Predictor:
    """An exported model that answers lines.

    Args:
        path: See `exported.load`.

    Raises:
        ValueError: as `exported.load` does.

    Example:

    ```python
    for answer in Predictor("exports/imdb").predict([b"A waste of two hours."]):
        print(answer["label"], answer["probability"])
    ```
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._exported = exported.load(path)
        self.takes_images = self._exported.takes_images
        self.takes_rows = self._exported.takes_rows
        name = IMAGE_SIGNATURE if self.takes_images else TEXT_SIGNATURE
        self._signature = self._exported.signatures[name]

    def predict(
        self, lines: Iterable[bytes], *, batch_size: int = 64, probabilities: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Answers each line, in order, as soon as possible.

        Lines that have already arrived are answered together, up to four batches of texts or one of
        images; none waits for a batch to fill.

        Args:
            lines: Texts, rows of a table as JSON objects, or paths of image files.
            batch_size: Largest number of lines to answer together. Defaults to 64.
            probabilities: Whether to give the probability of every class. Defaults to `True`.

        Yields:
            `{"line", "label", "class_index", "probability", "probabilities"}`, for images also
            `"path"`, for several labels `"present"`, for pixels without `"label"` and
            `"probability"`; for a line that cannot be answered `{"line", "error"}`.
            Lines count from 1.

        Raises:
            ValueError: if `batch_size` is less than 1.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1. Received: {batch_size}")
        # More texts than one batch, so that those of similar length can share one.
        together = batch_size if self.takes_images else _AHEAD * batch_size
        number = 0
        for group in _arriving(lines, together):
            for line, answer in zip(group, self._answer_lines(group, batch_size), strict=True):
                number += 1
                record: dict[str, Any] = {"line": number}
                if self.takes_images:
                    record["path"] = os.fsdecode(line)
                if not probabilities:
                    answer.pop("probabilities", None)
                yield {**record, **answer}

    def _answer_lines(self, lines: list[bytes], batch_size: int) -> list[dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        inputs: list[tuple[int, Any]] = []
        for index, line in enumerate(lines):
            if self.takes_images:
                try:
                    line = Path(os.fsdecode(line)).read_bytes()
                except (OSError, ValueError) as error:
                    reason = getattr(error, "strerror", None) or str(error)
                    answers[index] = {"error": f"cannot be read: {reason}"}
                    continue
            elif self.takes_rows:
                try:
                    line = json.loads(line)
                except (ValueError, RecursionError) as error:
                    answers[index] = {"error": f"is not JSON: {error}"}
                    continue
            inputs.append((index, line))
        if not self.takes_images and not self.takes_rows:
            inputs.sort(key=lambda each: len(each[1]))
        for start in range(0, len(inputs), batch_size):
            indices, batch = zip(*inputs[start : start + batch_size], strict=True)
            answers.update(zip(indices, self._answer(list(batch)), strict=True))
        return [answers[index] for index in range(len(lines))]

    def _answer(self, inputs: list[Any]) -> Iterator[dict[str, Any]]:
        for outputs in self._signature.answers(inputs):
            if isinstance(outputs, RefusedError):
                yield {"error": str(outputs)}
                continue
            for place, index in enumerate(outputs["class_index"].tolist()):
                row = outputs["probabilities"][place].tolist()
                answer = {"class_index": index, "probabilities": row}
                if "label" in outputs:  # Not where each pixel has a class.
                    answer = {
                        "label": outputs["label"][place].decode(),
                        "class_index": index,
                        "probability": row[index],
                        "probabilities": row,
                    }
                if "present" in outputs:
                    answer["present"] = outputs["present"][place].tolist()
                yield answer


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a binary file, without their ends and the byte order mark of UTF-8.

    Raises:
        ValueError: if the file begins with the byte order mark of UTF-16.
    """
    for number, line in enumerate(file):
        if number == 0:
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ValueError("The lines are in UTF-16; convert them to UTF-8.")
            line = line.removeprefix(codecs.BOM_UTF8)
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def _arriving(lines: Iterable[bytes], most: int) -> Iterator[list[bytes]]:
    """Yields groups of the lines that have arrived; a thread reads ahead."""
    end, stopped = object(), threading.Event()
    waiting: queue.Queue[Any] = queue.Queue(maxsize=most)
    failure: list[BaseException] = []

    def read() -> None:
        try:
            for line in lines:
                waiting.put(line)
                if stopped.is_set():
                    return
        except BaseException as error:  # What ends the reader must end the caller too.
            failure.append(error)
        if not stopped.is_set():
            waiting.put(end)

    def at_once() -> Iterator[Any]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield waiting.get_nowait()

    threading.Thread(target=read, daemon=True).start()
    try:
        item = None
        while item is not end:
            group = []
            for item in itertools.chain([waiting.get()], at_once()):
                if item is end:
                    break
                group.append(item)
                if len(group) == most:
                    break
            if group:
                yield group
    finally:
        stopped.set()
        collections.deque(at_once(), maxlen=0)  # The reader may wait for room.
    if failure:
        raise failure[0]
