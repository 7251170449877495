import pytest
import torch
from torch import nn

from parl_cli.algos.common import load_optimizer_state, optimizer_state
from parl_cli.algos.flat_adam import FlatAdam
from parl_cli.policies.fused import FlatParameters
from tests.helpers.saved import as_saved

LEARNING_RATES = [0.05, 0.01]


def network(seed=0, width=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 2))


def groups(net):
    return [list(net[0].parameters()), list(net[2].parameters())]


def flat_adam(net):
    backwards = FlatParameters(list(net.parameters())[::-1])  # memory need not be in the groups' order
    optimizer = FlatAdam(backwards, groups(net), learning_rate=LEARNING_RATES[0], eps=1e-5)
    optimizer.learning_rates = list(LEARNING_RATES)
    return optimizer


def torch_adam(net):
    parts = [{"params": p, "lr": lr} for p, lr in zip(groups(net), LEARNING_RATES, strict=True)]
    return torch.optim.Adam(parts, eps=1e-5)


def backward(net, k):
    torch.manual_seed(k)
    net(torch.randn(16, net[0].in_features)).square().mean().backward()


def flat_steps(net, optimizer, steps, max_norm=None):
    for k in steps:
        optimizer.zero_grad()
        backward(net, k)
        optimizer.step(max_norm)


def torch_steps(net, optimizer, steps, max_norm=float("inf")):
    for k in steps:
        optimizer.zero_grad()
        backward(net, k)
        nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()


def assert_same(net, other, atol=1e-6):
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("max_norm", [None, 1e9, 0.1, 1e-3])
def test_steps_are_those_of_torch_with_a_rate_per_group_and_clipping(max_norm):
    net, other = network(), network()
    flat_steps(net, flat_adam(net), range(20), max_norm)
    torch_steps(other, torch_adam(other), range(20), max_norm or float("inf"))
    assert (net[0].weight - network()[0].weight).abs().max() > 0.1
    assert_same(net, other, atol=5e-6)  # torch divides by the norm + 1e-6


def test_step_gives_the_norm_before_clipping():
    net, other = network(), network()
    optimizer = flat_adam(net)
    backward(net, 0)
    backward(other, 0)
    expected = nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    torch.testing.assert_close(optimizer.step(1e-4), expected)


def test_a_learning_rate_of_zero_moves_nothing():
    net = network()
    optimizer = flat_adam(net)
    optimizer.learning_rates = [0.0, 0.1]
    flat_steps(net, optimizer, range(3))
    assert torch.equal(net[0].weight, network()[0].weight)
    assert not torch.equal(net[2].weight, network()[2].weight)


def test_its_state_goes_on_bit_for_bit():
    net, heir = network(), network(seed=1)
    optimizer, heirs = flat_adam(net), flat_adam(heir)
    flat_steps(net, optimizer, range(3), 0.5)
    heir.load_state_dict(net.state_dict())
    heirs.load_state_dict(as_saved(optimizer.state_dict()))
    for one, its in ((net, optimizer), (heir, heirs)):
        flat_steps(one, its, range(3, 6), 0.5)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(net.parameters(), heir.parameters(), strict=True))


def test_states_of_torch_s_adam_are_taken_and_given():
    net, other = network(), network()
    ours, theirs = flat_adam(net), torch_adam(other)
    torch_steps(other, theirs, range(3))
    net.load_state_dict(other.state_dict())
    ours.load_state_dict(as_saved(optimizer_state(theirs)))
    flat_steps(net, ours, range(3, 6))
    torch_steps(other, theirs, range(3, 6))
    assert_same(net, other)
    fresh = torch_adam(network())
    load_optimizer_state(fresh, as_saved(ours.state_dict()))
    assert {int(entry["step"]) for entry in fresh.state.values()} == {6}


def test_the_state_before_the_first_step_may_be_empty():
    net, other = network(), network()
    optimizer = flat_adam(net)
    flat_steps(net, optimizer, range(3))
    optimizer.load_state_dict({})
    net.load_state_dict(other.state_dict())
    flat_steps(net, optimizer, range(3))
    flat_steps(other, flat_adam(other), range(3))
    assert_same(net, other)


def test_state_of_another_network_is_refused():
    net, wide = network(), network(width=5)
    optimizer, other = flat_adam(net), flat_adam(wide)
    flat_steps(net, optimizer, range(2))
    flat_steps(wide, other, range(2))
    good, count = as_saved(optimizer.state_dict()), torch.tensor
    bad_steps = [count(7.0), count(-1.0), count(torch.nan), count(torch.inf), count([2.0])]
    for bad in (
        as_saved(other.state_dict()),
        {"0": good["0"]},
        {str(i): good["0"] for i in range(9)},
        good | {"1": good["1"] | {"exp_avg": good["1"]["exp_avg"].long()}},
        *(good | {"1": good["1"] | {"step": step}} for step in bad_steps),
    ):
        with pytest.raises(ValueError, match=r"^optimizer state"):
            flat_adam(network()).load_state_dict(bad)
