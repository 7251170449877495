"""The one loop, the learner, checkpoints, evaluation, run folders."""
