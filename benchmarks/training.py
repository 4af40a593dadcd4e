"""How fast ResNet-32 trains, against PyTorch and plain Keras, and what the loss costs.

    python benchmarks/training.py --torch_python PYTHON

PYTHON is that of an environment with torch; without it PyTorch is left out. Writes
`benchmarks/training.json`, and `benchmarks/README.md` from it and its like (see `readme.py`).

Every contestant trains the same network on batches of 128 images of 32x32 pixels, ten classes,
with momentum and weight decay. They stay in processes of their own, have compiled and warmed up
before the first round, and take turns in an order that rotates, so that a slow minute of the
machine hits everyone. Each turn gives one rate, without its first steps; medians are reported, with
the smallest and largest. Ours augments its images in the step; the others are given a batch that is
ready, which favours them. PyTorch works channels last. Where the cores are divided, two replicas
train on half of a batch each and have half of the cores each (`--strategy cores`, and PyTorch's
DistributedDataParallel over two processes), and batch normalisation is by each half. The losses are
measured in the same way, forward and backward, on made scores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import readme
from rounds import (
    ROUNDS,
    WARM,
    Process,
    cached_batch,
    command,
    fitted,
    rate,
    run,
    serve,
    spread,
    take_turns,
    untuned,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
BATCH, STEPS, CLASSES = 128, 11, 10
PIPELINE_STEPS = 31
"""More than the pipeline reads ahead."""
COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
LOSS_SIZES = {10: 128, 1000: 256, 8142: 256, 100_000: 64}
"""Batch for each number of classes."""

CONTESTANTS = {
    "ours_float32": "ours",
    "ours_bfloat16": "ours",
    "ours_float32_xla": "ours",
    "ours_float32_cross_entropy": "ours",
    "ours_float32_from_pipeline": "ours",
    "convolutions_float32": "ours",
    "ours_cores_float32": "cores",
    "ours_cores_bfloat16": "cores",
    "ours_cores_float32_xla": "cores",
    "keras_float32": "keras",
    "keras_bfloat16": "keras",
    "torch_float32": "torch",
    "torch_bfloat16": "torch",
    "torch_cores_float32": "torch_cores",
    "torch_cores_bfloat16": "torch_cores",
}
"""Which process each contestant lives in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="Python of an environment with torch")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--process", help=argparse.SUPPRESS)
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.meeting:
        torch_second(given.meeting)
    if given.process:
        serve(PROCESSES[given.process]())
        return
    if given.memory:
        print(json.dumps(memory_of_loss(given.memory[0], int(given.memory[1]))))
        return
    (HERE / "training.json").write_text(json.dumps(measure(given), indent=1) + "\n")
    readme.write()


# ----------------------------------------------------------------------------- the rounds


def measure(given: argparse.Namespace) -> dict:
    """All measurements."""
    from keras_ldam import hardware

    pythons = dict.fromkeys(("ours", "cores", "keras", "losses"), sys.executable)
    if given.torch_python:
        pythons["torch"] = pythons["torch_cores"] = given.torch_python
    processes = {
        name: Process(python, __file__, "--process", name) for name, python in pythons.items()
    }
    names = [(n, p) for n, p in CONTESTANTS.items() if p in processes]
    names += [(f"{loss}_{k}", "losses") for k in LOSS_SIZES for loss in LOSSES]
    found, about, load = take_turns(processes, names, given.rounds)
    memory = {
        f"{loss}_{k}": json.loads(run(sys.executable, __file__, "--memory", loss, str(k)))
        for k in LOSS_SIZES
        for loss in LOSSES
    }
    rates = {n: spread(found[n]) for n in CONTESTANTS if n in found}
    losses = {
        str(k): {
            loss: {**spread(found[f"{loss}_{k}"]), "peak_mb": memory[f"{loss}_{k}"]}
            for loss in LOSSES
        }
        for k in LOSS_SIZES
    }
    return {
        "command": command("benchmarks/training.py", given.rounds),
        "images_per_second": rates,
        "loss_milliseconds": losses,
        "loss_batches": {str(k): batch for k, batch in LOSS_SIZES.items()},
        "ratios": ratios({n: v["median"] for n, v in rates.items()}, losses),
        "rounds": given.rounds,
        "steps_a_turn": STEPS - WARM,
        "batch": BATCH,
        "load_average": load,
        "hardware": hardware.describe(),
        "versions": {**hardware.versions(), **about.get("torch", {})},
    }


def ratios(rates: dict, losses: dict) -> dict:
    """The comparisons that the table is about, as far as there is something to compare."""
    pairs = {
        "float32_to_torch": ("ours_float32", "torch_float32"),
        "bfloat16_to_torch": ("ours_bfloat16", "torch_bfloat16"),
        "float32_to_keras": ("ours_float32", "keras_float32"),
        "convolutions_to_torch": ("convolutions_float32", "torch_float32"),
        "convolutions_to_keras": ("convolutions_float32", "keras_float32"),
        "bfloat16_to_keras": ("ours_bfloat16", "keras_bfloat16"),
        "bfloat16_to_float32": ("ours_bfloat16", "ours_float32"),
        "xla_to_none": ("ours_float32_xla", "ours_float32"),
        "ldam_to_cross_entropy": ("ours_float32", "ours_float32_cross_entropy"),
        "pipeline_to_cached_batch": ("ours_float32_from_pipeline", "ours_float32"),
        "cores_to_one_device": ("ours_cores_float32", "ours_float32"),
        "cores_to_one_device_bfloat16": ("ours_cores_bfloat16", "ours_bfloat16"),
        "cores_to_torch": ("ours_cores_float32", "torch_float32"),
        "cores_to_torch_bfloat16": ("ours_cores_bfloat16", "torch_bfloat16"),
        "cores_to_torch_cores": ("ours_cores_float32", "torch_cores_float32"),
        "cores_to_torch_cores_bfloat16": ("ours_cores_bfloat16", "torch_cores_bfloat16"),
        "cores_to_keras": ("ours_cores_float32", "keras_float32"),
        "cores_to_keras_bfloat16": ("ours_cores_bfloat16", "keras_bfloat16"),
    }
    found = {n: round(rates[a] / rates[b], 2) for n, (a, b) in pairs.items() if b in rates}
    for k, of in losses.items():
        for what in ("median", "peak_mb"):
            ratio = of["ldam"][what] / max(of["keras_cross_entropy"][what], 1e-9)
            found[f"ldam_to_cross_entropy_{k}_{'time' if what == 'median' else 'memory'}"] = round(
                ratio, 2
            )
    more = losses["10"]["ldam"]["median"] - losses["10"]["keras_cross_entropy"]["median"]
    found["ldam_more_of_a_step_percent"] = round(
        100 * more / (1000 * BATCH / rates["ours_float32"]), 2
    )
    return found


# ----------------------------------------------------------------------------- contestants


def made_images(count):
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, generator.integers(0, CLASSES, count).astype(np.int32)


def our_model(model_class=None, *, precision="float32", loss="LDAM", jit=False):
    import keras

    import keras_ldam
    from keras_ldam.experiments.models.resnet32 import resnet32
    from keras_ldam.optimizers import MomentumSGD

    head = (
        keras_ldam.CosineDense(CLASSES)
        if loss == "LDAM"
        else keras.layers.Dense(CLASSES, dtype="float32")
    )
    model = resnet32(head=head, dtype=precision)
    if model_class is not None:
        model = model_class(model.inputs, model.outputs)
    model.compile(
        MomentumSGD(0.1, momentum=0.9, coupled_weight_decay=2e-4),
        loss=getattr(keras_ldam, loss)(COUNTS),
        metrics=["sparse_categorical_accuracy"],
        jit_compile=jit,
    )
    return model


def ours():
    import numpy as np

    from keras_ldam.experiments import feeding
    from keras_ldam.experiments.datasets.data import Split
    from keras_ldam.experiments.datasets.sampling import Batches, EpochClock

    batch = cached_batch(*made_images(BATCH), STEPS)
    images, labels = made_images(50_000)
    order = np.random.default_rng(1).permutation(len(labels))[: BATCH * PIPELINE_STEPS]
    batches = Batches(Split(images[order], labels[order]), BATCH, seed=0)
    model = our_model()
    return {}, {
        "ours_float32": fitted(model, batch, BATCH),
        "ours_bfloat16": fitted(our_model(precision="mixed_bfloat16"), batch, BATCH),
        "ours_float32_xla": fitted(our_model(jit=True), batch, BATCH),
        "ours_float32_cross_entropy": fitted(our_model(loss="CrossEntropy"), batch, BATCH),
        "ours_float32_from_pipeline": fitted(
            model, feeding.feed(batches), BATCH, callbacks=[EpochClock(batches)]
        ),
        "convolutions_float32": convolutions(images[:BATCH]),
    }


def convolutions(images):
    """ResNet-32's convolutions with their gradients, and nothing between them."""
    import tensorflow as tf

    generator = tf.random.Generator.from_seed(0)
    filters, strides, before = [], [], 3
    for stage, size in enumerate((16, 32, 64)):
        for number in range(11 if stage == 0 else 10):
            spread = (2 / (9 * before)) ** 0.5  # The values stay as large as they are.
            filters.append(tf.Variable(spread * generator.normal((3, 3, before, size))))
            strides.append(2 if stage and not number else 1)
            before = size
    x = tf.constant(images, tf.float32) / 255

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            y = x
            for kernel, stride in zip(filters, strides, strict=True):
                y = tf.nn.conv2d(y, kernel, stride, "SAME")
            total = tf.reduce_sum(y)
        # A number of each gradient, so that none is left out.
        return [tf.reshape(one, (-1,))[0] for one in tape.gradient(total, filters)]

    def turn():
        ends = []
        for _ in range(STEPS):
            step()[0].numpy()
            ends.append(time.perf_counter())
        return rate(ends, BATCH)

    return turn


def over_cores():
    """`--strategy cores`: two replicas, each with half of the cores and of the batch."""
    import tensorflow as tf

    from keras_ldam import distribution

    strategy = distribution.make_strategy("cores", replicas=2)
    images, labels = made_images(BATCH)
    shares = (
        tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH // 2).cache().repeat(STEPS)
    )
    feed = distribution.distribute(strategy, untuned(shares), STEPS)
    chosen = {
        "ours_cores_float32": {},
        "ours_cores_bfloat16": {"precision": "mixed_bfloat16"},
        "ours_cores_float32_xla": {"jit": True},
    }
    with strategy.scope():
        models = {n: our_model(distribution.ReplicatedModel, **how) for n, how in chosen.items()}
    return {}, {name: fitted(model, feed, BATCH) for name, model in models.items()}


def plain_keras():
    """ResNet-32 from Keras' own layers, as one writes it."""
    import keras
    from keras import layers

    def convolution(x, filters, strides=1):
        if strides > 1:
            x = layers.ZeroPadding2D(1)(x)
        padding = "same" if strides == 1 else "valid"
        x = layers.Conv2D(filters, 3, strides, padding, use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    def model():
        images = keras.Input((32, 32, 3))
        x = layers.ReLU()(convolution(images, 16))
        for stage, filters in enumerate((16, 32, 64)):
            for block in range(5):
                strides = 2 if stage and not block else 1
                shortcut = x
                if strides > 1:
                    side = filters // 4
                    shortcut = keras.ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (side, side)))
                x = convolution(layers.ReLU()(convolution(x, filters, strides)), filters)
                x = layers.ReLU()(layers.Add()([x, shortcut]))
        scores = layers.Dense(CLASSES, dtype="float32")(layers.GlobalAveragePooling2D()(x))
        built = keras.Model(images, scores)
        built.compile(
            keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=2e-4),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        return built

    images, labels = made_images(BATCH)
    batch = cached_batch(images.astype("float32") / 255, labels, STEPS)
    contestants = {"keras_float32": fitted(model(), batch, BATCH)}
    keras.config.set_dtype_policy("mixed_bfloat16")
    contestants["keras_bfloat16"] = fitted(model(), batch, BATCH)
    return {}, contestants


def torch_model():
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, before, filters, stride):
            super().__init__()
            self.first = nn.Conv2d(before, filters, 3, stride, 1, bias=False)
            self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(filters) for _ in range(2))
            self.stride, self.side = stride, (filters - before) // 2

        def forward(self, x):
            y = functional.relu(self.norms[0](self.first(x)))
            y = self.norms[1](self.second(y))
            if self.stride > 1:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))
            return functional.relu(y + x)

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            blocks, before = [], 16
            for stage, filters in enumerate((16, 32, 64)):
                for block in range(5):
                    blocks.append(Block(before, filters, 2 if stage and not block else 1))
                    before = filters
            self.blocks = nn.Sequential(*blocks)
            self.vectors = nn.Parameter(torch.randn(64, CLASSES))

        def forward(self, x):
            x = self.blocks(functional.relu(self.norm(self.stem(x)))).mean((2, 3)).float()
            with torch.autocast("cpu", enabled=False):
                return functional.normalize(x) @ functional.normalize(self.vectors, dim=0)

    return ResNet().to(memory_format=torch.channels_last)


def pytorch():
    import torch

    about = {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    turns = torch_turns(torch_model, BATCH)
    return about, {f"torch_{precision}": turn for precision, turn in turns.items()}


def torch_over_cores():
    """PyTorch's data parallelism over two processes, each with half of the cores and the batch."""
    import torch
    from torch import distributed

    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        # It ends by an error when this process, and with it the connection, is gone.
        second = [sys.executable, __file__, "--meeting", meeting]
        subprocess.Popen(second, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        turns = torch_half(0, meeting)

    def led(number, turn):
        def both():
            distributed.broadcast(torch.tensor([number]), 0)
            return turn()

        return both

    about = {"torch_cores_threads": torch.get_num_threads()}
    return about, {f"torch_cores_{n}": led(i, turn) for i, (n, turn) in enumerate(turns.items())}


def torch_half(rank, meeting):
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    patience = datetime.timedelta(days=1)
    place = f"file://{meeting}"
    distributed.init_process_group(
        "gloo", init_method=place, rank=rank, world_size=2, timeout=patience
    )

    def model():
        return DistributedDataParallel(torch_model(), broadcast_buffers=False)

    turns = torch_turns(model, BATCH // 2)
    return {precision: scaled(turn, 2) for precision, turn in turns.items()}


def scaled(turn, factor):
    return lambda: factor * turn()


def torch_second(meeting):
    """Does with the other half whatever the first process begins."""
    import torch
    from torch import distributed

    turns = list(torch_half(1, meeting).values())
    while True:
        number = torch.zeros(1, dtype=torch.int64)
        distributed.broadcast(number, 0)
        turns[number.item()]()


def torch_turns(make_model, batch):
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    margins = torch.tensor(COUNTS, dtype=torch.float32) ** -0.25
    margins *= 0.5 / margins.max()
    weights = torch.ones(CLASSES)
    images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,))

    def contestant(bfloat16):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)

        def turn():
            ends = []
            for _ in range(STEPS):
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    scores = model(images)
                lowered = scores - functional.one_hot(labels, CLASSES) * margins
                loss = functional.cross_entropy(30 * lowered, labels, weight=weights)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                ends.append(time.perf_counter())
            return rate(ends, batch)

        return turn

    return {"float32": contestant(False), "bfloat16": contestant(True)}


# ----------------------------------------------------------------------------- the loss alone

LOSSES = ("keras_cross_entropy", "cross_entropy", "ldam")


def loss_step(name, num_classes):
    """A compiled forward and backward pass."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_ldam

    counts = np.maximum(2, 1000 // (1 + np.arange(num_classes)))
    loss = {
        "keras_cross_entropy": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "cross_entropy": lambda: keras_ldam.CrossEntropy(counts),
        "ldam": lambda: keras_ldam.LDAM(counts),
    }[name]()

    @tf.function
    def step(labels, scores):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            value = loss(labels, scores)
        return value, tape.gradient(value, scores)

    return step


def losses():
    import numpy as np
    import tensorflow as tf

    contestants = {}
    generator = np.random.default_rng(0)
    for k, batch in LOSS_SIZES.items():
        scores = tf.constant(generator.uniform(-1, 1, (batch, k)).astype("float32"))
        labels = tf.constant(generator.integers(0, k, batch).astype("int32"))
        for name in LOSSES:
            step = loss_step(name, k)

            def turn(step=step, labels=labels, scores=scores):
                times = []
                for _ in range(9):
                    begun = time.perf_counter()
                    step(labels, scores)
                    times.append(time.perf_counter() - begun)
                return 1000 * statistics.median(times)

            contestants[f"{name}_{k}"] = turn
    return {}, contestants


def memory_of_loss(name, num_classes):
    """MB that a pass needs at its peak beyond its inputs; in a process of its own."""
    import resource

    import tensorflow as tf

    # Enough scores that everything else is small beside them.
    batch = max(1, 40_000_000 // num_classes)
    step = loss_step(name, num_classes)
    labels, scores = tf.zeros([batch], tf.int32), tf.zeros([batch, num_classes])
    step(labels[:2], scores[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(labels, scores)
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6, 1)


PROCESSES = {
    "ours": ours,
    "cores": over_cores,
    "keras": plain_keras,
    "torch": pytorch,
    "torch_cores": torch_over_cores,
    "losses": losses,
}

if __name__ == "__main__":
    main()
