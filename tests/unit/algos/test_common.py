import pytest
import torch
from torch import nn

from parl_cli.algos.common import load_optimizer_state, optimizer_state
from tests.helpers.saved import as_saved


def stepped(num_steps=2, seed=0, width=3):
    torch.manual_seed(seed)
    layer = nn.Linear(width, 2)
    optimizer = torch.optim.Adam([{"params": [layer.weight]}, {"params": [layer.bias]}], lr=0.1, fused=True)
    for _ in range(num_steps):
        step(layer, optimizer)
    return layer, optimizer


def step(layer, optimizer):
    optimizer.zero_grad()
    layer(torch.ones(4, layer.in_features)).square().mean().backward()
    optimizer.step()


def test_state_is_a_tree_of_tensors_without_hyper_parameters():
    state = optimizer_state(stepped()[1])
    assert set(state) == {"0", "1"}
    assert {name for entry in state.values() for name in entry} == {"step", "exp_avg", "exp_avg_sq"}


def test_an_optimizer_goes_on_where_another_stood():
    layer, optimizer = stepped()
    heir, heirs = stepped(0, seed=1)
    heir.load_state_dict(layer.state_dict())
    load_optimizer_state(heirs, as_saved(optimizer_state(optimizer)))
    for _ in range(3):
        step(layer, optimizer)
        step(heir, heirs)
    assert torch.equal(layer.weight, heir.weight)
    assert torch.equal(layer.bias, heir.bias)


def test_learning_rates_stay_the_optimizer_s_own():
    _, other = stepped()
    _, optimizer = stepped()
    optimizer.param_groups[1]["lr"] = 0.7
    load_optimizer_state(optimizer, as_saved(optimizer_state(other)))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.7]


def test_an_unused_optimizer_has_a_state_too():
    _, optimizer = stepped()
    load_optimizer_state(optimizer, as_saved(optimizer_state(stepped(0)[1])))
    assert optimizer_state(optimizer) == {}


def test_state_of_another_network_is_refused():
    _, optimizer = stepped()
    good = as_saved(optimizer_state(stepped()[1]))
    wide = as_saved(optimizer_state(stepped(width=5)[1]))
    for bad in (
        wide,
        {"0": good["0"]},
        {"0": good["0"], "2": good["1"]},
        good | {"1": {"step": good["1"]["step"]}},
        good | {"1": good["1"] | {"exp_avg": [0.0, 0.0]}},
        good | {"1": good["1"] | {"exp_avg": torch.zeros(2, dtype=torch.int64)}},
    ):
        with pytest.raises(ValueError, match=r"^optimizer state"):
            load_optimizer_state(optimizer, bad)
