"""Pure functions: advantages, losses, distributions, schedules, noise."""
