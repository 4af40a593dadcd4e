"""CIFAR-10, long-tailed or step, with ResNet-32: the recipe of the paper's appendix B.

    bin/train --dataset cifar10 --method ldam_drw --imbalance longtail --imbalance_ratio 100

200 epochs; the learning rate is multiplied by 0.01 at epochs 160 and 180. `results/cifar10.json`
has the results of full runs.

    bin/train --dataset cifar10 --method bbn --recipe bbn

The recipe bbn is that of BBN's authors (Zhou et al., 2020, and their code): Nesterov's momentum, a
warm-up from a third of the rate, drops at epochs 120 and 160. With any recipe,
method bbn takes two images a step, and about twice the time.

    bin/train --dataset cifar10 --method ldam_drw --recipe strong

The recipe strong adds AutoAugment, cutout, a cosine and more weight decay to the published recipe,
and has smaller margins, for 1% more time, with the values of the papers (Cubuk et al., 2019;
DeVries and Taylor, 2017; Son et al., 2025). AutoAugment and cutout were chosen with the network of
the recipe fast, the margins with ResNet-32 after 60 epochs, on training images that the long tail
leaves out (`results/tuning/cifar10_ablation.json`); `results/strong` has a full run.

    bin/train --dataset cifar10 --method ldam_drw --recipe fast --strategy cores \
        --precision mixed_bfloat16

The recipe fast takes minutes in place of hours, with the small network whitened_cnn, which averages
each test image with its mirror image. Its values were chosen on training images that the long
tail leaves out. Train in bfloat16 only on a processor that has it.
"""

from keras_ldam.experiments.config import Config


def recipe(method: str) -> Config:
    return Config(warmup_epochs=5)


def bbn(method: str) -> Config:
    return Config(warmup_epochs=5, warmup_start=1 / 3, nesterov=True, drop_at=(0.6, 0.8))


def strong(method: str) -> Config:
    return Config(
        max_margin=0.1,
        warmup_epochs=5,
        decay="cosine",
        weight_decay=5e-4,
        augment="autoaugment",
        cutout=16,
    )


def fast(method: str) -> Config:
    return Config(
        network="whitened_cnn",
        epochs=40,
        batch_size=256,
        learning_rate=0.15,
        momentum=0.85,
        nesterov=True,
        weight_decay=5e-4,
        warmup_epochs=5,
        decay="cosine",
    )


RECIPES = {"bbn": bbn, "strong": strong, "fast": fast}
