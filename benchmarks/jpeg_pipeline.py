"""How fast images are read from disk, against PyTorch's DataLoader with Pillow on the same files.

    python benchmarks/jpeg_pipeline.py --torch_python PYTHON --output benchmarks/jpeg_pipeline.json

PYTHON is that of an environment with torch and pillow. Each measurement is a process of its own;
the contestants take turns, and medians are reported. Files are made from the two photographs that
come with scikit-learn: 800x600 pixels, with noise. `torch_pillow` does what torchvision's
transforms do; `torch_pillow_draft` also lets Pillow decode at a fraction of the size, as this
library does and few pipelines do. On a shared machine the processor time per image says more than
the rate; it is that of all epochs. The rate of each first epoch, a warm-up, is not counted.

Measured: images decoded, scaled to 256, cropped to 224 at random, flipped and batched, per second;
the memory after each epoch; the time and memory that the index of 437,513 files takes; and the
training step of ResNet-50 at 8,142 classes, from which the time of a whole run is calculated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCH, WORKERS = 64, 2
TRAIN_IMAGES, CLASSES, EPOCHS = 437_513, 8_142, 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="Python of an environment with torch and pillow")
    parser.add_argument("--output", help="JSON file to write; left out: standard output")
    parser.add_argument("--files", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(MEASUREMENTS[given.measure](Path(given.folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = compare(Path(folder), given)
    text = json.dumps(results, indent=1) + "\n"
    if given.output:
        Path(given.output).write_text(text)
    else:
        print(text)


def compare(folder: Path, given: argparse.Namespace) -> dict:
    """All measurements, one after the other."""
    sys.path.insert(0, str(ROOT))
    from keras_ldam import hardware

    pictures = folder / "pictures"
    bytes_each = make_files(pictures, given.files)
    contestants = {"keras_ldam": sys.executable}
    if given.torch_python:
        contestants |= dict.fromkeys(("torch_pillow", "torch_pillow_draft"), given.torch_python)
    found = {name: [] for name in contestants}
    for turn in range(given.rounds):
        # Who begins changes, so that a slow minute of the machine hits everyone.
        order = list(contestants)[turn % len(contestants) :]
        for name in [*order, *list(contestants)[: turn % len(contestants)]]:
            found[name].append(measure(name, pictures, contestants[name]))
            print(f"round {turn + 1}: {name} {found[name][-1]['per_second']}", file=sys.stderr)
    medians = {
        name: round(statistics.median(rate for run in runs for rate in run["per_second"][1:]), 1)
        for name, runs in found.items()
    }
    results = {
        "hardware": hardware.describe(),
        "versions": hardware.versions(),
        "torch": found.get("torch_pillow", [{}])[0].get("version"),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "files": given.files,
        "mean_bytes": bytes_each,
        "batch": BATCH,
        "workers": WORKERS,
        "images_per_second": {
            name: {
                "median": medians[name],
                "cpu_ms_per_image": statistics.median(run["cpu_ms"] for run in runs),
                "all": [rate for run in runs for rate in run["per_second"][1:]],
            }
            for name, runs in found.items()
        },
        "ratio_to": {
            name: round(medians["keras_ldam"] / rate, 2)
            for name, rate in medians.items()
            if name != "keras_ldam"
        },
        "memory_mb_after_each_epoch": found["keras_ldam"][-1]["memory_mb"],
        "index": measure("index", folder, sys.executable),
        "training_step": measure("step", folder, sys.executable),
    }
    trained = TRAIN_IMAGES * EPOCHS
    results["calculated"] = {
        "days_of_90_epochs_on_this_cpu": round(
            trained / max(results["training_step"]["images_per_second"].values()) / 86400, 1
        ),
        "hours_of_90_epochs_of_reading_on_this_cpu": round(trained / medians["keras_ldam"] / 3600),
    }
    return results


def measure(name, folder, python):
    command = [python, __file__, "--measure", name, "--folder", str(folder)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def make_files(folder: Path, count: int) -> int:
    """Writes JPEG files cut out of photographs; returns their mean size in bytes."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    generator = np.random.default_rng(0)
    total = 0
    for number in range(count):
        path = folder / str(number % 8) / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph = photographs[number % 2]
        width, height = 480, 360
        left = int(generator.integers(0, photograph.width - width + 1))
        top = int(generator.integers(0, photograph.height - height + 1))
        part = photograph.crop((left, top, left + width, top + height))
        pixels = np.asarray(part.resize((800, 600), Image.BICUBIC), dtype=np.float32)
        # Enlarging has smoothed it; a camera's noise brings back as many bytes.
        pixels += generator.normal(0, 4, pixels.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(path, quality=92)
        total += path.stat().st_size
    return total // count


def memory_mb() -> int:
    """Memory of this process that is in RAM now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 10**6


# ----------------------------------------------------------------------------- measurements


def _keras_ldam(folder):
    sys.path.insert(0, str(ROOT))
    from keras_ldam.experiments.config import Config
    from keras_ldam.experiments.datasets import class_folders, images
    from keras_ldam.experiments.datasets import folder as folder_dataset
    from keras_ldam.experiments.datasets.sampling import Batches

    config = Config(dataset="folder", data_dir=str(folder), imbalance="none").resolve()
    classes = class_folders.classes(folder, "image")
    names, _ = folder_dataset._index(folder, classes, config)
    batches = Batches(names, BATCH, seed=0)
    stream = images.stream(batches)
    rates, memory, used = [], [], cpu_seconds()
    for batches.epoch in range(4):
        begun, seen = time.perf_counter(), 0
        for pixels, _ in stream:
            seen += len(pixels)
        rates.append(round(seen / (time.perf_counter() - begun), 1))
        memory.append(memory_mb())
    used = (cpu_seconds() - used) / (len(rates) * len(names)) * 1000
    return {"per_second": rates, "memory_mb": memory, "cpu_ms": round(used, 2)}


def _torch(folder, draft):
    import random

    import numpy as np
    import torch
    from PIL import Image

    class Files(torch.utils.data.Dataset):
        def __init__(self):
            self.paths = sorted(folder.glob("*/*.jpg"))

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            # What torchvision does for Resize(256), RandomCrop(224), RandomHorizontalFlip().
            path = self.paths[index]
            with Image.open(path) as image:
                factor = 256 / min(image.size)
                size = tuple(int(side * factor) for side in image.size)
                if draft:
                    image.draft("RGB", size)
                image = image.convert("RGB").resize(size, Image.BILINEAR)
            left, top = (random.randint(0, side - 224) for side in size)
            image = image.crop((left, top, left + 224, top + 224))
            if random.random() < 0.5:
                image = image.transpose(Image.FLIP_LEFT_RIGHT)
            return torch.from_numpy(np.array(image)), int(path.parent.name)

    used, files = cpu_seconds(), Files()
    loader = torch.utils.data.DataLoader(
        files, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    rates = []
    for _ in range(4):
        begun, seen = time.perf_counter(), 0
        for pixels, _ in loader:
            seen += len(pixels)
        rates.append(round(seen / (time.perf_counter() - begun), 1))
    del loader  # Its workers' time counts once they have ended.
    used = (cpu_seconds() - used) / (len(rates) * len(files)) * 1000
    return {"per_second": rates, "version": torch.__version__, "cpu_ms": round(used, 2)}


def _index(folder):
    """Reads and checks a release with as many files as the real one has: links to a few."""
    import numpy as np

    root = folder / "release"
    sources = sorted((folder / "pictures").glob("*/*.jpg"))
    generator = np.random.default_rng(0)
    chances = 1 / (45 + np.arange(CLASSES))
    labels = generator.choice(CLASSES, TRAIN_IMAGES - CLASSES, p=chances / chances.sum())
    number = 0
    for name, of in (
        ("train2018.json", np.concatenate([np.arange(CLASSES), labels])),
        ("val2018.json", np.repeat(np.arange(CLASSES), 3)),
    ):
        listed, annotations = [], []
        for label in of.tolist():
            place = root / "train_val2018" / "Plantae" / str(label)
            if number < CLASSES:
                place.mkdir(parents=True)
            file = place / f"{number:032x}.jpg"
            os.link(sources[number % len(sources)], file)
            listed.append({"id": number, "file_name": str(file.relative_to(root))})
            annotations.append({"id": number, "image_id": number, "category_id": label})
            number += 1
        categories = [{"id": i, "name": str(i), "supercategory": "Plantae"} for i in range(CLASSES)]
        values = {"images": listed, "annotations": annotations, "categories": categories}
        (root / name).write_text(json.dumps(values))
    # In a process of its own: making the files has used memory that is not to be counted.
    return measure("load", root, sys.executable)


def _load(root):
    sys.path.insert(0, str(ROOT))
    import resource

    from keras_ldam.experiments.config import Config
    from keras_ldam.experiments.datasets import inaturalist2018

    config = Config(dataset="inaturalist2018", data_dir=str(root), imbalance="none").resolve()
    before, begun = memory_mb(), time.perf_counter()
    data = inaturalist2018.load(config)
    return {
        "images": len(data.train) + len(data.test),
        "seconds_to_read_and_check": round(time.perf_counter() - begun, 1),
        "index_mb": round((data.train.examples.nbytes + data.test.examples.nbytes) / 1e6, 1),
        "memory_mb_before": before,
        "memory_mb_after": memory_mb(),
        "memory_mb_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6,
    }


def _step(folder):
    """Training steps of ResNet-50 at full size, on made images."""
    sys.path.insert(0, str(ROOT))
    import resource

    import keras
    import numpy as np

    from keras_ldam.experiments import models
    from keras_ldam.experiments.models.resnet50 import resnet50
    from keras_ldam.experiments.recipes import load_recipe
    from keras_ldam.losses import LOSSES
    from keras_ldam.optimizers import MomentumSGD

    config = load_recipe("inaturalist2018", "ldam_drw").resolve()
    batch = 32
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, batch)
    counts = np.maximum(2, 1000 // (1 + np.arange(CLASSES) // 45))
    rates = {}
    for precision in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(precision)
        model = resnet50(head=models.head(config, CLASSES))
        model.compile(
            MomentumSGD(0.1, momentum=0.9, coupled_weight_decay=1e-4),
            loss=LOSSES[config.loss].make(counts, dataclasses.asdict(config)),
        )
        seconds = []
        for _ in range(6):
            begun = time.perf_counter()
            model.train_on_batch(pixels, labels)
            seconds.append(time.perf_counter() - begun)
        rates[precision] = round(batch / statistics.median(seconds[2:]), 2)
    return {
        "batch": batch,
        "images_per_second": rates,
        "parameters": model.count_params(),
        "memory_mb_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6,
    }


MEASUREMENTS = {
    "keras_ldam": _keras_ldam,
    "torch_pillow": lambda folder: _torch(folder, draft=False),
    "torch_pillow_draft": lambda folder: _torch(folder, draft=True),
    "index": _index,
    "load": _load,
    "step": _step,
}

if __name__ == "__main__":
    main()
