"""An exported model behind KServe's HTTP server, in TensorFlow Serving's REST form.

    POST /v1/models/NAME:predict
    {"instances": ["A waste of two hours."]}
    {"signature_name": "serving_bytes", "instances": [{"b64": "/9j/4AAQ…"}]}

Needs TensorFlow, tensorflow_text and the package kserve (the extra `serve`). The server is
KServe's; what is here turns the rows of a request into tensors, and tensors into those of a
response.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from pathlib import Path

import kserve
import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  Its ops have to be there before a graph uses them.
from kserve.errors import InvalidInput

from keras_ldam.prediction import reason_of

_INTEGERS = {tf.uint8, tf.int32, tf.int64}


class ServedModel(kserve.Model):
    """A SavedModel that answers KServe's V1 protocol.

    Args:
        name: What the model is called in the address.
        path: The folder of a version, with `saved_model.pb`.
    """

    def __init__(self, name: str, path: str | os.PathLike):
        super().__init__(name)
        self.path = Path(path)

    def load(self) -> bool:
        """Loads the graphs; the server calls for it before it takes requests."""
        self._loaded = tf.saved_model.load(str(self.path))
        self._signatures = dict(self._loaded.signatures)
        self.ready = True
        return self.ready

    async def predict(self, payload: dict, headers: dict | None = None, **kwargs) -> dict:
        """Answers `{"instances": [row, …]}` with `{"predictions": [row, …]}`.

        Raises:
            InvalidInput: for a request that is not of that form or that the model refuses; the
                server answers 400 with the sentence.
        """
        # TensorFlow lets go of Python while it computes, so others are answered meanwhile.
        return await asyncio.to_thread(self._predict, payload)

    def _predict(self, payload):
        if not isinstance(payload, dict):
            raise InvalidInput('the request must be {"instances": [one input, …]}.')
        name = payload.get("signature_name", "serving_default")
        if name not in self._signatures:
            known = ", ".join(sorted(self._signatures))
            raise InvalidInput(f"unknown signature_name {name!r}; known: {known}.")
        serve = self._signatures[name]
        ((argument, spec),) = serve.structured_input_signature[1].items()
        instances = payload.get("instances")
        if not isinstance(instances, list):
            raise InvalidInput('the request must be {"instances": [one input, …]}.')
        rows = [
            row[argument] if isinstance(row, dict) and set(row) == {argument} else row
            for row in instances
        ]
        try:
            outputs = serve(**{argument: _tensor(rows, spec)})
        except tf.errors.InvalidArgumentError as error:
            raise InvalidInput(reason_of(error)) from None
        columns = {key: _plain(value.numpy()) for key, value in outputs.items()}
        return {
            "predictions": [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
        }


def serve(name: str, path: str | os.PathLike, *, port: int = 8501) -> None:
    """Serves a model over HTTP until the process is ended.

    Args:
        name: What it is called in the address.
        path: The folder of a version.
        port: HTTP port; 8501 is TensorFlow Serving's.
    """
    model = ServedModel(name, path)
    model.load()
    kserve.ModelServer(http_port=port, enable_grpc=False, workers=1).start([model])


def _tensor(rows, spec):
    if spec.dtype == tf.string:
        return tf.constant([_bytes(row) for row in rows], tf.string, shape=(len(rows),))
    try:
        values = np.asarray(rows)
        if len(rows) == 0:
            values = np.zeros([0, *(length or 0 for length in spec.shape[1:])], np.int64)
        if spec.dtype in _INTEGERS and values.dtype.kind not in "iu":
            raise ValueError("they must be whole numbers in lists of one length")
        limits = np.iinfo(spec.dtype.as_numpy_dtype)
        if values.size and not limits.min <= values.min() <= values.max() <= limits.max:
            raise ValueError(f"they must be from {limits.min} to {limits.max}")
    except ValueError as error:
        raise InvalidInput(f"the instances cannot be read as {spec.dtype.name}: {error}.") from None
    return tf.constant(values.astype(spec.dtype.as_numpy_dtype))


def _bytes(row):
    if isinstance(row, str):
        try:
            return row.encode()
        except UnicodeEncodeError:
            raise InvalidInput("a text cannot be written as UTF-8.") from None
    if isinstance(row, dict) and isinstance(row.get("b64"), str) and len(row) == 1:
        try:
            return base64.b64decode(row["b64"], validate=True)
        except binascii.Error as error:
            raise InvalidInput(f"b64 does not hold base64: {error}.") from None
    raise InvalidInput('an instance must be a string or {"b64": "…"}.')


def _plain(array):
    if array.dtype.kind in "OS":
        return [value.decode() for value in array]
    return array.tolist()
