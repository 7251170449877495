"""parl: a command-line experiment runner for parallel reinforcement learning."""

__version__ = "0.1.0"
