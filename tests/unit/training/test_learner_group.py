"""Several learners behind one learner's interface: each learns from the columns of its envs, and from no other's."""

import math

import pytest
import torch

from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.buffers.rollouts import FINALS, concatenate, select_columns, split_by_policy
from parl_cli.metrics.catalog import lookup
from parl_cli.training.hooks import _ends_budget
from parl_cli.training.learner import Learner, NonFiniteError
from parl_cli.training.learner_group import LearnerGroup
from parl_cli.training.reward_scaler import RewardScaler
from parl_cli.types import Episode
from tests.helpers.rollouts import random_rollout, spec_of
from tests.helpers.saved import as_saved
from tests.helpers.stubs import GRUPolicy, make_policy, weights_hash

SPEC = spec_of()
ACTING = make_policy(SPEC)


def make_learner(policy_id=0, **changes):
    policy = make_policy(SPEC, normalize_obs=True)
    with torch.no_grad():
        policy.value_head.bias += policy_id
    algo = PPO(policy, PPOConfig(**({"num_steps": 8, "num_minibatches": 2} | changes)), seed=policy_id)
    return Learner(
        algo, total_steps=320, device=torch.device("cpu"), reward_scaler=RewardScaler(6, (), gamma=0.9, clip=10.0)
    )


def make_group(number=3, **changes):
    return LearnerGroup([make_learner(policy_id, **changes) for policy_id in range(number)])


def mixed_rollout(seed=0, columns=6, dropped=0):
    """Envs 0, 1, 2 … side by side, an episode of each."""
    rollout = random_rollout(ACTING, SPEC, num_columns=columns, seed=seed)
    rollout.policy_version[:] = seed
    rollout.episodes = [Episode(env, float(env), 3) for env in range(columns)]
    rollout.dropped_steps = dropped
    return rollout


def tensors(rollout):
    found = {name: value for name, value in vars(rollout).items() if isinstance(value, torch.Tensor)}
    return found | {f"extras.{name}": value for name, value in rollout.extras.items()}


def assert_same(mine, other):
    assert tensors(mine).keys() == tensors(other).keys()
    for name, value in tensors(mine).items():
        assert torch.equal(value, tensors(other)[name]), name


# ---- splitting ----


def recurrent_rollout():
    rollout = mixed_rollout()
    rollout.state = torch.arange(6.0)[:, None] + torch.zeros(6, GRUPolicy.state_size)
    rollout.final_state = rollout.final_index[:, 1:].float() + torch.zeros(1, GRUPolicy.state_size)
    return rollout


@pytest.mark.parametrize("make", [mixed_rollout, recurrent_rollout])
def test_columns_that_are_taken_apart_and_put_together_are_the_same(make):
    rollout = make()
    low, high = select_columns(rollout, torch.arange(2)), select_columns(rollout, torch.arange(2, 6))
    together = concatenate([low, high])
    for each in (rollout, together):
        order = torch.argsort(each.final_index[:, 1], stable=True)  # in this test ends come column by column
        for name in FINALS:
            if getattr(each, name) is not None:
                setattr(each, name, getattr(each, name)[order])
    assert_same(together, rollout)


@pytest.mark.parametrize("make", [mixed_rollout, recurrent_rollout])
def test_a_selected_column_is_what_it_was_with_its_ends(make):
    rollout = make()
    chosen = select_columns(rollout, torch.tensor([1, 4]))
    assert chosen.env_id.tolist() == [1, 4]
    assert torch.equal(chosen.obs, rollout.obs[:, [1, 4]])
    assert torch.equal(chosen.last_obs, rollout.last_obs[[1, 4]])
    assert len(chosen.final_index) == int((chosen.terminated | chosen.truncated).sum()) > 0
    for (t, n), obs in zip(chosen.final_index.tolist(), chosen.final_obs, strict=True):
        [place] = (rollout.final_index == torch.tensor([t, [1, 4][n]])).all(dim=1).nonzero()[0].tolist()
        assert torch.equal(obs, rollout.final_obs[place])
        if rollout.final_state is not None:
            assert float(chosen.final_state[0, 0]) in (1.0, 4.0)


def test_every_policy_gets_its_envs_episodes_and_a_share_of_what_was_dropped():
    parts = split_by_policy(mixed_rollout(dropped=8), 3)
    assert [part.env_id.tolist() for part in parts] == [[0, 3], [1, 4], [2, 5]]
    assert [[episode.env_id for episode in part.episodes] for part in parts] == [[0, 3], [1, 4], [2, 5]]
    assert sum(part.dropped_steps for part in parts) == 8
    assert {part.dropped_steps for part in parts} == {2, 3}


def test_a_rollout_of_one_policy_is_handed_on_as_it_is():
    rollout = mixed_rollout(columns=2, dropped=5)
    rollout.env_id = torch.tensor([1, 4])
    assert [part is rollout for part in split_by_policy(rollout, 3)] == [False, True, False]
    assert split_by_policy(rollout, 3)[0] is None


# ---- learning ----


@pytest.mark.parametrize("split_before", [False, True])
def test_each_policy_learns_what_it_would_alone(split_before):
    group, alone = make_group(), [make_learner(policy_id) for policy_id in range(3)]
    for seed in range(3):
        rollout = mixed_rollout(seed)
        parts = split_by_policy(rollout, 3)
        metrics = group.step([*parts] if split_before else [rollout])
        each = [learner.step([part]) for learner, part in zip(alone, parts, strict=True)]
        for policy_id, own in enumerate(each):
            assert {n: metrics[f"policy_{policy_id}/{n}"] for n in own} == own
        assert metrics["loss/value"] == pytest.approx(sum(own["loss/value"] for own in each) / 3)
    for learner, lone in zip(group.learners, alone, strict=True):
        assert weights_hash(learner.policy) == weights_hash(lone.policy)
    assert len({weights_hash(learner.policy) for learner in group.learners}) == 3


@pytest.mark.parametrize("mix_up", ["swapped policies", "a foreign column", "a foreign end"])
def test_a_mix_up_of_columns_would_show(mix_up):
    """What the test before compares: here something is in the wrong place, so that it must differ."""
    group, alone = make_group(2), [make_learner(policy_id) for policy_id in range(2)]
    rollout = mixed_rollout(columns=4)
    for learner, part in zip(alone, split_by_policy(rollout, 2), strict=True):
        learner.step([part])
    if mix_up == "swapped policies":
        rollout.env_id = rollout.env_id ^ 1
    elif mix_up == "a foreign column":
        rollout.reward[:, [0, 1]] = rollout.reward[:, [1, 0]]
    else:
        at = rollout.final_index[rollout.truncated[rollout.final_index[:, 0], rollout.final_index[:, 1]]][0]
        rollout.final_obs[(rollout.final_index == at).all(dim=1)] += 1.0
    group.step([rollout])
    same = [weights_hash(a.policy) == weights_hash(b.policy) for a, b in zip(group.learners, alone, strict=True)]
    assert not all(same)


def test_hyper_parameters_are_each_one_s_own():
    group = LearnerGroup([make_learner(0), make_learner(1, learning_rate=1e-2)])
    metrics = group.step([mixed_rollout(columns=4)])
    assert metrics["policy_0/optim/learning_rate"] == pytest.approx(3e-4)
    assert metrics["policy_1/optim/learning_rate"] == pytest.approx(1e-2)
    assert not [name for name in metrics if lookup(name) is None]


def test_counts_are_those_of_one_policy_and_of_the_slowest():
    group = make_group(2)
    group.step([mixed_rollout(columns=4)])
    assert (group.env_steps, group.updates, group.last_steps) == (16, 1, 16)
    ahead = mixed_rollout(columns=2, dropped=10)
    ahead.env_id = torch.tensor([1, 3])
    behind = mixed_rollout(columns=2)
    behind.env_id = torch.tensor([0, 2])
    metrics = group.step([ahead, behind])
    assert [learner.env_steps for learner in group.learners] == [32, 42]
    assert (group.env_steps, group.updates, group.last_steps) == (32, 2, 16)
    assert (metrics["policy_0/env_steps"], metrics["policy_1/env_steps"]) == (32, 42)
    assert metrics["rollout/dropped_steps"] == 10
    assert "env_steps" not in metrics


def test_the_budget_ends_with_the_update_that_uses_it_up_for_all():
    group = make_group(2)
    for learner in group.learners:
        learner.total_steps = group.total_steps = 32
    ends = []
    for seed in range(3):
        group.step([mixed_rollout(seed, columns=4)])
        ends.append(_ends_budget(group))
    assert ends == [False, True, False]


def test_the_episodes_of_all_are_told():
    group = make_group()
    group.step([mixed_rollout()])
    assert sorted(episode.env_id for episode in group.episodes) == [0, 1, 2, 3, 4, 5]


def test_a_policy_without_a_column_is_an_error():
    rollout = mixed_rollout(columns=2)
    rollout.env_id = torch.tensor([0, 2])
    with pytest.raises(ValueError, match="policy 1: no column"):
        make_group(2).step([rollout])


def test_what_is_not_finite_names_the_policy():
    rollout = mixed_rollout(columns=4)
    rollout.reward[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"policy 1: env 1: its reward is NaN or infinite at step 3 of update 1"):
        make_group(2).step([rollout])


def test_learning_time_of_all_is_booked():
    group = make_group(2)
    group.step([mixed_rollout(columns=4)])
    assert group.watch.take()["learn"] > 0


def test_the_snapshot_holds_the_weights_of_all_by_policy_id():
    group = make_group(2)
    group.step([mixed_rollout(columns=4)])
    snapshot = group.snapshot()
    assert (snapshot.version, snapshot.env_steps) == (1, 16)
    for policy_id, learner in enumerate(group.learners):
        for name, weight in learner.policy.state_dict().items():
            assert snapshot.weights[f"{policy_id}.{name}"].data_ptr() == weight.data_ptr()


def test_a_saved_group_goes_on_bit_for_bit():
    group, heir = make_group(), make_group()
    for seed in range(2):
        group.step([mixed_rollout(seed)])
    heir.load_state_dict(as_saved(group.state_dict()))
    assert (heir.updates, heir.env_steps) == (2, 32)
    assert group.step([mixed_rollout(2)]) == heir.step([mixed_rollout(2)])
    for mine, other in zip(heir.learners, group.learners, strict=True):
        assert weights_hash(mine.policy) == weights_hash(other.policy)


def test_a_state_of_policies_that_did_not_learn_side_by_side_is_refused():
    group = make_group(2)
    state = as_saved(group.state_dict())
    state["1"]["updates"] = 3
    with pytest.raises(ValueError, match=r"policies after \[0, 3\] updates"):
        make_group(2).load_state_dict(state)
    with pytest.raises(KeyError):
        make_group(3).load_state_dict(as_saved(group.state_dict()))


def test_it_has_what_hooks_and_the_loop_ask_of_a_learner():
    wanted = {name for name in vars(make_learner()) if not name.startswith("_")} - {"algo", "reward_scaler"}
    group = make_group(2)
    assert [name for name in wanted if not hasattr(group, name)] == ["dropped_steps"]  # a row's, not a hook's
