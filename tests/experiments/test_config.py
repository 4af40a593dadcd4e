"""The typed config: derived fields, ranges, and that what is refused is named."""

import ast
import dataclasses
from pathlib import Path

import pytest

from keras_ldam.experiments.config import DATASETS, METHODS, Config, load_recipe

ROOT = Path(__file__).parent.parent


def test_loss_and_rule_come_from_the_method_unless_they_are_given():
    config = Config(method="ldam_drw").resolve()
    assert (config.loss, config.rule) == ("ldam", "drw")
    config = Config(method="ldam_drw", rule="cb_rs").resolve()
    assert (config.loss, config.rule) == ("ldam", "cb_rs")


@pytest.mark.parametrize(("epochs", "drops"), [(200, (160, 180)), (50, (40, 45)), (90, (72, 81))])
def test_drops_and_the_deferred_rule_follow_the_number_of_epochs(epochs, drops):
    config = Config(epochs=epochs).resolve()
    assert config.drop_epochs == drops
    assert config.start_epoch == drops[0]
    assert Config(epochs=epochs, start_drop=2).resolve().start_epoch == drops[1]
    assert Config(epochs=epochs, start_drop=3).resolve().start_epoch == drops[1]
    assert Config(epochs=epochs, start_drop=2, start_epoch=7).resolve().start_epoch == 7


@pytest.mark.parametrize(
    ("method", "balancing"),
    [
        ("erm", "none"),
        ("rs", ("sample", "inverse")),
        ("cb_rs", ("sample", "effective")),
        ("rw", ("weight", "inverse")),
        ("cb_rw", ("weight", "effective")),
        ("ldam_drw", ("weight", "effective")),
        ("ldam_hg_drs", ("sample", "effective")),
    ],
)
def test_each_rule_balances_as_its_name_says(method, balancing):
    config = Config(method=method).resolve()
    assert config.balancing == balancing or config.balancing[0] == balancing
    assert config.deferred == method.endswith(("drw", "drs"))


def test_a_resolved_config_comes_back_from_json():
    config = Config(method="m_drw", drop_at=(0.5,), epochs=10).resolve()
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "mnist"}, "unknown dataset 'mnist'; known: digits"),
        ({"method": "magic"}, "unknown method 'magic'; known: erm"),
        ({"loss": "magic"}, "unknown loss 'magic'; known: cross_entropy"),
        ({"rule": "magic"}, "unknown rule 'magic'; known: none"),
        ({"epochs": 0}, "epochs must be from 1"),
        ({"epochs": 2.5}, "epochs must be of type int"),
        ({"seed": True}, "seed must be of type int"),
        ({"max_margin": 3.0}, "max_margin must be from 0 to 2"),
        ({"scale": float("nan")}, "scale must be from"),
        ({"imbalance_ratio": 0.5}, "imbalance_ratio must be from 1"),
        ({"drop_at": (0.9, 0.8)}, "drop_at must rise"),
        ({"drop_at": (1.5,)}, "drop_at must be from 0 to 1"),
        ({"start_epoch": 200}, "start_epoch=200, but training ends after epochs=200"),
        ({"drop_at": ()}, "training ends after"),
        ({"warmup_epochs": 200}, "leaves nothing"),
        ({"precision": "mixed_float16", "strategy": "mirrored"}, "not work with strategy mirrored"),
    ],
)
def test_a_config_that_cannot_be_gets_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes).resolve()


def test_every_field_has_help_and_a_default_in_its_range():
    for field in dataclasses.fields(Config):
        assert field.metadata["help"]
    Config().resolve()


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_recipe_resolves_for_every_method_and_says_how_to_run_it(dataset):
    for method in METHODS:
        config = load_recipe(dataset, method).resolve()
        assert (config.dataset, config.method) == (dataset, method)
    source = (ROOT / "configs" / f"{dataset}.py").read_text()
    assert f"bin/train --dataset {dataset}" in ast.get_docstring(ast.parse(source))


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match="known: digits, imdb"):
        load_recipe("mnist", "erm")
    with pytest.raises(ValueError, match="known: erm, rs"):
        load_recipe("digits", "magic")
