import math

import pytest
import torch

from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.errors import ParlError
from parl_cli.training.learner import Learner, NonFiniteError
from parl_cli.training.reward_scaler import RewardScaler
from parl_cli.types import Episode
from tests.helpers.rollouts import random_rollout, spec_of
from tests.helpers.saved import as_saved
from tests.helpers.stubs import make_learner, make_policy

SPEC = spec_of()


class Recorder:
    """An algorithm that keeps what it is shown, and answers what it is told to."""

    num_steps = 8

    def __init__(self, policy, **metrics):
        self.policy = policy
        self.metrics = {"loss/policy": 0.0} | metrics
        self.seen = []

    def update(self, rollout, progress=0.0):
        self.seen.append((rollout, progress))
        return dict(self.metrics)


def recorder(total_steps=320, scaler=None, **metrics):
    policy = make_policy(SPEC, normalize_obs=True)
    algo = Recorder(policy, **metrics)
    return Learner(algo, total_steps=total_steps, device=torch.device("cpu"), reward_scaler=scaler)


def make_rollout(seed=0, **options):
    return random_rollout(make_policy(SPEC), SPEC, seed=seed, **options)


def test_counters_count_env_steps_and_updates():
    learner = recorder()
    learner.step([make_rollout()])
    learner.step([make_rollout(), make_rollout()])
    assert (learner.updates, learner.env_steps) == (2, 3 * 32)


def test_masked_rows_are_no_env_steps():
    learner = recorder()
    rollout = make_rollout()
    rollout.mask[2:5, 1] = False
    metrics = learner.step([rollout])
    assert learner.env_steps == 32 - 3
    assert metrics["rollout/masked_share"] == pytest.approx(3 / 32)


def test_agents_are_no_env_steps():
    learner = recorder()
    rollout = make_rollout()
    rollout.mask = torch.ones(8, 4, 2, dtype=torch.bool)
    rollout.mask[6:, 0, 1] = False  # one agent is dead, its env goes on
    rollout.obs = torch.stack([rollout.obs] * 2, dim=2)
    learner.step([rollout])
    assert learner.env_steps == 32


def test_policy_lag_is_the_age_of_the_weights_that_acted():
    learner = recorder()
    for _ in range(3):
        learner.step([make_rollout()])
    rollout = make_rollout()
    rollout.policy_version[:] = 3
    rollout.policy_version[:4] = 1
    metrics = learner.step([rollout])
    assert metrics["rollout/policy_lag_mean"] == 1.0
    assert metrics["rollout/policy_lag_max"] == 2.0
    shares = {name: value for name, value in metrics.items() if name.endswith("_share") and "lag" in name}
    assert shares == {"rollout/policy_lag_0_share": 0.5, "rollout/policy_lag_2_share": 0.5}


def test_masked_steps_have_no_lag():
    learner = recorder()
    rollout = make_rollout()
    rollout.policy_version[0] = -1
    rollout.mask[0] = False
    metrics = learner.step([rollout])
    assert metrics["rollout/policy_lag_max"] == metrics["rollout/policy_lag_mean"] == 0.0
    assert not any("lag_" in name and name.endswith("_share") for name in metrics)


def test_progress_is_the_share_of_the_budget_used_before_the_rollout():
    learner = recorder(total_steps=64)
    for _ in range(4):
        learner.step([make_rollout()])
    assert [progress for _, progress in learner.algo.seen] == [0.0, 0.5, 1.0, 1.0]


def test_metrics_of_the_algorithm_are_passed_on():
    assert recorder(**{"policy/entropy": 1.5}).step([make_rollout()])["policy/entropy"] == 1.5


def test_episodes_of_all_rollouts_are_kept_until_the_next_step():
    learner = recorder()
    first, second = make_rollout(), make_rollout()
    first.episodes, second.episodes = [Episode(0, 1.0, 2)], [Episode(1, 3.0, 4)]
    learner.step([first, second])
    assert learner.episodes == [Episode(0, 1.0, 2), Episode(1, 3.0, 4)]
    learner.step([make_rollout()])
    assert learner.episodes == []


def test_the_normalizer_is_updated_once_per_step_after_the_update():
    learner = recorder()
    counts = []
    update = learner.algo.update
    learner.algo.update = lambda *args: counts.append(float(learner.algo.policy.normalizer.count)) or update(*args)
    learner.step([make_rollout()])
    learner.step([make_rollout()])
    assert counts == [0.0, 32.0]
    assert float(learner.algo.policy.normalizer.count) == 64.0


def test_rewards_are_scaled_for_the_algorithm_only():
    learner = recorder(scaler=RewardScaler(4, (), gamma=0.9))
    rollout = make_rollout()
    before = rollout.reward.clone()
    metrics = learner.step([rollout])
    [(seen, _)] = learner.algo.seen
    assert torch.equal(rollout.reward, before)
    torch.testing.assert_close(seen.reward, before / metrics["normalizer/reward_std"])
    assert metrics["normalizer/reward_std"] == learner.reward_scaler.std != 1.0


def test_the_snapshot_is_the_weights_of_now_by_reference():
    learner = recorder()
    learner.step([make_rollout()])
    snapshot = learner.snapshot()
    assert (snapshot.version, snapshot.env_steps) == (1, 32)
    assert set(snapshot.weights) == set(learner.algo.policy.state_dict())
    learner.algo.policy.value_head.bias.data.fill_(7.0)
    assert float(snapshot.weights["value_head.bias"]) == 7.0


def test_learning_time_is_booked():
    learner = recorder()
    learner.step([make_rollout()])
    assert learner.watch.take()["learn"] > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "at", "env", "step"),
    [("obs", (3, 2), 12, 3), ("reward", (5, 1), 11, 5), ("last_obs", (3,), 13, 8), ("final_obs", None, None, None)],
)
def test_what_is_not_finite_is_refused_before_it_is_learned_from(name, at, env, step, value):
    learner = recorder()
    learner.step([make_rollout()])
    rollout = make_rollout(end_share=0.4)
    rollout.env_id += 10
    if name == "final_obs":
        (step, column), *_ = rollout.truncated_finals()[0].tolist()
        at = (rollout.final_index == torch.tensor([step, column])).all(dim=1)
        env = column + 10
    getattr(rollout, name)[at] = value
    with pytest.raises(NonFiniteError) as caught:
        learner.step([rollout])
    assert str(caught.value) == f"env {env}: its {name} is NaN or infinite at step {step} of update 2"
    assert isinstance(caught.value, ParlError)
    assert caught.value.rollout is rollout
    assert len(learner.algo.seen) == 1
    assert (learner.updates, learner.env_steps) == (1, 32)


def test_what_a_terminal_step_led_to_may_be_anything():
    learner = recorder()
    rollout = make_rollout(end_share=0.4)
    terminal = rollout.terminated[tuple(rollout.final_index.T)]
    assert terminal.any()
    rollout.final_obs[terminal] = math.nan
    learner.step([rollout])
    assert learner.updates == 1


def test_whole_number_observations_are_finite():
    learner = recorder()
    rollout = make_rollout()
    rollout.obs = rollout.obs.long()
    learner.step([rollout])
    assert learner.updates == 1


@pytest.mark.parametrize("name", ["loss/policy", "loss/value", "optim/grad_norm"])
def test_a_loss_or_gradient_that_blew_up_names_the_update_and_what_to_do(name):
    learner = recorder(**{name: math.nan})
    with pytest.raises(NonFiniteError, match=rf"update 1: {name} became NaN or infinite; lower algo\.learning_rate"):
        learner.step([make_rollout()])


def test_metrics_that_may_be_undefined_are_no_failure():
    recorder(**{"value/explained_variance": math.nan}).step([make_rollout()])


def test_a_diverging_update_is_caught_by_the_learner():
    policy = make_policy(SPEC)
    learner = make_learner(policy, PPO(policy, PPOConfig(num_steps=8, num_minibatches=2)))
    rollout = random_rollout(policy, SPEC)
    rollout.reward[:] = 1e30  # finite, but its square is not
    with pytest.raises(NonFiniteError, match=r"update 1: .*loss/value"):
        learner.step([rollout])


def learner_with_everything():
    policy = make_policy(SPEC, normalize_obs=True)
    algo = PPO(policy, PPOConfig(num_steps=8, num_minibatches=2, learning_rate_schedule="linear"))
    scaler = RewardScaler(4, (), gamma=0.99)
    return Learner(algo, total_steps=320, device=torch.device("cpu"), reward_scaler=scaler)


def test_a_saved_learner_goes_on_bit_for_bit():
    learner, heir = learner_with_everything(), learner_with_everything()
    rollouts = [make_rollout(seed) for seed in range(4)]
    for rollout in rollouts[:2]:
        learner.step([rollout])
    heir.load_state_dict(as_saved(learner.state_dict()))
    assert (heir.updates, heir.env_steps) == (2, 64)
    for rollout in rollouts[2:]:
        assert learner.step([rollout]) == heir.step([rollout])
    for name, value in learner.algo.policy.state_dict().items():
        assert torch.equal(heir.algo.policy.state_dict()[name], value), name
