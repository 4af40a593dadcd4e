"""How fast bin/predict answers, against Keras' `model.predict` with the same model.

    python benchmarks/prediction.py --output benchmarks/prediction.json

`bin/predict` is started once and asked through its pipes, as a user asks it: it reads lines,
tokenizes texts or reads and decodes files, and writes JSON with the probability of every class.
`model.predict` has the easier task: its input lies ready in memory, as word ids or pixels, and its
output stays there. Both have the same batch size, take turns, and rounds go alternately first;
medians are reported. `with_preparation` is `model.predict` with the tokenizing or decoding counted.

The models are a biLSTM that reads 200 words and the ResNet-32 of CIFAR-10, untrained, for which
arithmetic takes as long. Texts are of random words, as long as reviews are; images are PNG files of
noise, the slowest to decode.

Start-up is the time from starting bin/predict to its first answer; `import_tensorflow` is the part
of it that `import tensorflow` takes in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BATCH = 64
WORDS, TOKENS = 20_000, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="JSON file to write; left out: standard output")
    parser.add_argument("--texts", type=int, default=768)
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    from keras_ldam import hardware

    results = {
        "hardware": hardware.describe(),
        "versions": hardware.versions(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "batch": BATCH,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (("texts", texts), ("images", images)):
            task = make(Path(folder) / name, getattr(given, name))
            results[name] = compare(name, task, given.rounds)
    text = json.dumps(results, indent=1) + "\n"
    if given.output:
        Path(given.output).write_text(text)
    else:
        print(text)


class Task:
    """A model as Keras and as an export has it, and inputs for both."""

    def __init__(self, model, exported, lines, ready, prepare):
        self.model, self.exported, self.lines = model, exported, lines
        self.ready, self.prepare = ready, prepare


def texts(folder: Path, number: int) -> Task:
    """A biLSTM of the size of IMDB's, of 200 words, and texts as long as IMDB's reviews."""
    import keras

    import keras_ldam
    from keras_ldam.experiments import text
    from keras_ldam.experiments.models.bilstm import bilstm
    from keras_ldam.experiments.recipes import load_recipe

    config = load_recipe("imdb", "erm").resolve()
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(WORDS)]
    tokenizer = text.Tokenizer(vocabulary, TOKENS)
    model = bilstm(
        head=keras.layers.Dense(2),
        vocabulary_size=WORDS + 2,
        units=config.units,
        word_dropout=config.dropout,
        layer_dropout=config.dropout,
        head_dropout=config.head_dropout,
        embedding=rng.normal(size=(WORDS + 2, config.embedding_dim)).astype(np.float32),
    )
    exported = keras_ldam.export_saved_model(
        model, folder / "export", class_names=["negative", "positive"], tokenizer=tokenizer
    )
    # About as IMDB's reviews: half of them have fewer than 174 words, a third more than 240.
    lengths = np.clip(rng.lognormal(np.log(174), 0.7, number), 10, 2000).astype(int)
    lines = [" ".join(rng.choice(vocabulary, n)).encode() for n in lengths]

    def prepare():
        ids = np.zeros([number, TOKENS], np.int32)
        for row, known in zip(ids, tokenizer.encode(lines), strict=True):
            row[: len(known)] = known
        return ids

    return Task(model, exported, lines, prepare(), prepare)


def images(folder: Path, number: int) -> Task:
    """The ResNet-32 of the CIFAR-10 recipe, and PNG files of 32 by 32 pixels."""
    import keras
    import tensorflow as tf

    import keras_ldam
    from keras_ldam.experiments.models.resnet32 import resnet32

    # Small weights, or an untrained network would be sure of one class whatever it sees.
    small = keras.initializers.RandomNormal(stddev=1e-3, seed=0)
    model = resnet32(head=keras.layers.Dense(10, kernel_initializer=small), seed=0)
    exported = keras_ldam.export_saved_model(
        model, folder / "export", class_names=[str(j) for j in range(10)]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    paths = [folder / f"{i}.png" for i in range(number)]
    for path, image in zip(paths, pixels, strict=True):
        path.write_bytes(tf.io.encode_png(image).numpy())

    def prepare():
        return np.stack([tf.io.decode_png(path.read_bytes()).numpy() for path in paths])

    return Task(model, exported, [str(path).encode() for path in paths], pixels, prepare)


def compare(name: str, task: Task, rounds: int) -> dict:
    """Rates and start-up times of one task."""
    program, first = start(task)
    contestants = {
        "bin_predict": lambda: ask(program, task.lines),
        "model_predict": lambda: predict(task.model, task.ready),
        "with_preparation": lambda: predict(task.model, task.prepare()),
    }
    answers = [contestant() for contestant in contestants.values()]  # A warm-up, and a check.
    scores = np.asarray([answer["probabilities"] for answer in answers[0]])
    difference = float(np.abs(scores - softmax(answers[1])).max())
    if difference > 1e-5:
        raise RuntimeError(f"{name}: bin/predict and model.predict differ by {difference}.")
    seconds = {contestant: [] for contestant in contestants}
    for turn in range(rounds):
        order = list(contestants)
        for contestant in order if turn % 2 == 0 else reversed(order):
            begun = time.perf_counter()
            contestants[contestant]()
            seconds[contestant].append(time.perf_counter() - begun)
            rate = len(task.lines) / seconds[contestant][-1]
            print(f"{name}, round {turn + 1}: {contestant} {rate:.1f}/s", file=sys.stderr)
    finish(program)
    starts = [first]
    imports = []
    for _ in range(2):
        imports.append(import_tensorflow())
        program, took = start(task)
        finish(program)
        starts.append(took)
    rates = {
        contestant: {
            "median": round(len(task.lines) / statistics.median(times), 1),
            "all": [round(len(task.lines) / t, 1) for t in times],
        }
        for contestant, times in seconds.items()
    }
    own = rates["bin_predict"]["median"]
    return {
        "number": len(task.lines),
        "per_second": rates,
        "bin_predict_to_model_predict": round(own / rates["model_predict"]["median"], 3),
        "bin_predict_to_with_preparation": round(own / rates["with_preparation"]["median"], 3),
        "largest_difference_of_probabilities": difference,
        "start_up_seconds": {
            "bin_predict": round(statistics.median(starts), 2),
            "all": [round(t, 2) for t in starts],
            "import_tensorflow": round(statistics.median(imports), 2),
        },
    }


def predict(model, inputs) -> np.ndarray:
    """Scores of all inputs."""
    return model.predict(inputs, batch_size=BATCH, verbose=0)


def start(task: Task) -> tuple[subprocess.Popen, float]:
    """Starts bin/predict; the seconds until its first answer."""
    begun = time.perf_counter()
    program = subprocess.Popen(
        [sys.executable, ROOT / "bin" / "predict", "--model", task.exported],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    ask(program, task.lines[:1])
    return program, time.perf_counter() - begun


def ask(program: subprocess.Popen, lines: list[bytes]) -> list[dict]:
    """Writes lines and reads as many answers."""

    def write():
        program.stdin.write(b"\n".join(lines) + b"\n")
        program.stdin.flush()

    writer = threading.Thread(target=write)
    writer.start()
    answers = [program.stdout.readline() for _ in lines]
    writer.join()
    return [json.loads(answer) for answer in answers]


def finish(program: subprocess.Popen) -> None:
    """Ends bin/predict, as the end of its input does."""
    program.stdin.close()
    program.wait()
    program.stdout.close()


def import_tensorflow() -> float:
    """Seconds that a process takes which does nothing else."""
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import tensorflow"], check=True, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - begun


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


if __name__ == "__main__":
    main()
