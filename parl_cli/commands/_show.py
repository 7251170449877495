"""`--cfg` and `--info`: what a command line composes to, and where it comes from."""

from __future__ import annotations

from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, OmegaConf

from parl_cli.commands._flags import Flags
from parl_cli.composition.compose import compose, prepare, without_hydra
from parl_cli.composition.messages import translated
from parl_cli.errors import ConfigError


def show(hydra: Hydra, config_name: str, flags: Flags) -> None:
    """Print what `--cfg` or `--info` asks for.

    Raises:
        ConfigError: the config does not compose, or has no part called `--package`.
    """
    if flags.info:
        compose(hydra, config_name, flags.overrides)  # its messages are better than show_info's
        with translated():
            hydra.show_info(flags.info, config_name=config_name, overrides=prepare(flags.overrides))
        return
    config = compose(hydra, config_name, flags.overrides)
    HydraConfig.instance().set_config(config)
    if flags.cfg == "job":
        config = without_hydra(config)
    elif flags.cfg == "hydra":
        config = hydra.get_sanitized_hydra_cfg(config)
    shown = config
    if flags.package:
        with translated():
            shown = OmegaConf.select(config, flags.package)
        if shown is None:
            raise ConfigError(f"--package={flags.package}: the config has no such part")
    if not isinstance(shown, Container):
        print(shown)
        return
    if flags.resolve:
        with translated():
            print(OmegaConf.to_yaml(shown, resolve=True), end="")
        return
    print(OmegaConf.to_yaml(shown), end="")
