"""What a run measures and where it goes."""
