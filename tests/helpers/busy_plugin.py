"""`plugins=[tests.helpers.busy_plugin]`: registers an env of 100 µs of Python per step."""

import gymnasium

gymnasium.register("Busy100-v0", entry_point="tests.helpers.slow_envs:BusyEnv")
