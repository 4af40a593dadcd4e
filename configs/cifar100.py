"""CIFAR-100, long-tailed or step, with ResNet-32: the recipe of the paper's appendix B.

    bin/train --dataset cifar100 --method ldam_drw --imbalance longtail --imbalance_ratio 100

200 epochs; the learning rate is multiplied by 0.01 at epochs 160 and 180. `results/cifar100.json`
has the results of full runs.

    bin/train --dataset cifar100 --method bbn --recipe bbn

    bin/train --dataset cifar100 --method ldam_drw --recipe strong

    bin/train --dataset cifar100 --method ldam_drw --recipe fast

The recipes are those of `configs/cifar10.py`, which says where they come from.
"""

from pathlib import Path

from keras_ldam.experiments.recipes import load_module

_cifar10 = load_module(Path(__file__).with_name("cifar10.py"))
recipe, RECIPES = _cifar10.recipe, _cifar10.RECIPES
