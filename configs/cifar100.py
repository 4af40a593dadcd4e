"""CIFAR-100, long-tailed or step, with ResNet-32: the recipe of the paper's appendix B.

    bin/train --dataset cifar100 --method ldam_drw --imbalance longtail --imbalance_ratio 100

200 epochs; the learning rate is multiplied by 0.01 at epochs 160 and 180. `results/cifar100.json`
has the results of full runs.

    bin/train --dataset cifar100 --method bbn --recipe bbn

The recipe bbn is that of BBN's authors (Zhou et al., 2020, and their code): Nesterov's momentum, a
warm-up from a third of the rate, drops at epochs 120 and 160. Method bbn takes two images a step in
the place of one, so twice the time, by whichever recipe.
"""

from keras_ldam.experiments.config import Config


def recipe(method: str) -> Config:
    return Config(warmup_epochs=5)


def bbn(method: str) -> Config:
    return Config(warmup_epochs=5, warmup_start=1 / 3, nesterov=True, drop_at=(0.6, 0.8))


RECIPES = {"bbn": bbn}
