"""What parl imports: names only, so that environment workers and `parl list` load no torch because of it."""

from pathlib import Path

import gymnasium

from parl_cli import registry

registry.register("algo", "dual_clip_ppo", "parl_example_plugin.algos:DualClipPPO")
registry.register("policy", "linear", "parl_example_plugin.policies:LinearActorCritic")
registry.register("vectorizer", "eager", "parl_example_plugin.vectorizers:EagerVectorizer")
registry.register("wrapper", "sticky_action", "parl_example_plugin.wrappers:StickyAction")
registry.register("sink", "best_return", "parl_example_plugin.sinks:BestReturn")
registry.add_config_dir(Path(__file__).parent / "conf")

gymnasium.register("parl_example/Chain-v0", "parl_example_plugin.envs:Chain", max_episode_steps=20)
