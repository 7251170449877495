"""parl: a command-line experiment runner for parallel reinforcement learning.

`parl_cli.Experiment` is the Python API. It is imported when it is asked for: this file runs in every process, also in
those that need no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parl_cli.experiment import Experiment

__all__ = ["Experiment", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "Experiment":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from parl_cli.experiment import Experiment

    return Experiment
