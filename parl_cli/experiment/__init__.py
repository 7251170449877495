"""A whole experiment as one object: what the command line is a thin layer on, and what `parl_cli.Experiment` is.

- `making`: how it begins, from overrides, a config or a checkpoint;
- `running`: what it does, training and evaluating;
- `keeping`: what is kept of it, rows, checkpoints, and how it ended.
"""

from parl_cli.experiment.making import Experiment

__all__ = ["Experiment"]
