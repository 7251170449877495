"""Each objective against plain arithmetic and finite differences, on every branch, and against planted mistakes."""

import itertools
import math

import numpy as np
import pytest
import torch

from parl_cli.functional.losses import ppo_clip_loss
from parl_cli.functional.trust_region import (
    ppo_rb_loss,
    ratio_trigger,
    tr_ppo_loss,
    tr_ppo_rb_loss,
    truly_ppo_loss,
    trust_region_trigger,
)

EPS, DELTA, SLOPE, ALPHA, LIKELIHOOD = 0.2, 0.03, -0.3, 5.0, 0.7
FAMILY = ("ppo_rb", "tr_ppo", "tr_ppo_rb", "truly_ppo")


def oracle(name, log_ratio, advantage, kl, *, frozen):
    """What one sample maximises, written out; `frozen` is the ratio that a stop-gradient holds."""
    ratio = math.exp(log_ratio)
    if name == "ppo_rb":
        if advantage >= 0:
            inside = ratio <= 1 + EPS
            return (ratio if inside else SLOPE * ratio + (1 - SLOPE) * (1 + EPS)) * advantage
        inside = ratio >= 1 - EPS
        return (ratio if inside else SLOPE * ratio + (1 - SLOPE) * (1 - EPS)) * advantage
    went_too_far = kl >= DELTA and (ratio > 1 if advantage > 0 else ratio < 1)
    if not went_too_far:
        return ratio * advantage
    if name == "tr_ppo":
        return frozen * advantage
    if name == "tr_ppo_rb":
        return (SLOPE * ratio + (1 - SLOPE) * frozen) * advantage
    return LIKELIHOOD * ratio * advantage - ALPHA * kl


def every_branch():
    """Rows (log ratio, advantage, KL): each sign of A, each side of 1 and of 1 ± eps, each side of delta."""
    rng = np.random.default_rng(0)
    ratios = [(0.3, 0.7), (0.85, 0.98), (1.02, 1.15), (1.3, 3.0)]
    kls = [(0.001, 0.025), (0.035, 0.5)]
    rows = [
        (math.log(rng.uniform(*ratio)), sign * rng.uniform(0.1, 2.0), rng.uniform(*kl))
        for ratio, sign, kl in itertools.product(ratios, (-1, 1), kls)
        for _ in range(5)
    ]
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


def loss_of(name, kl_trigger=trust_region_trigger, beyond=ratio_trigger):
    """The implementation as one function of (ratio, advantage, kl), with a trigger that may be wrong."""

    def loss(ratio, advantage, kl):
        if name == "ppo_rb":
            fired = beyond(ratio, advantage, EPS)
            return ppo_rb_loss(ratio, advantage, fired, clip_range=EPS, slope_rollback=SLOPE)
        fired = kl_trigger(ratio, advantage, kl, DELTA)
        if name == "tr_ppo":
            return tr_ppo_loss(ratio, advantage, fired)
        if name == "tr_ppo_rb":
            return tr_ppo_rb_loss(ratio, advantage, fired, slope_rollback=SLOPE)
        return truly_ppo_loss(ratio, advantage, kl, fired, alpha=ALPHA, slope_likelihood=LIKELIHOOD)

    return loss


def assert_matches_oracle(name, loss):
    log_ratio, advantage, kl = every_branch()
    log_ratio, kl = log_ratio.requires_grad_(), kl.requires_grad_()
    losses = loss(log_ratio.exp(), advantage, kl)
    by_log_ratio, by_kl = torch.autograd.grad(losses.sum(), (log_ratio, kl), materialize_grads=True)
    h = 1e-6
    for i, (x, a, d) in enumerate(zip(log_ratio.tolist(), advantage.tolist(), kl.tolist(), strict=True)):
        frozen = math.exp(x)

        def objective(x, d, a=a, frozen=frozen):
            return oracle(name, x, a, d, frozen=frozen)

        assert losses[i].item() == pytest.approx(-objective(x, d), abs=1e-12)
        slope = (objective(x + h, d) - objective(x - h, d)) / (2 * h)
        assert by_log_ratio[i].item() == pytest.approx(-slope, abs=1e-7)
        slope = (objective(x, d + h) - objective(x, d - h)) / (2 * h)
        assert by_kl[i].item() == pytest.approx(-slope, abs=1e-7)


@pytest.mark.parametrize("name", FAMILY)
def test_value_and_gradient_are_the_oracles_on_every_branch(name):
    assert_matches_oracle(name, loss_of(name))


PLANTED_TRIGGERS = {
    "sign of the advantage ignored": lambda r, a, kl, delta: (kl >= delta) & (r > 1),
    "sign of the advantage turned round": lambda r, a, kl, delta: (kl >= delta) & (r * a < a),
    "KL alone": lambda r, a, kl, delta: kl >= delta,
    "ratio alone": lambda r, a, kl, delta: r * a > a,
    "inside instead of outside": lambda r, a, kl, delta: (kl < delta) & (r * a > a),
}


@pytest.mark.parametrize("mistake", PLANTED_TRIGGERS)
@pytest.mark.parametrize("name", ["tr_ppo", "tr_ppo_rb", "truly_ppo"])
def test_oracle_finds_a_wrong_trigger(name, mistake):
    with pytest.raises(AssertionError):
        assert_matches_oracle(name, loss_of(name, kl_trigger=PLANTED_TRIGGERS[mistake]))


@pytest.mark.parametrize(
    "beyond",
    [
        lambda r, a, eps: (r - 1).abs() > eps,
        lambda r, a, eps: torch.where(a >= 0, r < 1 - eps, r > 1 + eps),
        lambda r, a, eps: r > 1 + eps,
    ],
    ids=["sign of the advantage ignored", "sign turned round", "upper edge alone"],
)
def test_oracle_finds_a_wrong_ratio_trigger(beyond):
    with pytest.raises(AssertionError):
        assert_matches_oracle("ppo_rb", loss_of("ppo_rb", beyond=beyond))


def fired(ratio, advantage, kl):
    return trust_region_trigger(ratio, advantage, kl, DELTA)


PLANTED_LOSSES = {
    "tr_ppo": lambda r, a, kl: -r * a,
    "tr_ppo_rb": lambda r, a, kl: -torch.where(fired(r, a, kl), SLOPE * r + (1 - SLOPE) * r, r) * a,
    "truly_ppo": lambda r, a, kl: -torch.where(fired(r, a, kl), LIKELIHOOD * r * a + ALPHA * kl, r * a),
    "ppo_rb": lambda r, a, kl: ppo_clip_loss(r, a, EPS),
}


@pytest.mark.parametrize("name", FAMILY)
def test_oracle_finds_a_wrong_objective(name):
    with pytest.raises(AssertionError):
        assert_matches_oracle(name, PLANTED_LOSSES[name])


@pytest.mark.parametrize(
    ("ratio", "advantage", "kl", "fires"),
    [
        (1.5, 1.0, 0.03, True),  # the edge belongs to the outside
        (1.5, 1.0, 0.029, False),
        (0.5, 1.0, 0.1, False),  # on its way back
        (0.5, -1.0, 0.1, True),
        (1.5, -1.0, 0.1, False),  # on its way back
        (1.0, 1.0, 0.1, False),
        (1.5, 0.0, 0.1, False),
    ],
)
def test_trust_region_trigger_wants_a_large_kl_and_a_grown_objective(ratio, advantage, kl, fires):
    arguments = [torch.tensor(x, dtype=torch.float64) for x in (ratio, advantage, kl)]
    assert trust_region_trigger(*arguments, 0.03).item() is fires


def gradients(loss, *rows):
    rows = [row.detach().requires_grad_() for row in rows]
    return torch.autograd.grad(loss(*rows).sum(), rows, materialize_grads=True)


def test_the_constant_of_the_published_form_changes_no_gradient_and_makes_it_continuous():
    def published(ratio, advantage, kl):
        ours = truly_ppo_loss(ratio, advantage, kl, fired(ratio, advantage, kl), alpha=ALPHA, slope_likelihood=1.0)
        return ours + torch.where(fired(ratio, advantage, kl), 0.0, ALPHA * DELTA)

    def ours(ratio, advantage, kl):
        return truly_ppo_loss(ratio, advantage, kl, fired(ratio, advantage, kl), alpha=ALPHA, slope_likelihood=1.0)

    log_ratio, advantage, kl = every_branch()
    rows = log_ratio.exp(), advantage, kl
    for one, other in zip(gradients(ours, *rows), gradients(published, *rows), strict=True):
        assert torch.equal(one, other)
    grown = torch.tensor([1.5, 0.5], dtype=torch.float64), torch.tensor([2.0, -2.0], dtype=torch.float64)
    below, at = (torch.full((2,), kl, dtype=torch.float64) for kl in (DELTA - 1e-9, DELTA))
    torch.testing.assert_close(published(*grown, below), published(*grown, at), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours(*grown, at) - ours(*grown, below), at * ALPHA, rtol=0, atol=1e-6)


def test_rollback_is_continuous_at_the_edge_of_the_clip_range():
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
    edge = 1 + EPS * advantage
    losses = [loss_of("ppo_rb")(edge + side * 1e-9 * advantage, advantage, torch.zeros(2)) for side in (-1, 1)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)


def test_rollback_with_slope_zero_is_the_clipped_objective():
    log_ratio, advantage, _ = every_branch()

    def rolled(ratio, advantage):
        beyond = ratio_trigger(ratio, advantage, EPS)
        return ppo_rb_loss(ratio, advantage, beyond, clip_range=EPS, slope_rollback=0.0)

    def clipped(ratio, advantage):
        return ppo_clip_loss(ratio, advantage, EPS)

    rows = log_ratio.exp(), advantage
    torch.testing.assert_close(rolled(*rows), clipped(*rows))
    torch.testing.assert_close(gradients(rolled, *rows)[0], gradients(clipped, *rows)[0])


def test_trust_region_rollback_with_slope_zero_is_tr_ppo():
    log_ratio, advantage, kl = every_branch()
    rows = log_ratio.exp(), advantage, kl

    def rolled(ratio, advantage, kl):
        return tr_ppo_rb_loss(ratio, advantage, fired(ratio, advantage, kl), slope_rollback=0.0)

    torch.testing.assert_close(rolled(*rows), loss_of("tr_ppo")(*rows))
    torch.testing.assert_close(gradients(rolled, *rows)[0], gradients(loss_of("tr_ppo"), *rows)[0])


def test_a_sample_without_advantage_has_no_gradient():
    log_ratio, advantage, kl = every_branch()
    for name in FAMILY:
        by_ratio, _, by_kl = gradients(loss_of(name), log_ratio.exp(), torch.zeros_like(advantage), kl)
        assert not by_ratio.any()
        assert not by_kl.any()
