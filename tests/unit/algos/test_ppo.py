"""PPO's mechanics: every field of the config has an effect that a test sees."""

import dataclasses
import itertools
import math

import pytest
import torch

from parl_cli.algos import ppo
from parl_cli.algos.ppo import MAX_ADAPTIVE_LR, MIN_ADAPTIVE_LR, PPO, PPOConfig
from parl_cli.algos.ppo_rb import PPORB
from parl_cli.algos.tr_ppo import TRPPO
from parl_cli.algos.tr_ppo_rb import TRPPORB
from parl_cli.algos.truly_ppo import TrulyPPO
from parl_cli.errors import ConfigError
from parl_cli.functional.advantages import gae
from parl_cli.policies.actor_critic import ActorCritic
from tests.helpers.rollouts import ACTION_SPACES, VECTOR, clone, random_rollout, spec_of
from tests.helpers.saved import as_saved
from tests.helpers.stubs import make_policy, train_config

ONE_STEP = {"num_epochs": 1, "num_minibatches": 1}


def make(action="discrete", *, policy=None, seed=0, **changes):
    """An algorithm and the first rollout for it."""
    action_space, squash = ACTION_SPACES[action]
    spec = spec_of(VECTOR, action_space)
    network = make_policy(spec, squash=squash, **({"policy_gain": 1.0} | (policy or {})))
    config = PPOConfig(**({"num_steps": 8, "num_epochs": 2, "num_minibatches": 2} | changes))
    return PPO(network, config, seed=seed), random_rollout(network, spec)


def weights(algo):
    return torch.cat([p.detach().flatten() for p in algo.policy.parameters()]).clone()


def updated(rollout=None, progress=0.0, **changes):
    """The weights after one update."""
    algo, own = make(**changes)
    algo.update(rollout or own, progress)
    return weights(algo)


def quiet(rollout):
    """Rewards that the critic expects, so that every advantage is 0."""
    rollout.reward.zero_()
    return rollout


def test_the_first_minibatch_of_the_first_epoch_sees_the_policy_that_acted():
    for action in ACTION_SPACES:
        algo, rollout = make(action, **ONE_STEP)
        metrics = algo.update(rollout)
        assert metrics["policy/approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["policy/clip_fraction"] == 0.0


@pytest.mark.parametrize("cls", [PPO, PPORB, TRPPO, TRPPORB, TrulyPPO])
def test_a_ratio_beyond_all_numbers_leaves_the_weights_finite(cls):
    algo, rollout = make("box")
    algo = cls(algo.policy, cls.Config(num_steps=8, num_minibatches=1, num_epochs=1))
    rollout.extras["log_prob"][0, 0] = -200.0
    metrics = algo.update(rollout)
    assert math.isfinite(metrics["loss/policy"])
    assert weights(algo).isfinite().all()


class OwnFeatures(ActorCritic):
    """A policy of somebody else's that learns what it makes of observations."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.own = torch.nn.Linear(*VECTOR.shape, *VECTOR.shape)

    def features(self, obs):
        return self.own(super().features(obs))


def test_features_that_are_learned_are_made_anew_for_every_minibatch():
    algo, rollout = make()
    policy = make_policy(spec_of(VECTOR, ACTION_SPACES["discrete"][0]), cls=OwnFeatures)
    before = policy.own.weight.clone()
    PPO(policy, algo.config).update(rollout)
    assert not torch.equal(policy.own.weight, before)


def test_later_minibatches_do_not():
    algo, rollout = make(num_epochs=4, learning_rate=0.01)
    assert algo.update(rollout)["policy/approx_kl"] > 1e-4


def test_all_epochs_and_minibatches_are_taken():
    algo, rollout = make(num_epochs=3, num_minibatches=4)
    metrics = algo.update(rollout)
    assert metrics["optim/epochs"] == 3
    assert {int(entry["step"]) for entry in algo.state_dict()["optimizer"].values()} == {12}


@pytest.mark.parametrize(("target_kl", "epochs"), [(1e-9, 1), (1e9, 5), (None, 5)])
def test_target_kl_stops_the_epochs(target_kl, epochs):
    algo, rollout = make(num_epochs=5, target_kl=target_kl)
    assert algo.update(rollout)["optim/epochs"] == epochs


def test_advantages_are_gae_with_the_config_s_gamma_and_lambda():
    for gamma, lam in ((0.9, 0.5), (1.0, 1.0), (0.0, 0.95)):
        algo, rollout = make(gamma=gamma, gae_lambda=lam, normalize_advantage=False, **ONE_STEP)
        value, following = algo.policy.values(rollout)
        advantage = gae(rollout.reward, value, following, rollout.terminated, rollout.truncated, gamma=gamma, lam=lam)
        metrics = algo.update(rollout)
        assert metrics["loss/policy"] == pytest.approx(-float(advantage.mean()), abs=1e-5)
        assert metrics["loss/value"] == pytest.approx(0.5 * float(advantage.square().mean()), rel=1e-5)


def test_normalized_advantages_have_no_mean_and_no_scale():
    algo, rollout = make(**ONE_STEP, gamma=0.0, value_coef=0.0)
    assert algo.update(rollout)["loss/policy"] == pytest.approx(0.0, abs=1e-5)
    value, _ = algo.policy.values(rollout)
    louder = clone(rollout)
    louder.reward = value + 100 * (rollout.reward - value) + 7
    raw = {"normalize_advantage": False, "gamma": 0.0, "value_coef": 0.0, "max_grad_norm": None}
    normalized = raw | {"normalize_advantage": True}
    torch.testing.assert_close(updated(louder, **normalized), updated(rollout, **normalized), atol=1e-4, rtol=0)
    assert (updated(louder, **raw) - updated(rollout, **raw)).abs().max() > 1e-4


def test_values_move_less_with_a_value_clip_range():
    def move(clip):
        algo, rollout = make(num_epochs=10, learning_rate=0.01, value_clip_range=clip)
        rollout.reward += 3.0
        before, _ = algo.policy.values(rollout)
        algo.update(rollout)
        return float((algo.policy.values(rollout)[0] - before).abs().mean())

    assert move(0.05) < 0.5 * move(None)
    assert move(1e6) == move(None)


def test_only_the_entropy_bonus_moves_a_policy_without_advantages():
    options = {"policy": {"value_gain": 1e-9}, "normalize_advantage": False, "num_epochs": 4, "learning_rate": 0.01}

    def run(**changes):
        algo, rollout = make(**options, **changes)
        head = algo.policy.policy_head.weight.detach().clone()
        first = algo.update(quiet(rollout))["policy/entropy"]
        entropy = algo.policy.evaluate(rollout.obs)[0].entropy().mean().detach()
        return (algo.policy.policy_head.weight - head).abs().max(), float(entropy) - first

    still, _ = run(entropy_coef=0.0)
    moved, gained = run(entropy_coef=1.0)
    assert still < 1e-4
    assert moved > 1e-3
    assert gained > 0


@pytest.mark.parametrize(
    ("kind", "shares"), [("constant", (1, 1, 1)), ("linear", (1, 0.75, 0.5)), ("cosine", (1, 0.75, 0.5))]
)
def test_learning_rate_schedule_ends_at_its_share(kind, shares):
    algo, rollout = make(
        learning_rate=0.02, critic_learning_rate=0.01, learning_rate_schedule=kind, learning_rate_end=0.5
    )
    for progress, share in zip((0.0, 0.5, 1.0), shares, strict=True):
        metrics = algo.update(rollout, progress)
        assert metrics["optim/learning_rate"] == pytest.approx(0.02 * share)
        assert metrics["optim/critic_learning_rate"] == pytest.approx(0.01 * share)


def test_a_learning_rate_that_ended_at_zero_moves_nothing():
    algo, rollout = make(learning_rate_schedule="linear")
    before = weights(algo)
    algo.update(rollout, progress=1.0)
    assert torch.equal(weights(algo), before)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_clip_range_and_entropy_coef_schedules_end_at_zero(kind):
    algo, rollout = make(
        clip_range=0.4, clip_range_schedule=kind, entropy_coef=0.2, entropy_coef_schedule=kind, num_epochs=1
    )
    for progress, share in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        metrics = algo.update(rollout, progress)
        assert metrics["algo/clip_range"] == pytest.approx(0.4 * share)
        assert metrics["algo/entropy_coef"] == pytest.approx(0.2 * share)


def test_scheduled_values_reach_the_loss():
    late = {"progress": 0.5, "num_epochs": 8, "learning_rate": 0.01}
    halved = updated(**late, clip_range=0.2, clip_range_schedule="linear")
    assert torch.equal(halved, updated(**late, clip_range=0.1))
    assert not torch.equal(halved, updated(**late, clip_range=0.2))
    bonus = updated(**late, entropy_coef=0.2, entropy_coef_schedule="linear")
    assert torch.equal(bonus, updated(**late, entropy_coef=0.1))
    assert not torch.equal(bonus, updated(**late, entropy_coef=0.2))


def adaptive(**changes):
    return make(learning_rate_schedule="kl_adaptive", num_epochs=1, num_minibatches=4, **changes)


def test_kl_adaptive_lowers_the_rate_down_to_its_bound():
    algo, rollout = adaptive(target_kl=1e-9, learning_rate=1e-3)
    rates = [algo.update(rollout)["optim/learning_rate"] for _ in range(20)]
    assert rates[0] == pytest.approx(1e-3 / 1.5)
    assert rates[-1] == MIN_ADAPTIVE_LR
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))


def test_kl_adaptive_raises_the_rate_up_to_its_bound():
    algo, rollout = adaptive(target_kl=1e9, learning_rate=1e-3)
    rates = [algo.update(rollout)["optim/learning_rate"] for _ in range(10)]
    assert rates[0] == pytest.approx(1.5e-3)
    assert rates[-1] == MAX_ADAPTIVE_LR


def test_kl_adaptive_leaves_a_rate_alone_that_hits_the_target():
    probe, rollout = make(num_epochs=1, num_minibatches=4, learning_rate=1e-3)
    kl = probe.update(rollout)["policy/approx_kl"]
    algo, rollout = adaptive(target_kl=kl, learning_rate=1e-3)
    assert algo.update(rollout)["optim/learning_rate"] == 1e-3


def test_kl_adaptive_steers_both_rates_and_stops_no_epoch():
    algo, rollout = make(
        learning_rate_schedule="kl_adaptive",
        target_kl=1e-9,
        learning_rate=1e-3,
        critic_learning_rate=4e-3,
        num_epochs=3,
    )
    metrics = algo.update(rollout)
    assert metrics["optim/epochs"] == 3
    assert metrics["optim/learning_rate"] == pytest.approx(1e-3 / 1.5**3)
    assert metrics["optim/critic_learning_rate"] == pytest.approx(4e-3 / 1.5**3)


@pytest.mark.parametrize("rate", [MIN_ADAPTIVE_LR / 2, MAX_ADAPTIVE_LR * 2])
def test_a_rate_outside_the_adaptive_bounds_is_refused(rate):
    algo = PPOConfig(learning_rate_schedule="kl_adaptive", target_kl=0.01, learning_rate=rate)
    with pytest.raises(ConfigError, match=r"algo\.learning_rate=.*between 1e-05 and 0\.01"):
        PPO.check(train_config(algo=algo), spec_of())


@pytest.mark.parametrize("shared", [False, True])
def test_critic_learning_rate_is_for_the_critic_alone_and_a_shared_trunk_is_the_actor_s(shared):
    algo, rollout = make(policy={"shared_trunk": shared}, learning_rate=1e-12, critic_learning_rate=0.01)
    before = {name: p.detach().clone() for name, p in algo.policy.named_parameters()}
    algo.update(rollout)
    for name, parameter in algo.policy.named_parameters():
        moved = float((parameter.detach() - before[name]).abs().max())
        assert (moved > 1e-3) if name.startswith("value_") else (moved < 1e-9), name
    assert any(name.startswith("value_trunk") for name in before) != shared


def test_without_its_own_rate_the_critic_has_the_common_one():
    algo, rollout = make(learning_rate=0.01)
    metrics = algo.update(rollout)
    assert metrics["optim/critic_learning_rate"] == metrics["optim/learning_rate"] == 0.01


def test_value_coef_weighs_the_critic_s_gradient():
    algo, rollout = make(value_coef=0.0)
    before = algo.policy.value_head.weight.detach().clone()
    algo.update(rollout)
    assert torch.equal(algo.policy.value_head.weight, before)


@pytest.mark.parametrize("action", ["discrete", "multi_binary", "box", "box_squashed"])
def test_kl_penalty_loss_is_equation_8_and_its_gradient_that_of_finite_differences(action):
    algo, rollout = make(action, objective="kl_penalty", kl_penalty_coef=3.0)
    old = rollout.extras["dist_params"].double().flatten(0, 1)
    action, advantage = rollout.action.flatten(0, 1), rollout.reward.double().flatten()
    log_prob = algo.policy.distribution(old).log_prob(action)

    def losses(params):
        distribution = algo.policy.distribution(params)
        ratio = (distribution.log_prob(action) - log_prob).exp()
        batch = {"dist_params": old, "action": action, "log_prob": log_prob}
        return algo.policy_loss(ratio, advantage, distribution, batch, {"clip_range": 0.2, "entropy_coef": 0.0})[0]

    params = (old + 0.1 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    new = algo.policy.distribution(params)
    ratio = (new.log_prob(action) - log_prob).exp()
    kl = algo.policy.distribution(old).kl(new)
    assert (kl > 0).all()
    torch.testing.assert_close(losses(params), 3.0 * kl - ratio * advantage)
    assert torch.autograd.gradcheck(losses, (params,))


def test_kl_penalty_doubles_and_halves_towards_its_target():
    options = {"objective": "kl_penalty", "kl_penalty_coef": 1.0, "num_epochs": 4, "learning_rate": 0.01}
    far, rollout = make(**options, kl_penalty_target=1e-9)
    assert [far.update(rollout)["algo/kl_penalty_coef"] for _ in range(3)] == [1.0, 2.0, 4.0]
    near, rollout = make(**options, kl_penalty_target=1e9)
    assert [near.update(rollout)["algo/kl_penalty_coef"] for _ in range(3)] == [1.0, 0.5, 0.25]


def test_kl_penalty_is_adapted_to_the_kl_of_the_last_epoch(monkeypatch):
    # in the first minibatches the policy has hardly moved: a mean over all of them says little of where it went
    reached = []
    monkeypatch.setattr(ppo, "kl_penalty_coef", lambda coef, kl, target: reached.append(kl) or coef)
    algo, rollout = make(objective="kl_penalty", num_epochs=10, learning_rate=0.01, kl_penalty_coef=1e-3)
    mean = algo.update(rollout)["policy/approx_kl"]
    log_ratio = algo.policy.evaluate(rollout.obs)[0].log_prob(rollout.action) - rollout.extras["log_prob"]
    end = float((log_ratio.exp() - 1 - log_ratio).mean().detach())
    assert mean < reached[0] < end
    assert reached[0] == pytest.approx(end, rel=0.3)


def test_kl_penalty_holds_the_policy_back():
    def kl(coef):
        algo, rollout = make(objective="kl_penalty", kl_penalty_coef=coef, num_epochs=10, learning_rate=0.01)
        return algo.update(rollout)["policy/approx_kl"]

    assert kl(30.0) < 0.2 * kl(0.0)


def test_clip_range_holds_the_policy_back():
    def kl(clip_range):
        algo, rollout = make(clip_range=clip_range, num_epochs=20, learning_rate=0.01)
        return algo.update(rollout)["policy/approx_kl"]

    assert kl(0.02) < 0.5 * kl(10.0)


@pytest.mark.parametrize("max_grad_norm", [0.01, 1e6, None])
def test_gradients_are_clipped_to_max_grad_norm_and_reported_as_they_were(max_grad_norm):
    algo, rollout = make(max_grad_norm=max_grad_norm, **ONE_STEP)
    reported = algo.update(rollout)["optim/grad_norm"]
    left = float(torch.cat([p.grad.flatten() for p in algo.policy.parameters()]).norm())
    assert reported > 0.02
    assert left == pytest.approx(min(reported, max_grad_norm or math.inf), rel=1e-4)


def test_no_gradient_clipping_is_that_of_an_endless_bound():
    rates = {"num_epochs": 4, "learning_rate": 0.01}
    assert torch.equal(updated(max_grad_norm=None, **rates), updated(max_grad_norm=1e9, **rates))
    assert not torch.equal(updated(max_grad_norm=None, **rates), updated(max_grad_norm=0.01, **rates))


def test_adam_eps_reaches_the_optimizer():
    assert (updated(adam_eps=1e-5) - updated(adam_eps=1.0)).abs().max() > 1e-4


def test_the_seed_shuffles_the_minibatches():
    assert torch.equal(updated(seed=3), updated(seed=3))
    assert not torch.equal(updated(seed=3), updated(seed=4))


def test_std_of_a_gaussian_policy_is_told():
    algo, rollout = make("box", policy={"log_std_init": -1.0})
    assert algo.update(rollout)["policy/std_mean"] == pytest.approx(math.exp(-1.0))
    algo, rollout = make()
    assert "policy/std_mean" not in algo.update(rollout)


def test_explained_variance_is_that_of_the_values_before_the_update():
    algo, rollout = make(gamma=0.0, **ONE_STEP)  # the returns are the rewards
    value, _ = algo.policy.values(rollout)
    expected = 1 - (rollout.reward - value).var() / rollout.reward.var()
    assert algo.update(rollout)["value/explained_variance"] == pytest.approx(float(expected), abs=1e-5)


def test_clip_fraction_is_the_share_of_ratios_beyond_the_clip_range():
    def share(clip_range):
        algo, rollout = make(clip_range=clip_range, num_epochs=2, num_minibatches=1, learning_rate=0.01)
        return algo.update(rollout)["policy/clip_fraction"]

    # one step moved the policy; the second minibatch sees its ratios
    algo, rollout = make(**ONE_STEP, learning_rate=0.01)
    algo.update(rollout)
    ratio = (algo.policy.evaluate(rollout.obs)[0].log_prob(rollout.action) - rollout.extras["log_prob"]).exp()
    for clip_range in (0.005, 0.02):
        beyond = float(((ratio - 1).abs() > clip_range).float().mean())
        assert 0.1 < beyond < 1.0
        assert share(clip_range) == pytest.approx(beyond / 2, abs=0.02)


# ---- masks ----


def masked(rollout, rows):
    rollout = clone(rollout)
    for t, n in rows:
        rollout.mask[t, n] = False
    return rollout


@pytest.mark.parametrize("action", ["discrete", "box", "multi_binary"])
@pytest.mark.parametrize("recipe", [{}, {"objective": "kl_penalty"}, {"value_clip_range": 0.1, "entropy_coef": 0.1}])
def test_what_masked_rows_hold_changes_nothing(action, recipe):
    _, rollout = make(action, **recipe)
    rollout.terminated[3, 1] = True  # so that nobody bootstraps from the masked row that follows
    rollout = masked(rollout, [(4, 1), (5, 1), (7, 2)])
    spoiled = clone(rollout)
    for t, n in ((4, 1), (5, 1)):
        spoiled.obs[t, n] = 100.0
    spoiled.action[~rollout.mask] = 1 if action != "box" else 1e3
    spoiled.reward[~rollout.mask] = 1e6
    spoiled.extras["log_prob"][~rollout.mask] = -1e6  # a ratio that overflows
    spoiled.extras["dist_params"][~rollout.mask] = 5.0
    clean = updated(rollout, action=action, **recipe)
    assert torch.isfinite(clean).all()
    assert torch.equal(updated(spoiled, action=action, **recipe), clean)
    assert not torch.equal(updated(make(action)[1], action=action, **recipe), clean)


def test_a_row_before_a_gap_is_cut_like_a_time_limit():
    _, rollout = make()
    for flag in (rollout.terminated, rollout.truncated):
        flag.zero_()
    rollout.final_index, rollout.final_obs = rollout.final_index[:0], rollout.final_obs[:0]
    gap = masked(rollout, [(4, 1), (5, 1)])
    limit = clone(gap)
    limit.truncated[3, 1] = True
    limit.final_index, limit.final_obs = torch.tensor([[3, 1]]), rollout.obs[4:5, 1]
    torch.testing.assert_close(updated(gap), updated(limit), atol=1e-6, rtol=0)
    death = clone(gap)
    death.terminated[3, 1] = True
    assert (updated(gap) - updated(death)).abs().max() > 1e-5


def test_rows_after_a_gap_are_learned_from():
    _, rollout = make()
    gap = masked(rollout, [(3, 1)])
    other = clone(gap)
    other.reward[5, 1] += 1.0
    assert not torch.equal(updated(gap), updated(other))


def test_a_wholly_masked_rollout_leaves_finite_weights():
    _, rollout = make()
    rollout.mask[:] = False
    assert torch.isfinite(updated(rollout)).all()


# ---- state ----


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"learning_rate_schedule": "kl_adaptive", "target_kl": 1e-4},
        {"objective": "kl_penalty", "kl_penalty_target": 1e-9},
        {"learning_rate_schedule": "linear", "critic_learning_rate": 0.01},
    ],
)
def test_a_saved_state_goes_on_bit_for_bit(recipe):
    algo, _ = make(**recipe)
    spec = spec_of()
    rollouts = [random_rollout(algo.policy, spec, seed=seed) for seed in range(4)]
    for k, rollout in enumerate(rollouts[:2]):
        algo.update(rollout, k / 4)
    saved = as_saved(algo.state_dict())
    heir, _ = make(seed=99, policy={"hidden_gain": 3.0}, **recipe)
    heir.load_state_dict(saved)
    assert torch.equal(weights(heir), weights(algo))
    for k, rollout in enumerate(rollouts[2:], 2):
        assert algo.update(rollout, k / 4) == heir.update(rollout, k / 4)
    assert torch.equal(weights(heir), weights(algo))
    assert heir.kl_penalty_coef == algo.kl_penalty_coef
    assert heir.learning_rate == algo.learning_rate


def test_a_state_from_before_the_first_update_can_be_loaded():
    algo, rollout = make()
    heir, _ = make(seed=5)
    heir.load_state_dict(as_saved(algo.state_dict()))
    assert algo.update(rollout) == heir.update(rollout)


# ---- check ----


def refused(num_envs=4, **changes):
    config = train_config(num_envs=num_envs, algo=PPOConfig(**changes))
    with pytest.raises(ConfigError) as caught:
        PPO.check(config, spec_of())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("num_steps", "num_envs", "num_minibatches"), [(10, 3, 4), (16, 4, 100), (3, 1, 4), (5, 1, 4), (7, 1, 3)]
)
def test_advice_on_minibatches_that_do_not_divide_can_be_followed(num_steps, num_envs, num_minibatches):
    asked = PPOConfig(num_steps=num_steps, num_minibatches=num_minibatches)
    message = refused(num_envs, num_steps=num_steps, num_minibatches=num_minibatches)
    assert message.startswith(f"algo.num_minibatches={num_minibatches}: must divide")
    advice = int(message.rpartition("try algo.num_minibatches=")[2])
    PPO.check(train_config(num_envs=num_envs, algo=dataclasses.replace(asked, num_minibatches=advice)), spec_of())


def test_minibatches_of_one_step_cannot_be_normalised():
    message = refused(num_envs=2, num_steps=4, num_minibatches=8)
    assert message.startswith("algo.num_minibatches=8: leaves one step per minibatch")
    one = PPOConfig(num_steps=4, num_minibatches=8, normalize_advantage=False)
    PPO.check(train_config(num_envs=2, algo=one), spec_of())


def test_a_rollout_of_one_step_is_told_the_only_way_out():
    message = refused(num_envs=1, num_steps=1, num_minibatches=1)
    assert "algo.normalize_advantage=false" in message


def test_kl_adaptive_needs_a_target():
    assert "add algo.target_kl=0.01" in refused(learning_rate_schedule="kl_adaptive")
