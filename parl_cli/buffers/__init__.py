"""Rollout slots and minibatches."""
