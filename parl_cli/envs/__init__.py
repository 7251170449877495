"""Adapters, wrappers and probe environments."""
