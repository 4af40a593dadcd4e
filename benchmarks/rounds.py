"""Contestants that take turns, each in a process of its own; what the benchmarks share.

A benchmark starts itself anew for each `Process`. The child prepares its contestants, warms them
up, says so on a line of JSON, and then answers each name that it reads with one measurement.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""For a `Process` whose OpenMP threads should sleep, not spin, while they wait for each other."""
ROUNDS = 5
WARM = 3
"""Steps of a turn that are not counted: what the others have driven out of memory comes back."""


class Process:
    """A process that holds contestants, and lets one run when it is asked to."""

    def __init__(self, python, program, *arguments, environment=None):
        self.child = subprocess.Popen(
            [python, program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**ENVIRONMENT, **(environment or {})},
        )

    def ask(self, name):
        self.child.stdin.write(name + "\n")
        self.child.stdin.flush()
        return self.read()

    def read(self):
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.child.args)} has ended; run it to see why.")
        return json.loads(line)

    def end(self):
        self.child.stdin.close()
        self.child.wait()


def run(python, program, *arguments):
    """The last line that a program prints."""
    done = subprocess.run(
        [python, program, *arguments], capture_output=True, text=True, env=ENVIRONMENT
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1]


def serve(prepared) -> None:
    """Warms up, says that it is ready, then runs whatever it is asked for."""
    about, contestants = prepared
    for contestant in contestants.values():
        contestant()
        contestant()
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(json.dumps(contestants[line.strip()]()), flush=True)


def take_turns(processes, names, rounds):
    """Lets each contestant run once a round; who begins changes.

    Args:
        processes: Each `Process` by its name.
        names: Pairs of a contestant and the name of its process.
        rounds: How many rounds.

    Returns:
        What each was measured at, by name, round by round; what each process said about itself;
        and the load averages before the first round and after each.
    """
    about = {name: process.read() for name, process in processes.items()}  # They are ready.
    print("ready: the rounds begin", file=sys.stderr, flush=True)
    found = {name: [] for name, _ in names}
    load = [os.getloadavg()[0]]
    for turn in range(rounds):
        begin = turn * len(names) // rounds
        for name, process in names[begin:] + names[:begin]:
            found[name].append(processes[process].ask(name))
        load.append(os.getloadavg()[0])
        print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    print("done: the rounds are over", file=sys.stderr, flush=True)
    for process in processes.values():
        process.end()
    return found, about, [round(value, 1) for value in load]


def command(program: str, rounds: int) -> str:
    """What has to be typed to measure the same again."""
    more = "" if rounds == ROUNDS else f" --rounds {rounds}"
    return f"python {program} --torch_python PYTHON{more}"


def spread(values: list[float]) -> dict:
    return {
        "median": round(statistics.median(values), 3),
        "smallest": round(min(values), 3),
        "largest": round(max(values), 3),
    }


def fitted(model, feed, batch_size, callbacks=()):
    """Examples a second of an epoch of `fit`, without its first steps; see `rate`.

    Args:
        model: A compiled model.
        feed: What `fit` takes.
        batch_size: Examples in a batch.
        callbacks: Further callbacks of `fit`.
    """
    import keras

    def turn():
        ends = []
        clock = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
        )
        model.fit(feed, verbose=0, shuffle=False, callbacks=[clock, *callbacks])
        return rate(ends, batch_size)

    return turn


def rate(ends, batch_size):
    """Examples a second from the end of step `WARM` on, where each step ended at `ends`."""
    return batch_size * (len(ends) - WARM) / (ends[-1] - ends[WARM - 1])


def cached_batch(examples, labels, steps):
    import tensorflow as tf

    return untuned(tf.data.Dataset.from_tensors((examples, labels)).repeat(steps))


def untuned(dataset):
    # With autotuning a short epoch ends late.
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
