"""Asks `bin/serve` from many clients at once, with bad requests and bombs among the good ones.

    make serving
    python tests/load.py             # 64 clients for 60 seconds
    python tests/load.py --clients 8 --seconds 5

Every answer is compared: a good request must get the model's own probabilities, a bad one a code of
400 to 499. Prints, as JSON, the number of requests and of wrong answers, the times of the answers,
the memory of the server before and after, and the load of the machine: the clients need cores too.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]


class Request:
    """A body, and what is expected of its answer: probabilities, or None where it is refused."""

    def __init__(self, body: bytes, expected: np.ndarray | None) -> None:
        self.body, self.expected = body, expected

    def is_right(self, code: int, answer: bytes) -> bool:
        if self.expected is None:
            return 400 <= code < 500
        if code != 200:
            return False
        found = [row["probabilities"] for row in json.loads(answer)["predictions"]]
        return np.allclose(found, self.expected, atol=1e-5)


def requests_for(signature: Any, draw: random.Random) -> list[Request]:
    """Good and bad requests for an export of digits, in equal numbers."""
    import made_exports
    from tensorflow.io import encode_png

    rng, good = np.random.default_rng(0), []
    for number in range(40):
        images = rng.integers(0, 256, (1 + number % 4, 8, 8, 1), dtype=np.uint8)
        expected = signature(images)["probabilities"].numpy()
        asked = {"instances": images.tolist()}
        if number % 2:
            asked = of_files([encode_png(image).numpy() for image in images])
        good.append(Request(json.dumps(asked).encode(), expected))
    body = good[0].body
    bombs = [made_exports.claimed_png(side) for side in (20_000, 65_535, 2**31 - 1)]
    bad = [json.dumps(of_files([bomb])).encode() for bomb in (*bombs, b"", b"GIF89a", b"no image")]
    bad += [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"instances": 1}',
        b'{"instances": [[1, 2]]}',
        b"\xff",
        b"\x00",
    ]
    bad += [b'{"instances": [{"b64": "!"}]}', b'{"instances": [{}]}', b'{"instances": ["x"]}']
    bad += [b"[" * 10**5, body[:-5], body.replace(b"instances", b"instance")]
    values = [-1, 256, 1.5, None, "x", [], {}, 1e400, True]
    for value in values:
        tree = json.loads(body)
        tree["instances"][0][draw.randrange(8)][draw.randrange(8)] = [value]
        if value is not True:
            bad.append(json.dumps(tree).encode())
    return good + [Request(body, None) for body in bad]


def of_files(files: list[bytes]) -> dict[str, Any]:
    """The request for images in files."""
    rows = [{"b64": base64.b64encode(contents).decode()} for contents in files]
    return {"signature_name": "serving_bytes", "instances": rows}


def client(url: Any, some: list[Request], end: float, seed: int, found: list) -> None:
    """Asks one request after the other until a time is reached; adds (right, seconds)."""
    draw = random.Random(seed)
    connection = None
    while time.monotonic() < end:
        request, start = draw.choice(some), time.monotonic()
        try:
            connection = connection or http.client.HTTPConnection(
                url.hostname, url.port, timeout=30
            )
            connection.request("POST", url.path, request.body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            right = request.is_right(answer.status, answer.read())
            what = None if right else f"{answer.status} for {request.body[:80]!r}"
        except Exception as error:
            what, connection = f"{error!r} for {request.body[:80]!r}", None
        found.append((time.monotonic() - start, what))


def memory(process: int) -> float:
    """Resident memory of a process and its children, in MB."""
    total = 0
    for one in [str(process), *_children(process)]:
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
            total += pages * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


def _children(process: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--python", default=str(ROOT / ".venv-serving" / "bin" / "python"))
    arguments = parser.parse_args()
    import made_exports
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        version = made_exports.of_digits(Path(folder))
        loaded = tf.saved_model.load(str(version))
        signature = loaded.signatures["serving_default"]
        some = requests_for(lambda x: signature(image=tf.constant(x)), random.Random(0))
        log = stack.enter_context(open(Path(folder) / "log", "wb"))
        command = [arguments.python, str(ROOT / "bin" / "serve"), f"--model={version}", "--port=0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        stack.callback(server.wait, 30)
        stack.callback(server.terminate)
        url = urlparse(json.loads(server.stdout.readline())["url"])

        def ask(clients: int, seconds: float) -> list:
            found, end = [], time.monotonic() + seconds
            threads = [
                threading.Thread(target=client, args=(url, some, end, seed, found))
                for seed in range(clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return found

        ask(arguments.clients, arguments.seconds / 6)  # Warm: what is allocated once is allocated.
        before = memory(server.pid)
        found = ask(arguments.clients, arguments.seconds)
        time.sleep(2)
        after = memory(server.pid)
    seconds = np.array([each for each, _ in found])
    wrong = [what for _, what in found if what]
    print(*sorted(set(wrong))[:10], sep="\n", file=sys.stderr)
    print(
        json.dumps(
            {
                "clients": arguments.clients,
                "seconds": arguments.seconds,
                "requests": len(found),
                "wrong": len(wrong),
                **{f"p{q}": round(float(np.quantile(seconds, q / 100)), 3) for q in (50, 99)},
                "slowest": round(float(seconds.max()), 3),
                "memory_before_mb": round(before),
                "memory_after_mb": round(after),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
            }
        )
    )
    return 1 if wrong or abs(after / before - 1) > 0.1 else 0


if __name__ == "__main__":
    sys.exit(main())
