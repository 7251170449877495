import copy
import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from parl_cli.errors import ConfigError
from tests.helpers.rollouts import (
    ACTION_SPACES,
    OBSERVATION_SPACES,
    VECTOR,
    clone,
    observe,
    random_rollout,
    spec_of,
    uniform_noise,
)
from tests.helpers.stubs import make_policy

SPACE_PAIRS = pytest.mark.parametrize(
    ("observation", "action"),
    [(obs, "discrete") for obs in OBSERVATION_SPACES] + [("box", act) for act in ACTION_SPACES],
)


def make(observation="box", action="discrete", **changes):
    action_space, squash = ACTION_SPACES[action]
    return make_policy(spec_of(OBSERVATION_SPACES[observation], action_space), squash=squash, **changes)


def act(policy, obs, noise, greedy=False):
    with torch.no_grad():
        return policy.act(obs, None, torch.zeros(obs.shape[:1], dtype=torch.bool), noise, greedy)


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@SPACE_PAIRS
@pytest.mark.parametrize("lead", [(6,), (3, 2), (2, 3, 2)], ids=["rows", "steps_columns", "agents"])
def test_act_and_evaluate_agree_for_every_lead(observation, action, lead):
    policy = make(observation, action)
    obs = observe(OBSERVATION_SPACES[observation], *lead)
    output = act(policy, obs, uniform_noise(policy, *lead))
    distribution, value = policy.evaluate(obs)
    assert output.action.shape == (*lead, *ACTION_SPACES[action][0].shape)
    assert value.shape == output.extras["log_prob"].shape == distribution.entropy().shape == lead
    torch.testing.assert_close(distribution.log_prob(output.action), output.extras["log_prob"], atol=1e-6, rtol=1e-6)
    rebuilt = policy.distribution(output.extras["dist_params"])
    assert torch.equal(rebuilt.log_prob(output.action), output.extras["log_prob"])


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_env_takes_every_action_shifted_by_the_start(action):
    space, _ = ACTION_SPACES[action]
    policy = make(action=action, log_std_init=1.0)
    obs = observe(VECTOR, 64)
    drawn = act(policy, obs, uniform_noise(policy, 64)).action.numpy()
    kept = drawn.copy()
    taken = policy.env_action(drawn)
    assert all(space.contains(one) for one in taken)
    assert np.array_equal(drawn, kept)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        assert np.array_equal(np.unique(taken, axis=0) - space.start, np.unique(drawn, axis=0))
        assert np.array_equal(taken.min(axis=0), np.broadcast_to(space.start, taken[0].shape))


def test_box_actions_are_clipped_for_the_env_and_kept_as_drawn_for_learning():
    policy = make(action="box", log_std_init=2.0)
    output = act(policy, observe(VECTOR, 64), uniform_noise(policy, 64))
    taken = policy.env_action(output.action.numpy())
    outside = np.abs(output.action.numpy()) > 1
    assert outside.any()
    assert np.array_equal(np.abs(taken[outside]), np.ones(outside.sum(), np.float32))
    assert np.array_equal(taken[~outside], output.action.numpy()[~outside])


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_act_is_a_pure_function_of_its_noise(action):
    policy = make(action=action)
    obs, noise = observe(VECTOR, 32), uniform_noise(make(action=action), 32)
    before = copy.deepcopy(policy.state_dict())
    generator_before = torch.get_rng_state()
    first, again = act(policy, obs, noise), act(policy, obs, noise)
    other = act(policy, obs, uniform_noise(policy, 32, seed=1))
    assert torch.equal(first.action, again.action)
    assert not torch.equal(first.action, other.action)
    assert torch.equal(torch.get_rng_state(), generator_before)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_greedy_actions_ignore_the_noise(action):
    policy = make(action=action)
    obs = observe(VECTOR, 16)
    first = act(policy, obs, uniform_noise(policy, 16), greedy=True)
    other = act(policy, obs, uniform_noise(policy, 16, seed=1), greedy=True)
    assert torch.equal(first.action, other.action)
    assert torch.equal(first.action, policy.distribution(first.extras["dist_params"]).mode())


def test_rows_are_computed_apart():
    policy = make(observation="multi_discrete", action="box")
    obs, noise = observe(OBSERVATION_SPACES["multi_discrete"], 8), uniform_noise(policy, 8)
    together = act(policy, obs, noise).action
    for row in range(8):
        alone = act(policy, obs[row : row + 1], noise[row : row + 1]).action
        torch.testing.assert_close(alone[0], together[row])


@pytest.mark.parametrize("shared", [False, True])
def test_values_are_those_of_each_observation_and_of_true_successors(shared):
    spec = spec_of()
    policy = make_policy(spec, shared_trunk=shared)
    rollout = random_rollout(policy, spec, end_share=0.4)
    value, following = policy.values(rollout)
    assert not value.requires_grad
    at, final_obs = rollout.truncated_finals()
    assert 0 < len(at) < len(rollout.final_index)
    with torch.no_grad():
        torch.testing.assert_close(value, policy.evaluate(rollout.obs)[1])
        expected = policy.evaluate(torch.cat([rollout.obs[1:], rollout.last_obs[None]]))[1]
        for (t, n), obs in zip(at.tolist(), final_obs, strict=True):
            assert rollout.truncated[t, n]
            expected[t, n] = policy.evaluate(obs[None])[1][0]
    torch.testing.assert_close(following, expected)


def test_values_of_agents_take_the_final_observation_where_one_agent_was_cut():
    spec = dataclasses.replace(spec_of(), num_agents=2)
    policy = make_policy(spec)
    rollout = random_rollout(policy, spec_of(), num_columns=2, end_share=0)
    pair = clone(rollout)
    for name in ("obs", "action", "reward", "mask", "terminated", "truncated", "is_first"):
        setattr(pair, name, torch.stack([getattr(rollout, name)] * 2, dim=2))
    pair.last_obs = torch.stack([rollout.last_obs] * 2, dim=1)
    pair.truncated[3, 1, 0] = True
    pair.terminated[3, 1, 1] = True
    pair.final_index = torch.tensor([[3, 1]])
    pair.final_obs = observe(VECTOR, 1, 2, seed=9)
    value, following = policy.values(pair)
    assert value.shape == following.shape == (8, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(following[3, 1], policy.evaluate(pair.final_obs[0])[1])
    torch.testing.assert_close(following[3, 0], value[4, 0])


def test_weights_are_orthogonal_with_the_gains_of_the_config():
    policy = make(hidden_sizes=[8, 8], hidden_gain=1.5, policy_gain=0.01, value_gain=2.0)
    gains = {policy.policy_head: 0.01, policy.value_head: 2.0}
    gains |= dict.fromkeys([*linears(policy.policy_trunk), *linears(policy.value_trunk)], 1.5)
    assert len(gains) == 6
    for layer, gain in gains.items():
        weight = layer.weight.detach()
        small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(small, gain**2 * torch.eye(len(small)), atol=1e-5, rtol=1e-5)
        assert not layer.bias.any()


def test_shared_trunk_feeds_both_heads():
    policy = make(shared_trunk=True)
    assert policy.value_trunk is None
    assert sum(p.numel() for p in policy.parameters()) < sum(p.numel() for p in make().parameters())
    policy.evaluate(observe(VECTOR, 4))[1].sum().backward()
    assert linears(policy.policy_trunk)[0].weight.grad.abs().sum() > 0


def test_shared_trunk_needs_a_layer():
    with pytest.raises(ConfigError, match=r"hidden_sizes=\[\].*try policy.shared_trunk=false"):
        make(shared_trunk=True, hidden_sizes=[])


def test_without_hidden_layers_the_heads_are_linear_in_the_observation():
    policy = make(hidden_sizes=[])
    assert [layer.in_features for layer in linears(policy)] == [3, 3]


@pytest.mark.parametrize("state_dependent", [False, True])
def test_log_std_starts_where_the_config_says(state_dependent):
    policy = make(action="box_2d", log_std_init=-1.25, state_dependent_std=state_dependent, policy_gain=1.0)
    obs = observe(VECTOR, 64)
    log_std = policy.evaluate(obs)[0].log_std.detach()
    assert log_std.shape == (64, 6)
    if state_dependent:
        assert policy.log_std is None
        assert log_std.std(dim=0).min() > 0
    else:
        assert torch.equal(log_std, torch.full((64, 6), -1.25))
        assert policy.log_std.requires_grad


def test_state_dependent_log_std_without_input_is_the_initial_one():
    policy = make(action="box", log_std_init=-0.5, state_dependent_std=True)
    distribution, _ = policy.evaluate(torch.zeros(1, 3))
    assert torch.equal(distribution.log_std, torch.full((1, 2), -0.5))


def test_discrete_policies_have_no_log_std():
    policy = make()
    assert policy.log_std is None
    assert act(policy, observe(VECTOR, 2), uniform_noise(policy, 2)).extras["dist_params"].shape == (2, 3)


@pytest.mark.parametrize("norm", ["none", "layer", "group"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "relu6", "elu", "silu", "gelu"])
def test_every_activation_and_norm_works_for_any_lead(norm, activation):
    policy = make(norm=norm, activation=activation, hidden_sizes=[8, 6])
    flat = observe(VECTOR, 6)
    _, value = policy.evaluate(flat)
    _, shaped = policy.evaluate(flat.unflatten(0, (3, 2)))
    torch.testing.assert_close(shaped.flatten(), value)


def test_activations_and_norms_differ():
    obs = observe(VECTOR, 6)
    choices = [{"activation": a} for a in ("tanh", "relu", "elu", "silu", "gelu")]
    choices += [{"norm": "layer"}, {"norm": "group", "hidden_sizes": [16]}]
    values = [make(**choice).evaluate(obs)[1].tolist() for choice in choices]
    assert len({tuple(v) for v in values}) == len(choices)


def test_normalizer_is_part_of_the_weights_and_only_update_normalizer_changes_it():
    spec = spec_of()
    policy = make_policy(spec, normalize_obs=True)
    rollout = random_rollout(policy, spec)
    names = {name for name in policy.state_dict() if name.startswith("normalizer.")}
    assert names == {"normalizer.mean", "normalizer.var", "normalizer.count"}
    before = {name: policy.state_dict()[name].clone() for name in names}
    policy.train()
    act(policy, rollout.obs[0], uniform_noise(policy, 4))
    policy.evaluate(rollout.obs)
    policy.values(rollout)
    assert all(torch.equal(policy.state_dict()[name], before[name]) for name in names)
    policy.update_normalizer(rollout)
    torch.testing.assert_close(policy.normalizer.mean, rollout.obs.mean(dim=(0, 1)))
    heir = make_policy(spec, normalize_obs=True)
    heir.load_state_dict(policy.state_dict())
    torch.testing.assert_close(heir.evaluate(rollout.obs)[1], policy.evaluate(rollout.obs)[1])


def test_masked_rows_do_not_enter_the_normalizer():
    spec = spec_of()
    policy, reference = make_policy(spec, normalize_obs=True), make_policy(spec, normalize_obs=True)
    rollout = random_rollout(policy, spec)
    rollout.mask[2:5, 1] = False
    spoiled = clone(rollout)
    spoiled.obs[~rollout.mask] = 1e6
    policy.update_normalizer(spoiled)
    reference.normalizer.update(rollout.obs[rollout.mask])
    assert torch.equal(policy.normalizer.mean, reference.normalizer.mean)
    assert float(policy.normalizer.count) == 8 * 4 - 3


def test_a_wholly_masked_rollout_leaves_the_normalizer_alone():
    spec = spec_of()
    policy = make_policy(spec, normalize_obs=True)
    rollout = random_rollout(policy, spec)
    rollout.mask[:] = False
    policy.update_normalizer(rollout)
    assert float(policy.normalizer.count) == 0
    assert torch.isfinite(policy.normalizer.mean).all()


@pytest.mark.parametrize(
    ("space", "way_out"),
    [
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "flatten_obs"),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(np.zeros((3, 3)), np.eye(3), dtype=float)), "flatten_obs"),
        (spaces.Tuple([spaces.Discrete(2)]), "flatten_obs"),
        (spaces.Text(5), "flatten_obs"),
        (spaces.Graph(VECTOR, None), "wrap the env"),
        (spaces.Sequence(VECTOR), "wrap the env"),
    ],
    ids=["image", "dict", "tuple", "text", "graph", "sequence"],
)
def test_observations_it_cannot_read_are_refused_in_one_line_with_a_way_out(space, way_out):
    with pytest.raises(ConfigError) as caught:
        make_policy(spec_of(space))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("policy=mlp cannot read")
    assert way_out in message


@pytest.mark.parametrize("space", [spaces.Dict(a=spaces.Discrete(2)), spaces.Text(5), spaces.Box(0, 9, (2,), np.int64)])
def test_actions_it_cannot_give_are_refused_in_one_line(space):
    with pytest.raises(ConfigError) as caught:
        make_policy(spec_of(VECTOR, space))
    assert "\n" not in str(caught.value)
    assert "wrap the env" in str(caught.value)


def test_a_state_dependent_std_of_discrete_actions_is_refused():
    with pytest.raises(ConfigError, match=r"state_dependent_std=true: needs Box actions, not Discrete\(3\)"):
        make_policy(spec_of(VECTOR, spaces.Discrete(3)), state_dependent_std=True)


def test_squash_without_bounds_is_refused():
    with pytest.raises(ConfigError, match=r"squash=true.*bounds must be finite"):
        make_policy(spec_of(VECTOR, spaces.Box(-np.inf, np.inf, (2,))), squash=True)
