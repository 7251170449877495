import dataclasses
import math

import numpy as np
import pytest
import torch

from parl_cli.training.reward_scaler import RewardScaler
from tests.helpers.rollouts import random_rollout, spec_of
from tests.helpers.saved import as_saved
from tests.helpers.stubs import make_policy

GAMMA = 0.9
SPEC = spec_of()
POLICY = make_policy(SPEC)


def make_rollout(env_ids=(0, 1, 2, 3), seed=0, masked=0.0, reward_scale=5.0):
    rollout = random_rollout(POLICY, SPEC, num_columns=len(env_ids), seed=seed)
    rollout.env_id = torch.tensor(env_ids)
    rollout.reward *= reward_scale
    rollout.mask = torch.from_numpy(np.random.default_rng(seed).random((8, len(env_ids))) >= masked)
    return rollout


class Oracle:
    """The same by plain loops: one return per env id, all the returns ever seen in a list."""

    def __init__(self):
        self.running = {}
        self.seen = []

    def __call__(self, rollout):
        for n, env in enumerate(rollout.env_id.tolist()):
            if rollout.is_first[0, n]:  # also where nothing said that the episode before had ended
                self.running[env] = 0.0
            for t in range(rollout.reward.shape[0]):
                self.running[env] = self.running.get(env, 0.0) * GAMMA + float(rollout.reward[t, n])
                if rollout.mask[t, n]:
                    self.seen.append(self.running[env])
                if rollout.terminated[t, n] or rollout.truncated[t, n] or not rollout.mask[t, n]:
                    self.running[env] = 0.0
        return torch.clamp(rollout.reward / np.std(self.seen), -10.0, 10.0)


def scaler_for(num_envs=8, **changes):
    return RewardScaler(num_envs, (), gamma=GAMMA, **changes)


@pytest.mark.parametrize(
    ("env_ids", "masked"),
    [
        ([(0, 1, 2, 3)] * 3, 0.0),
        ([(0, 1, 2, 3)] * 3, 0.3),
        ([(3, 0, 7), (7, 5, 3), (0, 3, 7)], 0.2),
        ([(2, 2, 1), (1, 2, 1), (2, 1, 1, 2, 1)], 0.1),
        ([(4, 4, 4, 4)] * 2, 0.0),
    ],
    ids=["lock_step", "masked", "any_order", "several_columns_of_one_env", "one_env"],
)
def test_it_scales_like_plain_loops_keyed_by_env(env_ids, masked):
    scaler, oracle = scaler_for(), Oracle()
    for seed, ids in enumerate(env_ids):
        rollout = make_rollout(ids, seed, masked)
        torch.testing.assert_close(scaler(rollout), oracle(rollout), rtol=1e-4, atol=1e-6)
        assert scaler.std == pytest.approx(np.std(oracle.seen), rel=1e-6)


def halves(rollout):
    names = ("reward", "mask", "terminated", "truncated", "is_first")
    parts = [{name: getattr(rollout, name)[part] for name in names} for part in (slice(4), slice(4, None))]
    return [dataclasses.replace(rollout, **part) for part in parts]


def test_a_rollout_in_two_halves_leaves_what_the_whole_one_does():
    whole, split = scaler_for(), scaler_for()
    rollout = make_rollout(masked=0.2)
    whole(rollout)
    for half in halves(rollout):
        split(half)
    torch.testing.assert_close(split.state_dict()["accumulated"], whole.state_dict()["accumulated"])
    assert split.std == pytest.approx(whole.std)


def test_before_any_reward_the_std_is_one():
    assert scaler_for().std == 1.0


def test_scaled_rewards_are_clipped():
    scaled = scaler_for(clip=0.5)(make_rollout(reward_scale=100.0))
    assert float(scaled.abs().max()) == 0.5
    assert float(scaled.abs().min()) < 0.5


def test_constant_zero_rewards_stay_zero():
    rollout = make_rollout(reward_scale=0.0)
    assert not scaler_for()(rollout).any()


def test_the_rollout_itself_is_left_alone():
    rollout = make_rollout()
    before = rollout.reward.clone()
    assert scaler_for()(rollout).dtype == torch.float32
    assert torch.equal(rollout.reward, before)


def test_a_wholly_masked_rollout_counts_nothing():
    scaler = scaler_for()
    rollout = make_rollout(masked=1.1)
    assert torch.isfinite(scaler(rollout)).all()
    assert scaler.std == 1.0


def test_agents_have_returns_of_their_own():
    scaler = RewardScaler(4, (2,), gamma=1.0)
    rollout = make_rollout()
    for name in ("mask", "terminated", "truncated", "is_first"):
        setattr(rollout, name, torch.stack([getattr(rollout, name)] * 2, dim=2))
    rollout.terminated.zero_()
    rollout.truncated.zero_()
    rollout.reward = torch.ones(8, 4, 2) * torch.tensor([1.0, 3.0])
    scaler(rollout)
    assert scaler.state_dict()["accumulated"].tolist() == [[8.0, 24.0]] * 4
    returns = np.concatenate([np.arange(1, 9), 3 * np.arange(1, 9)])
    assert scaler.std == pytest.approx(returns.std())


def test_rewards_are_scaled_by_the_statistics_that_include_them():
    scaler = scaler_for(num_envs=1)
    rollout = make_rollout((0,))
    scaled = scaler(rollout)
    torch.testing.assert_close(scaled, rollout.reward / math.sqrt(scaler.std**2 + 1e-8))


def test_a_saved_state_goes_on_bit_for_bit():
    scaler, heir = scaler_for(), scaler_for()
    scaler(make_rollout(seed=0))
    heir.load_state_dict(as_saved(scaler.state_dict()))
    assert torch.equal(scaler(make_rollout(seed=1)), heir(make_rollout(seed=1)))
    assert heir.std == scaler.std


@pytest.mark.parametrize("wrong", [{"spread": -1.0}, {"count": -1.0}, {"mean": float("nan")}, {"spread": float("inf")}])
def test_statistics_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="statistics of returns that cannot be"):
        scaler_for(4).load_state_dict(scaler_for(4).state_dict() | wrong)


def test_state_of_other_envs_is_refused():
    with pytest.raises(ValueError, match=r"returns of shape \[8\]; this run has \[4\]"):
        scaler_for(4).load_state_dict(scaler_for(8).state_dict())
