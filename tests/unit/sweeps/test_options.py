"""conf/sweep/ holds the values, the dataclasses the types: equal, and every key says what it is."""

import dataclasses

from omegaconf import OmegaConf

from parl_cli.composition import conf_files
from parl_cli.config import parse
from parl_cli.sweeps.options import SweepConfig

SWEEP = conf_files.builtin_conf() / "sweep"


def read(name):
    values = OmegaConf.to_container(OmegaConf.load(SWEEP / f"{name}.yaml"))
    del values["defaults"]
    return values


def test_the_grid_holds_the_defaults():
    values = read("grid")
    assert parse(SweepConfig, values) == SweepConfig()
    assert set(values) == {field.name for field in dataclasses.fields(SweepConfig)}
    assert set(values) <= set(conf_files.comments(SWEEP / "grid.yaml"))
