"""The fused network against the modules that own its parameters, and against finite differences."""

import copy
import pickle

import pytest
import torch
from torch import nn

from parl_cli.algos.flat_adam import FlatAdam
from parl_cli.policies.actor_critic import ActorCritic
from parl_cli.policies.fused import FUSED_ACTIVATIONS, flatten
from tests.helpers.rollouts import ACTION_SPACES, VECTOR, observe, spec_of
from tests.helpers.stubs import make_policy

SHAPES = {
    "two_layers": {"hidden_sizes": [7, 7]},
    "narrowing": {"hidden_sizes": [9, 5, 4]},
    "one_layer": {"hidden_sizes": [6]},
    "linear": {"hidden_sizes": []},
    "shared": {"hidden_sizes": [7, 5], "shared_trunk": True},
    "relu": {"hidden_sizes": [7, 7], "activation": "relu"},
    "elu": {"hidden_sizes": [7, 7], "activation": "elu"},
    "state_dependent_std": {"hidden_sizes": [7, 7], "state_dependent_std": True},
}
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES)


def pair(shape="two_layers", action="box", dtype=torch.float32):
    """A fused policy and the plain one with the same weights, biases included."""
    action_space, squash = ACTION_SPACES[action]
    plain = make_policy(spec_of(VECTOR, action_space), squash=squash, policy_gain=1.0, **SHAPES[shape]).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    fused = copy.deepcopy(plain)
    fused.flatten()
    plain.fused = None
    return fused, plain


def some_loss(policy, obs):
    """Depends on every distribution parameter and on the value, and on each in another way."""
    distribution, value = policy.evaluate(obs)
    action = torch.full((*value.shape, 2), 0.3, dtype=value.dtype)
    return (distribution.log_prob(action) * value.sin()).mean() + 0.1 * distribution.entropy().mean()


@EVERY_SHAPE
@pytest.mark.parametrize("lead", [(5,), (3, 2), (2, 3, 2), (0,)])
def test_outputs_are_those_of_the_modules(shape, lead):
    fused, plain = pair(shape)
    obs = observe(VECTOR, *lead)
    for policy in (fused, plain):
        assert policy.evaluate(obs)[1].requires_grad
    (mine, value), (theirs, their_value) = fused.evaluate(obs), plain.evaluate(obs)
    assert value.shape == lead
    torch.testing.assert_close(mine.mean, theirs.mean)
    torch.testing.assert_close(mine.log_std, theirs.log_std)
    torch.testing.assert_close(value, their_value)


@EVERY_SHAPE
def test_gradients_are_those_of_the_modules_and_reach_the_parameters(shape):
    fused, plain = pair(shape)
    obs = observe(VECTOR, 33)
    for policy in (fused, plain):
        some_loss(policy, obs).backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    assert all(grad.abs().max() > 0 for grad in expected.values())
    for name, parameter in fused.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5)


@EVERY_SHAPE
def test_gradients_are_those_of_finite_differences(shape):
    fused, _ = pair(shape, dtype=torch.float64)
    obs = observe(VECTOR, 3).double().requires_grad_()

    def outputs(flat, obs):
        return fused.fused(obs)

    assert torch.autograd.gradcheck(outputs, (fused.fused.flat.leaf, obs))


def test_gradients_add_up_until_they_are_zeroed_whichever_way_they_came():
    fused, plain = pair()
    obs = observe(VECTOR, 8)
    for policy in (fused, plain):
        some_loss(policy, obs).backward()
        some_loss(policy, obs).backward()
        sum(p.square().sum() for p in policy.parameters()).backward()  # not through the fused node
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    fused.fused.flat.grad.zero_()
    assert not any(p.grad.any() for p in fused.parameters())


def test_parameters_of_other_parts_lie_behind_and_get_no_gradient():
    policy = make_policy(spec_of(VECTOR, ACTION_SPACES["box"][0]), policy_gain=1.0)
    policy.other = nn.Parameter(torch.ones(5))
    flat = policy.flatten()
    assert torch.equal(flat.data[-5:], torch.ones(5))
    some_loss(policy, observe(VECTOR, 8)).backward()
    assert not policy.other.grad.any()
    assert policy.log_std.grad.all()


def test_a_subclass_that_changes_the_parameters_is_not_fused():
    class Colder(ActorCritic):
        def params(self, hidden):
            return 2.0 * super().params(hidden)

    policy = make_policy(spec_of(), Colder, policy_gain=1.0)
    policy.flatten()
    assert policy.fused is None
    warm = make_policy(spec_of(), policy_gain=1.0)
    obs = observe(VECTOR, 4)
    expected = torch.log_softmax(2.0 * warm.policy_head(warm.policy_trunk(obs)), dim=-1)
    torch.testing.assert_close(policy.evaluate(obs)[0].log_probs, expected)


def test_a_second_derivative_is_refused_rather_than_wrong():
    fused, _ = pair()
    value = fused.evaluate(observe(VECTOR, 4))[1]
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(value.sum(), fused.fused.flat.leaf, create_graph=True)


def test_parameters_keep_names_shapes_and_values_and_share_one_storage():
    fused, plain = pair()
    assert list(fused.state_dict()) == list(plain.state_dict())
    flat = fused.fused.flat
    assert len(flat.data) == sum(p.numel() for p in plain.parameters())
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert isinstance(mine, nn.Parameter)
        assert torch.equal(mine, theirs)
        assert mine.untyped_storage().data_ptr() == flat.data.untyped_storage().data_ptr()
    flat.data.zero_()
    assert not any(p.any() for p in fused.parameters())
    fused.load_state_dict(plain.state_dict())
    assert float(flat.data.square().sum()) > 1.0
    assert all(torch.equal(p, q) for p, q in zip(fused.parameters(), plain.parameters(), strict=True))


def test_values_without_gradients_are_those_of_the_parameters_even_if_replaced():
    fused, plain = pair()
    obs = observe(VECTOR, 4)
    vector = torch.cat([p.detach().flatten() for p in plain.parameters()])
    for policy in (fused, plain):
        nn.utils.vector_to_parameters(2 * vector, policy.parameters())
    with torch.no_grad():
        torch.testing.assert_close(fused.evaluate(obs)[1], plain.evaluate(obs)[1])


@pytest.mark.parametrize(
    "replace",
    [lambda p: p.double(), lambda p: nn.utils.vector_to_parameters(torch.ones(99), p.parameters())],
    ids=["moved", "replaced"],
)
def test_learning_parameters_that_are_views_no_longer_is_refused(replace):
    policy = make_policy(spec_of(VECTOR), hidden_sizes=[6])
    optimizer = FlatAdam(flatten(policy), [list(policy.parameters())], learning_rate=0.1, eps=1e-5)
    optimizer.step()
    replace(policy)
    with pytest.raises(RuntimeError, match="moved or replaced"):
        optimizer.step()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["copy", "pickle"])
def test_a_copy_is_a_network_of_its_own(duplicate):
    fused, _ = pair()
    obs = observe(VECTOR, 4)
    twin = duplicate(fused)
    assert twin.fused.flat is None
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        assert not twin.evaluate(obs)[1].any()
        assert fused.evaluate(obs)[1].any()
    some_loss(twin, obs).backward()
    assert not fused.fused.flat.grad.any()
    assert twin.value_head.bias.grad.any()


@pytest.mark.parametrize(
    "changes", [{"norm": "layer"}, {"activation": "gelu"}, {"gsde": True}], ids=["norm", "activation", "gsde"]
)
def test_what_cannot_be_fused_learns_through_its_modules(changes):
    policy = make_policy(spec_of(VECTOR, ACTION_SPACES["box"][0]), policy_gain=1.0, **changes)
    flat = policy.flatten()
    assert policy.fused is None
    some_loss(policy, observe(VECTOR, 8)).backward()
    assert all(p.grad.abs().max() > 0 for p in policy.parameters())
    assert torch.equal(torch.cat([p.grad.flatten() for p in policy.parameters()]), flat.grad)


@pytest.mark.parametrize("activation", list(FUSED_ACTIVATIONS))
def test_activations_keep_nan_and_take_infinity(activation):
    z = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1e-20, 30.0])
    expected = activation()(z)
    torch.testing.assert_close(
        FUSED_ACTIVATIONS[activation].apply_(z.clone()), expected, equal_nan=True, atol=1e-7, rtol=1e-6
    )
