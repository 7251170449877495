"""From overrides to plain values: Hydra as a library, the conf/ folders, and its errors in one line. No torch."""
