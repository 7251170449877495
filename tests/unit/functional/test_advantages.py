"""gae, vtrace and n_step_returns against oracles that walk one env at a time, forwards from every step."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parl_cli.functional.advantages import gae, n_step_returns, surrogate_advantage, vtrace

# ------------------------------------------------------------------------------------------------ oracles
# Written from the papers' sums, not from recursions: each step looks forward until something stops it.


def value_after(traj, t):
    return 0.0 if traj["terminated"][t] else traj["next_value"][t]


def stops(traj, t):
    return traj["terminated"][t] or traj["truncated"][t] or t == len(traj["reward"]) - 1


def gae_oracle(traj, gamma, lam):
    advantages = np.zeros(len(traj["reward"]))
    for start in range(len(advantages)):
        t = start
        while True:
            delta = traj["reward"][t] + gamma * value_after(traj, t) - traj["value"][t]
            advantages[start] += (gamma * lam) ** (t - start) * delta
            if stops(traj, t):
                break
            t += 1
    return advantages


def vtrace_oracle(traj, gamma, lam, rho_bar, c_bar, pg_rho_bar):
    ratio = np.exp(traj["target_log_prob"] - traj["behaviour_log_prob"])
    num_steps = len(ratio)
    vs = traj["value"].astype(float).copy()
    for start in range(num_steps):
        weight, t = 1.0, start
        while True:
            delta = traj["reward"][t] + gamma * value_after(traj, t) - traj["value"][t]
            vs[start] += gamma ** (t - start) * weight * min(rho_bar, ratio[t]) * delta
            weight *= lam * min(c_bar, ratio[t])
            if stops(traj, t):
                break
            t += 1
    pg_advantage = np.zeros(num_steps)
    for t in range(num_steps):
        future = value_after(traj, t) if stops(traj, t) else vs[t + 1]
        pg_advantage[t] = min(pg_rho_bar, ratio[t]) * (traj["reward"][t] + gamma * future - traj["value"][t])
    return vs, pg_advantage


def surrogate_oracle(traj, gamma, lam, rho_bar, c_bar):
    ratio = np.exp(traj["target_log_prob"] - traj["behaviour_log_prob"])
    advantages = np.zeros(len(ratio))
    for start in range(len(ratio)):
        weight, rho, t = 1.0, 1.0, start  # the step itself is not weighed
        while True:
            delta = traj["reward"][t] + gamma * value_after(traj, t) - traj["value"][t]
            advantages[start] += gamma ** (t - start) * weight * rho * delta
            if stops(traj, t):
                break
            weight *= lam * (1.0 if t == start else min(c_bar, ratio[t]))
            t += 1
            rho = min(rho_bar, ratio[t])
    return advantages


def n_step_oracle(traj, gamma, n):
    returns = np.zeros(len(traj["reward"]))
    for start in range(len(returns)):
        for k in range(n):
            t = start + k
            returns[start] += gamma**k * traj["reward"][t]
            if k == n - 1 or stops(traj, t):
                returns[start] += gamma ** (k + 1) * value_after(traj, t)
                break
    return returns


# ------------------------------------------------------------------------------------------------ trajectories


@dataclasses.dataclass
class Trajectories:
    """float64 tensors [T, *lead] by name, and the same as one dict of numpy vectors per env."""

    tensors: dict

    def __getitem__(self, names):
        return [self.tensors[name] for name in names.split()]

    def per_env(self):
        shape = self.tensors["reward"].shape
        flat = {name: x.reshape(shape[0], -1).numpy() for name, x in self.tensors.items()}
        for column in range(flat["reward"].shape[1]):
            yield {name: x[:, column] for name, x in flat.items()}

    def by_oracle(self, oracle, **options):
        columns = [oracle(env, **options) for env in self.per_env()]
        shape = self.tensors["reward"].shape
        if isinstance(columns[0], tuple):
            return [torch.tensor(np.stack(part, axis=1)).reshape(shape) for part in zip(*columns, strict=True)]
        return torch.tensor(np.stack(columns, axis=1)).reshape(shape)


def make_trajectories(seed, num_steps, lead, p_end=0.2):
    rng = np.random.default_rng(seed)
    shape = (num_steps, *lead)
    terminated = rng.random(shape) < p_end
    truncated = rng.random(shape) < p_end  # both at once happens, too
    value = rng.normal(size=shape)
    next_value = rng.normal(size=shape)  # of the final obs, or of last_obs
    inside = ~(terminated | truncated)[:-1]
    next_value[:-1][inside] = value[1:][inside]
    arrays = {
        "reward": rng.normal(size=shape),
        "value": value,
        "next_value": next_value,
        "terminated": terminated,
        "truncated": truncated,
        "behaviour_log_prob": rng.normal(size=shape) - 1.0,
        "target_log_prob": rng.normal(size=shape) - 1.0,
    }
    return Trajectories({name: torch.from_numpy(x) for name, x in arrays.items()})


PLAIN = "reward value next_value terminated truncated"
OFF_POLICY = f"behaviour_log_prob target_log_prob {PLAIN}"
ON_POLICY = f"behaviour_log_prob behaviour_log_prob {PLAIN}"

unit = st.floats(0.0, 1.0)
clip = st.floats(0.05, 3.0)
leads = st.one_of(st.tuples(st.integers(1, 4)), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.just(()))
trajectories = st.builds(
    make_trajectories, st.integers(0, 2**32 - 1), st.integers(1, 12), leads, st.sampled_from([0.0, 0.1, 0.3, 0.7])
)
quick = settings(max_examples=60, deadline=None)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------ against the oracles


@quick
@given(trajectories, unit, unit)
def test_gae_equals_the_oracle(traj, gamma, lam):
    close(gae(*traj[PLAIN], gamma=gamma, lam=lam), traj.by_oracle(gae_oracle, gamma=gamma, lam=lam))


@quick
@given(trajectories, unit, unit, clip, clip, clip)
def test_vtrace_equals_the_oracle(traj, gamma, lam, rho_bar, c_bar, pg_rho_bar):
    options = {"gamma": gamma, "lam": lam, "rho_bar": rho_bar, "c_bar": c_bar, "pg_rho_bar": pg_rho_bar}
    actual = vtrace(*traj[OFF_POLICY], **options)
    vs, pg_advantage = traj.by_oracle(vtrace_oracle, **options)
    close(actual.vs, vs)
    close(actual.pg_advantage, pg_advantage)


@quick
@given(trajectories, unit, unit, clip, clip)
def test_surrogate_advantage_equals_the_oracle(traj, gamma, lam, rho_bar, c_bar):
    clips = {"rho_bar": rho_bar, "c_bar": c_bar}
    vs = vtrace(*traj[OFF_POLICY], gamma=gamma, lam=lam, **clips).vs
    actual = surrogate_advantage(vs, *traj[PLAIN], gamma=gamma, lam=lam)
    close(actual, traj.by_oracle(surrogate_oracle, gamma=gamma, lam=lam, **clips))


@quick
@given(trajectories, unit, st.integers(1, 15))
def test_n_step_returns_equal_the_oracle(traj, gamma, n):
    actual = n_step_returns(*traj["reward next_value terminated truncated"], gamma=gamma, n=n)
    close(actual, traj.by_oracle(n_step_oracle, gamma=gamma, n=n))


# ------------------------------------------------------------------------------------------------ what equals what


@quick
@given(trajectories, unit, unit)
def test_vtrace_of_equal_policies_is_gae(traj, gamma, lam):
    result = vtrace(*traj[ON_POLICY], gamma=gamma, lam=lam)
    advantage = gae(*traj[PLAIN], gamma=gamma, lam=lam)
    close(result.vs - traj.tensors["value"], advantage)
    one_step = gae(*traj[PLAIN], gamma=gamma, lam=0.0)
    end = traj.tensors["terminated"] | traj.tensors["truncated"]
    after = torch.zeros_like(advantage)
    after[:-1] = advantage[1:].masked_fill(end[:-1], 0.0)
    close(result.pg_advantage, one_step + gamma * after)


@quick
@given(trajectories, unit)
def test_vtrace_of_equal_policies_without_decay_has_gae_as_policy_gradient_advantage(traj, gamma):
    result = vtrace(*traj[ON_POLICY], gamma=gamma, lam=1.0)
    close(result.pg_advantage, gae(*traj[PLAIN], gamma=gamma, lam=1.0))


@quick
@given(trajectories, unit, unit)
def test_surrogate_advantage_of_equal_policies_is_gae(traj, gamma, lam):
    vs = vtrace(*traj[ON_POLICY], gamma=gamma, lam=lam).vs
    close(surrogate_advantage(vs, *traj[PLAIN], gamma=gamma, lam=lam), gae(*traj[PLAIN], gamma=gamma, lam=lam))


@quick
@given(trajectories, unit)
def test_surrogate_advantage_times_the_clipped_ratio_is_that_of_vtrace_without_decay(traj, gamma):
    result = vtrace(*traj[OFF_POLICY], gamma=gamma, lam=1.0)
    rho = (traj.tensors["target_log_prob"] - traj.tensors["behaviour_log_prob"]).exp().clamp(max=1.0)
    close(rho * surrogate_advantage(result.vs, *traj[PLAIN], gamma=gamma, lam=1.0), result.pg_advantage)


@quick
@given(trajectories, unit)
def test_long_n_step_returns_are_gae_without_decay(traj, gamma):
    returns = n_step_returns(*traj["reward next_value terminated truncated"], gamma=gamma, n=100)
    close(returns - traj.tensors["value"], gae(*traj[PLAIN], gamma=gamma, lam=1.0))


@quick
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.data())
def test_a_trajectory_split_at_an_end_gives_the_same_numbers(seed, num_steps, data):
    traj = make_trajectories(seed, num_steps, (3,), p_end=0.1)
    cut = data.draw(st.integers(1, num_steps - 1))
    traj.tensors["truncated"][cut - 1] = True
    parts = [Trajectories({k: v[s] for k, v in traj.tensors.items()}) for s in (slice(cut), slice(cut, None))]
    close(
        torch.cat([gae(*part[PLAIN], gamma=0.9, lam=0.8) for part in parts]),
        gae(*traj[PLAIN], gamma=0.9, lam=0.8),
    )
    whole = vtrace(*traj[OFF_POLICY], gamma=0.9)
    split = [vtrace(*part[OFF_POLICY], gamma=0.9) for part in parts]
    close(torch.cat([part.vs for part in split]), whole.vs)
    close(torch.cat([part.pg_advantage for part in split]), whole.pg_advantage)


# ------------------------------------------------------------------------------------------------ known answers


def constant_reward(num_steps, gamma):
    """Reward 1 for ever, seen through a time limit every 5 steps, with a perfect critic."""
    shape = (num_steps, 2)
    perfect = torch.full(shape, 1.0 / (1.0 - gamma), dtype=torch.float64)
    cut = torch.zeros(shape, dtype=torch.bool)
    cut[4::5] = True
    return torch.ones(shape, dtype=torch.float64), perfect, perfect, torch.zeros_like(cut), cut


def test_constant_reward_with_time_limits_keeps_the_perfect_critic():
    # fails as soon as a time limit is taken for a terminal state: the return there would be 1
    reward, value, next_value, terminated, truncated = constant_reward(20, 0.9)
    zeros = torch.zeros_like(value)
    close(gae(reward, value, next_value, terminated, truncated, gamma=0.9, lam=0.95), zeros)
    close(n_step_returns(reward, next_value, terminated, truncated, gamma=0.9, n=3), value)
    result = vtrace(zeros, zeros, reward, value, next_value, terminated, truncated, gamma=0.9)
    close(result.vs, value)
    close(result.pg_advantage, zeros)


def test_a_terminal_state_has_no_value():
    reward, value, next_value, truncated, terminated = constant_reward(10, 0.9)  # the flags swapped
    returns = gae(reward, value, next_value, terminated, truncated, gamma=0.9, lam=1.0)[:5] + value[:5]
    close(returns[:, 0], torch.tensor([(1 - 0.9**k) / 0.1 for k in (5, 4, 3, 2, 1)], dtype=torch.float64))


def test_gae_by_hand():
    # delta = 1 + .5·4 − 2 = 1, then 2 + .5·6 − 4 = 1, the second truncated
    flags = torch.tensor([False, False])
    advantage = gae(
        torch.tensor([1.0, 2.0]),
        torch.tensor([2.0, 4.0]),
        torch.tensor([4.0, 6.0]),
        flags,
        torch.tensor([False, True]),
        gamma=0.5,
        lam=0.5,
    )
    close(advantage, torch.tensor([1.25, 1.0]))


def test_next_value_of_a_terminated_step_is_never_read():
    traj = make_trajectories(3, 8, (4,), p_end=0.3)
    spoiled = traj.tensors["next_value"].masked_fill(traj.tensors["terminated"], torch.nan)
    again = Trajectories({**traj.tensors, "next_value": spoiled})
    close(gae(*again[PLAIN], gamma=0.9, lam=0.9), gae(*traj[PLAIN], gamma=0.9, lam=0.9))
    close(vtrace(*again[OFF_POLICY], gamma=0.9), vtrace(*traj[OFF_POLICY], gamma=0.9))
    vs = vtrace(*traj[OFF_POLICY], gamma=0.9).vs
    surrogate = surrogate_advantage(vs, *again[PLAIN], gamma=0.9, lam=0.9)
    close(surrogate, surrogate_advantage(vs, *traj[PLAIN], gamma=0.9, lam=0.9))
    names = "reward next_value terminated truncated"
    close(n_step_returns(*again[names], gamma=0.9, n=3), n_step_returns(*traj[names], gamma=0.9, n=3))


def test_rows_behind_an_end_do_not_reach_the_rows_before_it():
    traj = make_trajectories(5, 8, (3,), p_end=0.0)
    traj.tensors["truncated"][3] = True
    other = make_trajectories(6, 8, (3,))
    mixed = Trajectories({k: torch.cat([v[:4], other.tensors[k][4:]]) for k, v in traj.tensors.items()})
    close(gae(*mixed[PLAIN], gamma=0.9, lam=0.9)[:4], gae(*traj[PLAIN], gamma=0.9, lam=0.9)[:4])
    close(vtrace(*mixed[OFF_POLICY], gamma=0.9).vs[:4], vtrace(*traj[OFF_POLICY], gamma=0.9).vs[:4])


def test_results_need_no_grad_and_inputs_stay_untouched():
    traj = make_trajectories(7, 6, (2,))
    before = {k: v.clone() for k, v in traj.tensors.items()}
    traj.tensors["value"].requires_grad_()
    assert not gae(*traj[PLAIN], gamma=0.9, lam=0.9).requires_grad
    assert not vtrace(*traj[OFF_POLICY], gamma=0.9).vs.requires_grad
    for name, x in traj.tensors.items():
        assert torch.equal(x, before[name])


# ------------------------------------------------------------------------------------------------ bad input


def test_shapes_that_would_broadcast_are_refused():
    reward, value, next_value, terminated, truncated = constant_reward(4, 0.9)
    with pytest.raises(ValueError, match=r"\(4, 2, 1\).*same"):
        gae(reward, value.unsqueeze(-1), next_value, terminated, truncated, gamma=0.9, lam=0.9)


def test_n_below_one_is_refused():
    reward, _, next_value, terminated, truncated = constant_reward(4, 0.9)
    with pytest.raises(ValueError, match="n=0"):
        n_step_returns(reward, next_value, terminated, truncated, gamma=0.9, n=0)
