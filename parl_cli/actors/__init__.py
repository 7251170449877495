"""Where acting runs: a policy copy, a vectorizer, and the rollouts they fill."""
