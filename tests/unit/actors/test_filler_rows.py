"""Rows in which no transition happened: nothing leaks out of them, and what came before bootstraps from its true end.

A scripted vectorizer plays one letter per step and env: `.` a step, `T` a step that terminates, `U` one that truncates,
`L` a step that was lost with its worker, `P` a pause (a backend that resets on the step after an end).
"""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.functional.advantages import gae, vtrace
from parl_cli.policies.actor_critic import ActorCritic
from parl_cli.training.learner import Learner
from parl_cli.training.reward_scaler import RewardScaler
from parl_cli.types import EnvSpec, EnvStep
from tests.helpers.rollouts import clone
from tests.helpers.stubs import GRUPolicy, make_actor, make_policy, weights_hash

GAMMA, LAMBDA = 0.9, 0.8
SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)
both_policies = pytest.mark.parametrize("policy_class", [ActorCritic, GRUPolicy])


class ScriptedVectorizer:
    """Lock-step; observations and rewards are a function of (env, how often it was asked)."""

    def __init__(self, scripts, num_agents=None, alive=None):
        self.scripts = scripts
        self.num_envs = len(scripts)
        self.num_agents = num_agents
        self.alive = alive or (lambda t: np.ones(self._lead, bool))
        self.single_action_space = spaces.Discrete(3)
        self.episode_numbers = np.zeros(self.num_envs, np.int64)
        self._lead = (self.num_envs,) if num_agents is None else (self.num_envs, num_agents)
        self._t = 0

    def _random(self, t, *shape):
        return np.random.default_rng(t).normal(size=(*self._lead, *shape)).astype(np.float32)

    def begin(self, episode_numbers=None):
        return self._random(0, 3)

    def send(self, actions, env_ids=None):
        assert env_ids is None

    def recv(self):
        letters = np.array([script[self._t] for script in self.scripts])
        alive = self.alive(self._t)
        self._t += 1

        def of(*those):
            rows = np.isin(letters, those)
            return rows if self.num_agents is None else np.repeat(rows[:, None], self.num_agents, 1)

        real = ~of("L", "P") & alive
        ended = np.isin(letters, list("TULP"))
        return EnvStep(
            env_ids=np.arange(self.num_envs),
            obs=self._random(self._t, 3),
            reward=np.where(real, self._random(1000 + self._t), np.float32(0)),
            terminated=of("T") & real,
            truncated=(of("U") & real) | of("L"),
            mask=real,
            ended=ended,
            final_obs=self._random(2000 + self._t, 3)[ended],
            episode_return=np.zeros((int(ended.sum()), *self._lead[1:])),
            episode_length=np.ones(int(ended.sum()), np.int64),
        )


def actor_of(*scripts, policy_class=ActorCritic, num_steps=None, **options):
    spec = EnvSpec("scripted", SPACE, spaces.Discrete(3), options.get("num_agents"))
    policy = make_policy(spec, policy_class)
    return make_actor(ScriptedVectorizer(scripts, **options), policy, num_steps or len(scripts[0]))


def value_of(policy, obs, state):
    """V(obs) of a policy that remembers `state`, and what it remembers afterwards."""
    if policy.state_size:
        state = policy.remember(obs[None], state[None], torch.zeros(1, dtype=torch.bool))[0]
        return float(policy.value_head(state)), state
    return float(policy.value_head(policy.value_trunk(policy.features(obs)))), state


@torch.no_grad()
def oracle(policy, rewards, observations, terminated):
    """GAE of one fragment on its own, in numpy: `observations` has one more row than `rewards`."""
    state, values = torch.zeros(policy.state_size), []
    for obs in observations:
        value, state = value_of(policy, obs, state)
        values.append(value)
    values = np.array(values)
    if terminated:
        values[-1] = 0.0
    delta = np.array(rewards) + GAMMA * values[1:] - values[:-1]
    advantages, running = np.zeros(len(delta)), 0.0
    for t in reversed(range(len(delta))):
        running = delta[t] + GAMMA * LAMBDA * running
        advantages[t] = running
    return advantages


def fragments(script, rollout, n):
    """(first, end, what its last step led to, terminated) of each stretch of real steps in column n."""
    finals = {tuple(at): obs for at, obs in zip(rollout.final_index.tolist(), rollout.final_obs, strict=True)}
    start = 0
    for t, letter in enumerate(script):
        if letter in "TU":
            yield start, t + 1, finals[t, n], letter == "T"
        elif letter == "L" and t > start:
            yield start, t, rollout.obs[t, n], False
        if letter != ".":
            start = t + 1
    if start < len(script):
        yield start, len(script), rollout.last_obs[n], False


@both_policies
@pytest.mark.parametrize("script", ["....L.....", "..TP...UP.", "...L..LL..", ".......UL.", ".....T...L", "L...TP...."])
def test_fragments_around_filler_rows_are_those_computed_apart(policy_class, script):
    scripts = (script, "." * len(script))
    actor = actor_of(*scripts, policy_class=policy_class)
    rollout, policy = actor.collect(), actor.policy
    value, next_value = policy.values(rollout)
    ends = rollout.terminated, rollout.truncated
    found = gae(rollout.reward, value, next_value, *ends, gamma=GAMMA, lam=LAMBDA)
    log_prob = rollout.extras["log_prob"]
    corrected = vtrace(log_prob, log_prob, rollout.reward, value, next_value, *ends, gamma=GAMMA, lam=LAMBDA)
    seen = 0
    for n in range(2):
        for start, end, last, terminated in fragments(scripts[n], rollout, n):
            observations = [*rollout.obs[start:end, n], last]
            expected = oracle(policy, rollout.reward[start:end, n].tolist(), observations, terminated)
            np.testing.assert_allclose(found[start:end, n], expected, atol=1e-5)
            np.testing.assert_allclose((corrected.vs - value)[start:end, n], expected, atol=1e-5)
            seen += end - start
    assert seen == rollout.num_env_steps == 2 * len(script) - script.count("L") - script.count("P")


@both_policies
def test_a_lost_step_cuts_the_one_before_it_where_it_led(policy_class):
    actor = actor_of("....L.....", policy_class=policy_class)
    rollout = actor.collect()
    assert rollout.final_index.tolist() == [[3, 0]]
    assert torch.equal(rollout.final_obs[0], rollout.obs[4, 0])
    assert rollout.truncated[:, 0].nonzero().flatten().tolist() == [3, 4]
    assert rollout.mask[:, 0].logical_not().nonzero().flatten().tolist() == [4]
    assert rollout.is_first[:, 0].nonzero().flatten().tolist() == [0, 5]
    assert (rollout.dropped_steps, rollout.episodes) == (1, [])
    assert actor.state_dict()["tail_lengths"].tolist() == [5]


def test_a_pause_after_an_end_is_no_lost_step_and_no_second_episode():
    rollout = actor_of("..TP..UP..").collect()
    assert rollout.dropped_steps == 0
    assert len(rollout.episodes) == 2
    assert rollout.final_index.tolist() == [[2, 0], [6, 0]]
    assert rollout.is_first[:, 0].nonzero().flatten().tolist() == [0, 3, 4, 7, 8]
    assert (rollout.terminated | rollout.truncated)[:, 0].nonzero().flatten().tolist() == [2, 6]


def test_a_step_lost_at_the_head_of_a_column_leaves_the_finished_one_alone():
    actor = actor_of("....L...", num_steps=4)
    first, second = actor.collect(), actor.collect()
    assert not first.truncated.any()
    assert torch.equal(first.last_obs[0], second.obs[0, 0])
    assert not second.final_index.numel()
    assert second.is_first[:, 0].tolist() == [False, True, False, False]
    assert (first.dropped_steps, second.dropped_steps) == (0, 1)


def test_only_agents_that_were_alive_are_cut():
    actor = actor_of("...L..", num_agents=2, alive=lambda t: np.array([[True, t != 2]]))
    rollout = actor.collect()
    assert rollout.truncated[2, 0].tolist() == [True, False]
    assert not rollout.mask[3].any()
    assert rollout.final_index.tolist() == [[2, 0]]
    assert torch.equal(rollout.final_obs[0], rollout.obs[3, 0])
    assert rollout.dropped_steps == 1


def poisoned(rollout):
    """The rollout with nonsense in everything that stands in masked rows."""
    rollout = clone(rollout)
    masked = ~rollout.mask
    for tensor in (rollout.obs, rollout.reward, rollout.action, *rollout.extras.values()):
        tensor[masked] = 2 if tensor is rollout.action else 1000.0
    rollout.policy_version[masked] = -50
    return rollout


@both_policies
def test_training_and_its_metrics_do_not_see_what_stands_in_filler_rows(policy_class):
    rollout = actor_of("..L..TP..U", ".UP....L..", policy_class=policy_class).collect()

    def learn(rollout):
        policy = make_policy(EnvSpec("scripted", SPACE, spaces.Discrete(3)), policy_class, normalize_obs=True)
        config = PPOConfig(num_steps=10, num_minibatches=2, num_epochs=2, normalize_reward=True)
        learner = Learner(
            PPO(policy, config),
            total_steps=1000,
            device=torch.device("cpu"),
            reward_scaler=RewardScaler(2, (), gamma=GAMMA),
        )
        metrics = [learner.step([rollout]) for _ in range(3)]
        return metrics, weights_hash(policy), learner

    assert not rollout.mask.all()
    metrics, weights, learner = learn(rollout)
    again, same_weights, _ = learn(poisoned(rollout))
    assert (metrics, weights) == (again, same_weights)
    assert metrics[0]["rollout/masked_share"] == pytest.approx(4 / 20)
    assert [row["rollout/dropped_steps"] for row in metrics] == [2.0, 4.0, 6.0]
    assert learner.env_steps == 3 * (16 + 2)  # the steps that were lost had been asked for
    heir = learn(rollout)[2]
    heir.load_state_dict(learner.state_dict())
    assert heir.dropped_steps == 6


def test_a_rollout_of_nothing_but_filler_changes_no_weight():
    rollout = actor_of("PPPP", "PPPP").collect()
    policy = make_policy(EnvSpec("scripted", SPACE, spaces.Discrete(3)))
    before = weights_hash(policy)
    learner = Learner(
        PPO(policy, PPOConfig(num_steps=4, num_minibatches=2)), total_steps=100, device=torch.device("cpu")
    )
    metrics = learner.step([rollout])
    assert learner.env_steps == 0
    assert weights_hash(policy) == before
    assert metrics["rollout/policy_lag_mean"] == 0.0
