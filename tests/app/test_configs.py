"""Every YAML composes, alone and in the application, and every key is what its target takes."""

from __future__ import annotations

import inspect
from dataclasses import replace

import hydra
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from lightning_edge import EdgeCollabStrategy
from lightning_edge.app.targets import problems
from tests.ground.tree import ROOT, files

CONF = ROOT / "conf"
# What a user has to say before such a configuration is complete.
GIVEN = {
    "data/text_files": ["data.folder=x"],
    "data/token_files": ["model=causal_lm", "model.path=x", "data.folder=x"],
    "data/labelled_text": ["model=sequence_classifier", "model.path=x", "data.file=x"],
    "data/docstrings": ["model=sequence_classifier", "model.path=x"],
    "data/digits": ["model=digits"],
    "model/causal_lm": ["model.path=x"],
    "model/digits": ["data=digits"],
    "model/sequence_classifier": ["model.path=x"],
    "experiment/docstrings": ["model.path=x"],
    "cluster/static": ["cluster.host=x"],
    "profile/saved": ["profile.path=x"],
}
PRIMARY = {"common", "run", "train"}
OTHERS = {"testbed"}  # read by commands of their own
OPTIONS = sorted(
    path.relative_to(CONF).with_suffix("").as_posix()
    for path in files(".yaml", CONF)
    if path.parent != CONF and path.parent.name not in OTHERS
)


def composed(*overrides: str):
    with hydra.initialize_config_module("lightning_edge.conf", version_base="1.3"):
        config = hydra.compose("train", [*overrides, "run.id=x", "run.folder=y"])
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def test_there_is_one_configuration_per_kind_of_command():
    assert {path.stem for path in CONF.glob("*.yaml")} == PRIMARY


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_its_keys_are_known(option):
    group, _, name = option.rpartition("/")
    config = composed(f"{group}={name}", *GIVEN.get(option, ()))
    assert problems(config) == []


def test_every_parameter_of_the_strategy_is_a_key():
    """So `strategy.NAME=VALUE` works for all of them, without a plus."""
    given_by_lightning = {"accelerator", "parallel_devices", "checkpoint_io", "precision_plugin"}
    parameters = set(inspect.signature(EdgeCollabStrategy).parameters) - given_by_lightning
    keys = set(OmegaConf.load(CONF / "strategy" / "edge_collab.yaml"))
    assert keys - {"_target_", "_convert_"} == parameters


def test_the_strategys_defaults_are_its_own():
    made, plain = instantiate(composed().strategy), EdgeCollabStrategy()
    default = replace(plain._options, objective={"minimize": "time"}, groups={})
    assert made._options == default


def test_a_key_that_the_target_does_not_take_is_named_with_its_neighbour():
    config = composed()
    with open_dict(config):
        config.trainer.max_epoch = 3
        config.model.wide = 1
        config.model.blocks = "many"
        config.trainer.gradient_clip_val = "low"
        config.trainer.limit_val_batches = 0.5
    assert problems(config) == [
        "model.blocks=many is not a whole number, which lightning_edge.zoo.ByteGPT wants",
        "model.wide is no parameter of lightning_edge.zoo.ByteGPT; did you mean model.width?",
        "trainer.gradient_clip_val=low is not a whole number or a number, which lightning.Trainer"
        " wants",
        "trainer.max_epoch is no parameter of lightning.Trainer; did you mean trainer.max_epochs?",
    ]


def test_what_cannot_be_imported_and_what_is_missing_is_said_at_once():
    config = OmegaConf.create(
        {
            "model": {"_target_": "no_such_package.Model"},
            "data": {"_target_": "lightning_edge.zoo.TextFiles"},
        }
    )
    first, second = problems(config)
    assert first.startswith("model._target_=no_such_package.Model cannot be imported: ")
    assert second == "data: lightning_edge.zoo.TextFiles needs data.folder"


def test_users_applications_reach_the_groups_with_one_line(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - _self_\n  - objective: energy\n  - strategy@trainer.strategy: edge_collab\n"
        "hydra:\n  searchpath: [pkg://lightning_edge.conf]\n"
        "trainer: {_target_: lightning.Trainer}\n"
    )
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = hydra.compose("mine")
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert problems(config) == []
    assert config.trainer.strategy.objective == {"minimize": "energy"}
    assert config.trainer.strategy.groups is None
