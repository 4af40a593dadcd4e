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
import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from unittest import mock

import numpy as np
import tensorflow as tf

from keras_ldam.serving import predictor as prediction
from keras_ldam.serving.predictor import Exported, reason_of

# KServe takes the arguments of the program for its own when it is imported.
with mock.patch.object(sys, "argv", sys.argv[:1]):
    import kserve
    import orjson
    from kserve import logging
    from kserve.errors import InvalidInput
    from kserve.model_repository import ModelRepository
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer

GRACE_SECONDS = 8
"""How long a server that is told to end waits for requests that are under way.

Less than the 10 seconds after which `docker stop` kills; KServe's own are 30, as Kubernetes' are.
"""
_FORM = 'the request must be {"instances": [one input, …]}.'
_FIXED = "this server keeps the one model that it was started with; none can be loaded or unloaded."


def serve(
    path: str | os.PathLike, *, name: str | None = None, host: str = "127.0.0.1", port: int = 8501
) -> Iterator[dict]:
    """Serves a model over HTTP until the process is ended.

    Args:
        path: `DIR/NAME`, of which the highest version is taken, or `DIR/NAME/VERSION`.
        name: What the model is called in the address; NAME by default.
        host: Address to listen at; 0.0.0.0 is reached from other machines, too.
        port: HTTP port; 8501 is TensorFlow Serving's; 0: any free one.

    Yields:
        `{"model", "version", "url"}` once requests are accepted; asked for more, it serves.

    Raises:
        ValueError: if there is no exported model, it is one of another making, or it cannot listen
            there.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be from 0 to 65535; received {port}.")
    exported = prediction.load(path)
    folder = exported.path.resolve()
    numbered = folder.name.isdigit()
    name = name or (folder.parent if numbered else folder).name
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"name must be of letters, digits, '.', '_' and '-'; received {name!r}.")
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    logging.configure_logging()
    models = ModelRepository()
    models.update(ServedModel(name, exported))
    # KServe's ModelServer listens at every address of the machine; its REST server can be told.
    server = RESTServer(
        "kserve.model_server:app",
        DataPlane(models),
        OneModel(models),
        port,
        grace_period=GRACE_SECONDS,
    )
    yield {
        "model": name,
        "version": folder.name if numbered else None,
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}/v1/models/{name}:predict",
    }
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


class ServedModel(kserve.Model):
    """A SavedModel that answers KServe's V1 protocol.

    Args:
        name: What the model is called in the address.
        exported: The loaded model.
    """

    def __init__(self, name: str, exported: Exported):
        super().__init__(name)
        self._exported = exported
        self.ready = True

    async def predict(self, payload: dict, headers: dict | None = None, **kwargs) -> dict:
        """Answers `{"instances": [row, …]}` with `{"predictions": [row, …]}`.

        Raises:
            InvalidInput: for a request that is not of that form or that the model refuses; the
                server answers 400 with the sentence.
        """
        # TensorFlow lets go of Python while it computes, so others are answered meanwhile.
        return await asyncio.to_thread(self._predict, payload)

    def _predict(self, payload):
        if isinstance(payload, bytes):
            # KServe reads JSON only where the header says exactly that; curl -d says otherwise.
            try:
                payload = orjson.loads(payload)
            except ValueError as error:
                raise InvalidInput(f"the request is not JSON: {error}.") from None
        if not isinstance(payload, dict) or not isinstance(payload.get("instances"), list):
            raise InvalidInput(_FORM)
        signatures = self._exported.signatures
        name = payload.get("signature_name", "serving_default")
        if not isinstance(name, str) or name not in signatures:
            known = ", ".join(sorted(signatures))
            raise InvalidInput(f"unknown signature_name {name!r}; known: {known}.")
        serve = signatures[name]
        ((argument, spec),) = serve.structured_input_signature[1].items()
        rows = [
            row[argument] if isinstance(row, dict) and set(row) == {argument} else row
            for row in payload["instances"]
        ]
        outputs = _answer(lambda part: serve(**{argument: part}), _tensor(rows, spec))
        columns = {key: _plain(value) for key, value in outputs.items()}
        return {
            "predictions": [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
        }


class OneModel(ModelRepositoryExtension):
    """KServe's list of models, of which clients can neither load nor unload any."""

    async def load(self, model_name: str) -> None:
        """Refuses.

        Raises:
            InvalidInput: always; the server answers 400 with the sentence.
        """
        raise InvalidInput(_FIXED)

    async def unload(self, model_name: str) -> None:
        """Refuses; KServe would let anyone who asks take the model from everyone.

        Raises:
            InvalidInput: always; the server answers 400 with the sentence.
        """
        raise InvalidInput(_FIXED)


def _listen(host, port):
    try:
        ((family, *_, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        # Python adds the address to some of these reasons.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise ValueError(f"cannot listen at {host}, port {port}: {reason}.") from None


def _answer(serve, inputs, first=None):
    """Outputs, by name; a batch of strings that is refused is halved, down to the one at fault.

    There need be none: files of several sizes are refused together, and each may be answered.
    """
    try:
        return {key: value.numpy() for key, value in serve(inputs).items()}
    except tf.errors.InvalidArgumentError as error:
        if inputs.dtype != tf.string or len(inputs) < 2:
            place = "" if first is None else f"instance {first}, from 0: "
            raise InvalidInput(place + reason_of(error)) from None
    first, half = first or 0, len(inputs) // 2
    parts = [_answer(serve, inputs[:half], first), _answer(serve, inputs[half:], first + half)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _tensor(rows, spec):
    if spec.dtype == tf.string:
        return tf.constant([_bytes(row) for row in rows], tf.string, shape=(len(rows),))
    dtype = spec.dtype.as_numpy_dtype
    limits = np.iinfo(dtype)
    try:
        values = np.asarray(rows)
    except ValueError:  # Lists of unequal length.
        values = np.empty(0, object)
    if len(rows) == 0:
        values = np.zeros([0, *(length or 0 for length in spec.shape[1:])], dtype)
    if values.dtype.kind not in "iu" or (
        values.size and not limits.min <= values.min() <= values.max() <= limits.max
    ):
        raise InvalidInput(
            f"the instances must be whole numbers from {limits.min} to {limits.max}, in lists of "
            "one length for each axis."
        )
    return tf.constant(values.astype(dtype))


def _bytes(row):
    if isinstance(row, str):
        try:
            return row.encode()
        except UnicodeEncodeError:
            raise InvalidInput("a text cannot be written as UTF-8.") from None
    if isinstance(row, dict) and isinstance(row.get("b64"), str) and len(row) == 1:
        try:
            return base64.b64decode(row["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(f"b64 does not hold base64: {error}.") from None
    raise InvalidInput('an instance must be a string or {"b64": "…"}.')


def _plain(array):
    if array.dtype.kind in "OS":
        return [value.decode() for value in array]
    return array.tolist()
