"""The typed config and its recipes: derived fields, ranges, and errors that name the field."""

import ast
import dataclasses
from pathlib import Path

import pytest

from keras_ldam.experiments import recipes
from keras_ldam.experiments.config import DATASETS, METHODS, Config
from keras_ldam.experiments.recipes import load_recipe
from keras_ldam.losses import LOSSES

ROOT = Path(__file__).parents[2]


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
        ({"dataset": "mnist"}, "`dataset` must be one of digits, .* Received: dataset='mnist'"),
        ({"method": "magic"}, "`method` must be one of erm, .* Received: method='magic'"),
        ({"loss": "magic"}, "`loss` must be one of cross_entropy, .* Received: loss='magic'"),
        ({"rule": "magic"}, "`rule` must be one of none, .* Received: rule='magic'"),
        ({"epochs": 0}, "`epochs` must be from 1 to 100000. Received: epochs=0"),
        ({"epochs": 2.5}, "`epochs` must be of type int"),
        ({"seed": True}, "`seed` must be of type int"),
        ({"max_margin": 3.0}, "`max_margin` must be from 0 to 2"),
        ({"scale": float("nan")}, "`scale` must be from"),
        ({"imbalance_ratio": 0.5}, "`imbalance_ratio` must be from 1"),
        ({"drop_at": (0.9, 0.8)}, "`drop_at` must increase"),
        ({"drop_at": (1.5,)}, "`drop_at` must be from 0 to 1"),
        ({"start_epoch": 200}, "`start_epoch` must be below `epochs`.*start_epoch=200, epochs=200"),
        ({"epochs": 1}, "or rule drw never begins: train for more epochs.*epochs=1"),
        ({"drop_at": ()}, "`start_epoch` must be below `epochs`"),
        ({"warmup_epochs": 200}, "`warmup_epochs` must be below `epochs`"),
        (
            {"precision": "mixed_float16", "strategy": "mirrored"},
            "with a strategy. Received: precision='mixed_float16', strategy='mirrored'",
        ),
        ({"sharpness": 0.5, "adversarial": 1.0}, "`sharpness` must be 0 .* adversarial=1"),
        ({"sharpness": -1.0}, "`sharpness` must be from 0"),
        ({"average": 1.0}, "`average` must be from 0 to 0.999999. Received: average=1.0"),
        ({"average": 0.9, "method": "bbn"}, "`average` must be 0 with rule bilateral"),
        ({"average": 0.9, "strategy": "multiworker"}, "strategy='multiworker'"),
        ({"augment": "auto"}, "`augment` must be one of autoaugment. Received: augment='auto'"),
        ({"cutout": -1}, "`cutout` must be from 0 to 4096. Received: cutout=-1"),
        ({"mix": "blend"}, "`mix` must be one of mixup, cutmix. Received: mix='blend'"),
        ({"mix_alpha": 0.0}, "`mix_alpha` must be from 0.001"),
        ({"mix": "mixup", "method": "bbn"}, "`mix` must be empty with rule bilateral"),
        (
            {"decay": "cosine", "warmup_epochs": 5, "warmup_start": 0.5},
            "`warmup_start` must be 0 with decay cosine",
        ),
        ({"warmup_epochs": 180}, r"`drop_at` must begin after the .* epoch 160 of 200, warmup_ep"),
        ({"learning_rate": 0.0}, "`learning_rate` must be from 1e-12 to 100"),
        ({"drop_factor": 0.0}, "`drop_factor` must be from 1e-12 to 1"),
        ({"decay": "linear"}, "`decay` must be one of drops, cosine"),
        ({"left_out": True}, "`left_out` needs a `validation_fraction` above 0"),
        (
            {"left_out": True, "validation_fraction": 0.1, "imbalance": "none"},
            "Received: validation_fraction=0.1, imbalance='none'",
        ),
        ({"adversarial": -0.5}, "`adversarial` must be from 0"),
        ({"adversarial": float("nan")}, "`adversarial` must be from 0"),
        ({"validation_fold": 1}, "`validation_fold` must be below 1"),
        (
            {"validation_fraction": 0.2, "validation_fold": 5},
            "must be below 5, the number of such parts. Received: validation_fold=5, "
            "validation_fraction=0.2",
        ),
    ],
)
def test_an_impossible_config_gets_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes).resolve()


def test_losses_are_those_of_the_library_and_cosines_alone_are_scaled():
    for name, loss in LOSSES.items():
        config = Config(loss=name, scale=20.0).resolve()
        assert config.score_scale == (20.0 if loss.wants_cosines else 1.0)
    assert {method.loss for method in METHODS.values()} <= set(LOSSES)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"dataset": "cifar10"}, "cifar10-longtail-100-ldam_drw-0"),
        ({"dataset": "cifar10", "imbalance": "step", "seed": 3}, "cifar10-step-100-ldam_drw-3"),
        ({"imbalance_ratio": 2.5, "method": "erm"}, "digits-longtail-2.5-erm-0"),
        ({"dataset": "folder", "imbalance": "none"}, "folder-ldam_drw-0"),
        ({"dataset": "some/birds.py", "imbalance": "none"}, "birds-ldam_drw-0"),
    ],
)
def test_a_run_is_named_by_dataset_imbalance_method_and_seed(changes, name):
    assert Config(**changes).run_name == name


def test_a_users_file_is_found_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(dataset="own/birds.py").resolve()
    assert config.dataset == str(tmp_path / "own" / "birds.py")
    assert config.dataset_name == "birds"
    assert Config(data_dir="own").resolve().data_dir == str(tmp_path / "own")
    assert Config(data_dir="gs://own/data").resolve().data_dir == "gs://own/data"
    assert Config.from_json(config.to_json()) == config


def test_the_first_stage_of_a_method_is_the_erm_run_of_the_same_settings():
    config = Config(method="lws", stage_one="elsewhere", second_epochs=3, seed=4).resolve()
    assert config.first_stage == Config(method="erm", seed=4).resolve()
    assert Config(method="rs").resolve().first_stage is None
    for changes in ({"rule": "cb_rs"}, {"loss": "ldam"}, {"strategy": "multiworker"}):
        with pytest.raises(ValueError, match="for method lws"):
            dataclasses.replace(config, **changes).resolve()


def test_every_field_has_help_and_a_default_in_its_range():
    for field in dataclasses.fields(Config):
        assert field.metadata["help"]
    Config().resolve()


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_recipe_resolves_for_every_method_and_says_how_to_run_it(dataset):
    others = recipes.load_module(ROOT / "configs" / f"{dataset}.py").__dict__.get("RECIPES", {})
    for name, methods in {"": METHODS, **dict.fromkeys(others, ("ldam_drw", "bbn"))}.items():
        for method in methods:
            config = load_recipe(dataset, method, name).resolve()
            assert (config.dataset, config.method, config.recipe) == (dataset, method, name)
    source = (ROOT / "configs" / f"{dataset}.py").read_text()
    assert f"bin/train --dataset {dataset}" in ast.get_docstring(ast.parse(source))


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ValueError, match="must be one of digits, imdb"):
        load_recipe("mnist", "erm")
    with pytest.raises(ValueError, match="must be one of erm, rs"):
        load_recipe("digits", "magic")


def test_the_recipes_of_an_installation_come_before_any_beside_it(tmp_path, monkeypatch):
    inside, beside = tmp_path / "package" / "configs", tmp_path / "configs"
    for folder, epochs in ((inside, 7), (beside, 9)):
        folder.mkdir(parents=True)
        (folder / "digits.py").write_text(
            "from keras_ldam.experiments.config import Config\n"
            f"def recipe(method):\n    return Config(epochs={epochs})\n"
        )
    # As in `site-packages`, where another package may have left a folder `configs`.
    package = Path(recipes.__file__).parent
    assert (package / "configs", package.parents[1] / "configs") == recipes._FOLDERS
    monkeypatch.setattr(recipes, "_FOLDERS", (inside, beside))
    assert load_recipe("digits", "erm").epochs == 7
