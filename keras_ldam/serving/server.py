"""An exported model behind KServe's HTTP server, in TensorFlow Serving's REST form.

    POST /v1/models/NAME:predict
    {"instances": ["A waste of two hours."]}
    {"signature_name": "serving_bytes", "instances": [{"b64": "/9j/4AAQ…"}]}

The server is KServe's. What is here turns the rows of a request into tensors and tensors into the
rows of a response, and sets limits to requests, patience and log, of which KServe has none.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from keras_ldam import extras, hardware
from keras_ldam.serving import exported as loading
from keras_ldam.serving.exported import Exported, RefusedError, RowSignature, Signature


@contextlib.contextmanager
def _without_arguments() -> Iterator[None]:
    """Hides the program's arguments, which KServe parses as its own when it is imported."""
    given, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = given


with extras.needed("serve", by="the HTTP server"), _without_arguments():
    import kserve
    import orjson
    from kserve.errors import InvalidInput, ModelNotFound
    from kserve.logging import configure_logging
    from kserve.model_repository import ModelRepository
    from kserve.model_server import app
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

GRACE_SECONDS = 8
"""How long a server that is told to end waits for requests in progress.

Less than the 10 seconds after which `docker stop` kills; KServe's default is 30, like Kubernetes'.
"""
REQUEST_SECONDS = 30
"""A connection is closed if a request is not complete this long after it began."""
MAX_HEAD_BYTES = 64 * 2**10
"""A connection is closed if a request's headers are longer."""
MAX_REQUEST_BYTES = 64 * 2**20
"""Larger requests get code 413."""
MAX_TOGETHER, MAX_FILES_TOGETHER = 64, 8
"""How many texts or arrays of pixels, and how many image files, are computed together; a request
with more is computed in parts."""
LOG_LINES_A_MINUTE = 1000
"""Further lines are left out, and their number is logged."""
_FORM = 'the request must be {"instances": [one input, …]}.'
_FIXED = "this server keeps the model that it was started with; none can be loaded or unloaded."


def serve(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8501,
) -> Iterator[dict[str, Any]]:
    """Serves a model over HTTP until the process ends.

    Args:
        path: `DIR/NAME` for its highest version, or `DIR/NAME/VERSION`.
        name: Name of the model in the address. Defaults to NAME.
        host: Address to listen at; 0.0.0.0 can be reached from other machines. Defaults to
            127.0.0.1.
        port: HTTP port; 0 for any free one. Defaults to 8501, TensorFlow Serving's.

    Yields:
        `{"model", "version", "url"}` once connections are accepted; asked for more, it serves.

    Raises:
        ValueError: for a `port` out of range, a malformed `name`, an address that cannot be
            listened at, or as `exported.load` does.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"`port` must be from 0 to 65535. Received: {port}")
    model = loading.load(path)
    folder = model.path.resolve()
    numbered = folder.name.isdigit()
    name = name or (folder.parent if numbered else folder).name
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(
            f"`name` must consist of letters, digits, '.', '_' and '-'. Received: {name!r}"
        )
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    configure_logging()
    _limit_logs()
    models = ModelRepository()
    models.update(ServedModel(name, model))
    # KServe's ModelServer listens at every address of the machine; its REST server can be told.
    server = RESTServer(
        "kserve.model_server:app",
        DataPlane(models),
        OneModel(models),
        port,
        grace_period=GRACE_SECONDS,
    )
    server.config.app = _CompleteRequests(app)
    server.config.http = _ImpatientProtocol
    server.config.ws = "none"  # A WebSocket would escape the protocol's patience.
    yield {
        "model": name,
        "version": folder.name if numbered else None,
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}/v1/models/{name}:predict",
    }
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


# ----------------------------------------------------------------------------- the model


class ServedModel(kserve.Model):
    """A SavedModel that answers KServe's V1 protocol.

    Args:
        name: Name of the model in the address.
        model: The loaded model.
    """

    def __init__(self, name: str, model: Exported) -> None:
        super().__init__(name)
        self._model = model
        # Each request that is computed takes memory; more of them than cores are no faster.
        self._threads = ThreadPoolExecutor(max(2, hardware.cores()))
        self.ready = True

    async def predict(
        self, payload: Any, headers: dict[str, str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Answers `{"instances": [row, …]}` with `{"predictions": [row, …]}`.

        Args:
            payload: The request, parsed or as bytes.
            headers: Ignored.
            **kwargs: Ignored.

        Raises:
            InvalidInput: for a request of another form, or an input that the model refuses; the
                server answers 400 with the sentence.
        """
        # TensorFlow lets go of Python while it computes, so others are answered meanwhile.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._predict, payload)

    def _predict(self, payload: Any) -> dict[str, Any]:
        if isinstance(payload, bytes):
            # KServe parses JSON only if the header says exactly that; curl -d says otherwise.
            try:
                payload = orjson.loads(payload)
            except ValueError as error:
                raise InvalidInput(f"the request is not JSON: {error}.") from None
        if not isinstance(payload, dict) or not isinstance(payload.get("instances"), list):
            raise InvalidInput(_FORM)
        name = payload.get("signature_name", loading.TEXT_SIGNATURE)
        signature = self._model.signatures.get(name) if isinstance(name, str) else None
        if signature is None:
            known = ", ".join(sorted(self._model.signatures))
            raise InvalidInput(f"unknown signature_name {repr(name)[:100]}; known: {known}.")
        rows = payload["instances"]
        if not isinstance(signature, RowSignature):
            argument = signature.argument
            rows = [
                row[argument] if isinstance(row, dict) and set(row) == {argument} else row
                for row in rows
            ]
        most = MAX_FILES_TOGETHER if name == loading.IMAGE_SIGNATURE else MAX_TOGETHER
        return {"predictions": _answers(signature, rows, most)}


class OneModel(ModelRepositoryExtension):
    """KServe's list of models, of which clients can neither load nor unload any."""

    async def load(self, model_name: str) -> None:
        """Refuses.

        Raises:
            InvalidInput: always; the server answers 400 with the sentence.
        """
        raise InvalidInput(_FIXED)

    async def unload(self, model_name: str) -> None:
        """Refuses; KServe would let any client take the model from all others.

        Raises:
            InvalidInput: always; the server answers 400 with the sentence.
        """
        raise InvalidInput(_FIXED)


def _answers(signature: Signature, rows: list[Any], most: int) -> list[dict[str, Any]]:
    """The predictions for the rows of a request; the first bad one refuses the request."""
    parts: list[dict[str, np.ndarray]] = []
    is_row = isinstance(signature, RowSignature)
    if not is_row and signature.dtype != "string":
        pixels = _pixels(rows, signature)
        try:
            parts = [signature(part) for part in _divided(pixels, most)]
        except RefusedError as error:
            raise InvalidInput(str(error)) from None
    else:
        inputs, answered = rows if is_row else [_bytes(row) for row in rows], 0
        for some in _divided(inputs, most):
            for part in signature.answers(some):
                if isinstance(part, RefusedError):
                    place = f"instance {answered}, from 0: " if len(rows) > 1 else ""
                    raise InvalidInput(f"{place}{part}")
                parts.append(part)
                answered += len(part["class_index"])
    # Not of all parts together: the outputs for pixels may have several sizes.
    return [row for part in parts for row in _rows_of(part)]


def _rows_of(outputs: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    columns = [_plain(value) for value in outputs.values()]
    for row in zip(*columns, strict=True):
        yield dict(zip(outputs, row, strict=True))


def _divided(inputs: Any, most: int) -> list[Any]:
    """Consecutive parts of the inputs; of none one part, which is empty."""
    return [inputs[start : start + most] for start in range(0, len(inputs) or 1, most)]


def _pixels(rows: list[Any], signature: Signature) -> np.ndarray:
    dtype = signature.dtype.as_numpy_dtype
    limits = np.iinfo(dtype)
    try:
        values = np.asarray(rows)
    except ValueError:  # Lists of unequal length.
        values = np.empty(0, object)
    if len(rows) == 0:
        values = np.zeros([0, *(length or 0 for length in signature.shape[1:])], dtype)
    if values.dtype.kind not in "iu" or (
        values.size and not limits.min <= values.min() <= values.max() <= limits.max
    ):
        raise InvalidInput(
            f"the instances must be whole numbers from {limits.min} to {limits.max}, in lists of "
            "one length for each axis."
        )
    return values.astype(dtype)


def _bytes(row: Any) -> bytes:
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


def _plain(array: np.ndarray) -> list[Any]:
    if array.dtype.kind in "OS":
        return [value.decode() for value in array]
    return array.tolist()


# ----------------------------------------------------------------------------- the connection


def _listen(host: str, port: int) -> socket.socket:
    try:
        ((family, *_, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        # Python adds the address to some of these reasons.
        reason = (error.strerror or str(error)).partition(" (while")[0]
        raise ValueError(f"Cannot listen at {host}, port {port}: {reason}.") from None


class _ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, but a request's headers must end, and the request be complete in time.

    uvicorn's own patience ends only between two requests.
    """

    _deadline: asyncio.TimerHandle | None = None
    _in_head, _head_bytes = False, 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._wait()
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._close(f"headers of more than {MAX_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        self._stop()
        self._wait()
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        late = f"no complete request in {REQUEST_SECONDS} s"
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._close, late)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self, reason: str) -> None:
        self.logger.info("closed a connection: %s", reason)
        self.transport.close()


class _CompleteRequests:
    """Passes requests on when they are complete, and refuses those that are too large.

    Args:
        inner: The ASGI application that answers them.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        body, size, more = bytearray(), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            if size <= MAX_REQUEST_BYTES:
                body += message["body"]
            else:
                body.clear()  # The rest is read and dropped: a client that still writes hears none.
            more = message["more_body"]
        if size > MAX_REQUEST_BYTES:
            await _refuse(send, 413, f"the request is larger than {MAX_REQUEST_BYTES} bytes.")
            return
        given = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def complete() -> Any:
            return next(given, None) or await receive()

        await self._inner(scope, complete, send)


async def _refuse(send: Any, code: int, sentence: str) -> None:
    contents = orjson.dumps({"error": sentence})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(contents))]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": contents})


# ----------------------------------------------------------------------------- the log


def _limit_logs() -> None:
    limit = _LogLimit()
    for name in ("kserve", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).addFilter(limit)
    # Four lines of timings for each request; /metrics has them too.
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)


class _LogLimit(logging.Filter):
    """Limits the lines of the log; a refused request gets one, not the traceback of KServe's."""

    def __init__(self) -> None:
        super().__init__()
        self._minute, self._lines, self._left_out = 0.0, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        lines = 1
        if isinstance(record.args, tuple):  # The access log has the path, as long as it may be.
            record.args = tuple(a[:200] if isinstance(a, str) else a for a in record.args)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            if isinstance(error, (InvalidInput, ModelNotFound, NotImplementedError)):
                reason = "".join(c if c.isprintable() else " " for c in str(error)[:200])
                record.msg, record.args, record.exc_info = "refused: %s", (reason,), None
                record.levelno, record.levelname = logging.INFO, "INFO"
            else:
                record.exc_text = logging.Formatter().formatException(record.exc_info)[-5000:]
                lines += record.exc_text.count("\n") + 1
        minute = time.monotonic() // 60
        if minute != self._minute:
            left_out, self._minute, self._lines, self._left_out = self._left_out, minute, 0, 0
            if left_out:
                logging.getLogger("kserve").warning("left out %d records", left_out)
        self._lines += lines
        if self._lines > LOG_LINES_A_MINUTE:
            self._left_out += 1
            return False
        return True
