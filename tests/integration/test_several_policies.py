"""Several policies in one run: each one's experience, weights and figures are its own, whatever steps their envs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from parl_cli import build, registry
from parl_cli.actors.base import Actor
from parl_cli.actors.inline import InlineActors
from parl_cli.algos.ppo import PPO
from parl_cli.cli import main
from parl_cli.config import CheckpointConfig, EvalConfig
from parl_cli.errors import CheckpointError, ConfigError
from parl_cli.experiment import Experiment
from parl_cli.functional.noise import stream_key
from parl_cli.metrics.catalog import lookup
from parl_cli.policies.actor_critic import ActorCritic
from parl_cli.training import checkpoint, learner_group
from parl_cli.training.learner import Learner
from parl_cli.training.loop import train as train_loop
from parl_cli.training.reward_scaler import RewardScaler
from tests.helpers.runs import (
    CLI_TINY,
    edit_json,
    go_on,
    normalising_config,
    policy_hash,
    reseal,
    steady_rows,
    train,
    tree,
)
from tests.helpers.stubs import weights_hash
from tests.helpers.vectorizers import of_python_envs

SHARE = 32  # env steps of an update of one policy: 2 envs × 16 steps
TINY = ["env=cartpole", "seed=3", *CLI_TINY]
TWO = [*TINY, "num_policies=2"]
DIFFERENT = ["policies.1.algo.learning_rate=1e-2", "policies.1.policy.hidden_sizes=[4]"]

pytestmark = pytest.mark.usefixtures("workplace", "forked_actors")


def trained(*overrides, updates=6):
    with Experiment.compose([*TWO, *overrides]) as experiment:
        rows = []
        experiment.metrics.display = rows.append
        experiment.train(updates * SHARE)
        return {policy_id: weights_hash(policy) for policy_id, policy in experiment.policies.items()}, rows


def alone(policy_id, *overrides, updates=6, num_policies=2):
    """What one policy becomes in a run of its own whose envs have the names that its envs have in the run of both.

    Made from the pieces, and from the seeds as the documents tell them.
    """
    with Experiment.compose([*TINY, "num_envs=2", *overrides]) as experiment:
        config, spec = experiment.config, experiment.spec
    envs = range(policy_id, 2 * num_policies, num_policies)
    role = [policy_id] if policy_id else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_key(config.seed, "weights", *role) % 2**63)
        policy = ActorCritic(spec, config.policy)
    algo = PPO(policy, config.algo, seed=stream_key(config.seed, "minibatches", *role) % 2**63)
    scaler = RewardScaler(2 * num_policies, (), gamma=config.algo.gamma, clip=config.algo.reward_clip)
    learner = Learner(algo, total_steps=config.total_steps, device=torch.device("cpu"), reward_scaler=scaler)
    noise = stream_key(config.seed, "train", "noise")
    actor = Actor(build.make_vectorizer(config, envs), policy, num_steps=16, noise_key=noise, env_ids=envs)
    pool = InlineActors(actor)
    train_loop(learner, pool, [], updates * SHARE)
    pool.close()
    return weights_hash(policy)


# ---- what they learn ----


def test_each_policy_becomes_what_it_would_alone():
    both, _ = trained()
    assert both == {0: alone(0), 1: alone(1)}
    assert both[0] != both[1]
    three, _ = trained("num_policies=3", "num_envs=6")
    assert three == {policy_id: alone(policy_id, num_policies=3) for policy_id in range(3)}


def test_each_policy_has_its_own_hyper_parameters_and_network():
    both, rows = trained(*DIFFERENT)
    assert both == {0: alone(0), 1: alone(1, "algo.learning_rate=1e-2", "policy.hidden_sizes=[4]")}
    assert rows[-1]["policy_0/optim/learning_rate"] == pytest.approx(3e-4)
    assert rows[-1]["policy_1/optim/learning_rate"] == pytest.approx(1e-2)


def test_a_mix_up_of_policies_would_show(monkeypatch):
    split = learner_group.split_by_policy

    def swapped(rollout, num_policies):
        return split(rollout, num_policies)[::-1]

    monkeypatch.setattr(learner_group, "split_by_policy", swapped)
    both, _ = trained()
    assert both[0] != alone(0)
    assert both[1] != alone(1)


def test_policy_0_begins_as_the_only_one_would():
    with Experiment.compose(TINY) as single, Experiment.compose(TWO) as both:
        begun = {policy_id: weights_hash(policy) for policy_id, policy in both.policies.items()}
        assert begun[0] == weights_hash(single.policy) != begun[1]


@pytest.mark.parametrize("name", of_python_envs(lock_step=True))
def test_the_vectorizer_makes_no_difference(name):
    workers = [] if name == "serial" else ["vectorizer.num_workers=2"]
    assert trained(f"vectorizer={name}", *workers, updates=3)[0] == trained(updates=3)[0]


@pytest.mark.parametrize(("kind", "number"), [("process", 2), ("process", 4), ("thread", 2), ("thread", 4)])
def test_without_lag_actors_of_their_own_make_no_difference(kind, number):
    actors = [f"actors={kind}", f"actors.num_actors={number}", "actors.max_policy_lag=0"]
    assert trained(*DIFFERENT, *actors, updates=3)[0] == trained(*DIFFERENT, updates=3)[0]


ASYNC = ["vectorizer=async", "vectorizer.num_workers=2"]


@pytest.mark.parametrize(
    "overrides",
    [
        ASYNC,
        ["algo=appo", "actors=process", "actors.num_actors=4"],
        ["algo=appo", "actors=thread", "actors.num_actors=2"],
        ["algo=appo", "actors=thread", "actors.num_actors=2", *ASYNC],
        ["algo=appo", "actors=process", "actors.num_actors=2", "vectorizer=subprocess", "vectorizer.num_workers=1"],
        ["algo=appo", "actors=inline", "debug.policy_lag=2"],
    ],
)
def test_the_right_policy_acts_in_every_env(overrides):
    """With weights that stay what they are, log-probs tell who acted."""
    with Experiment.compose([*TWO, *overrides]) as experiment:
        pool, policies = experiment.pool, experiment.policy
        with torch.no_grad():
            policies[1].policy_head.bias[0] += 1.0
        pool.publish(experiment.learner.snapshot())
        seen = []
        for version in range(1, 4):
            rollouts = pool.get(1)
            envs = torch.cat([rollout.env_id for rollout in rollouts])
            assert [int((envs % 2 == policy_id).sum()) for policy_id in (0, 1)] == [2, 2]
            for rollout in rollouts:
                [owner] = (rollout.env_id % 2).unique().tolist()
                seen.append(owner)
                errors = [_log_prob_error(policy, rollout) for policy in policies]
                assert errors[owner] < 1e-5 < 1e-2 < errors[1 - owner]
                assert rollout.policy_version.max() < version
                assert {episode.env_id % 2 for episode in rollout.episodes} <= {owner}
            snapshot = experiment.learner.snapshot()
            snapshot.version = version
            pool.publish(snapshot)
        assert sorted(seen) == [0, 0, 0, 1, 1, 1]


def _log_prob_error(policy, rollout):
    with torch.no_grad():
        now = policy.evaluate(rollout.obs)[0].log_prob(rollout.action)
    return float((now - rollout.extras["log_prob"]).abs().max())


@pytest.mark.parametrize("algo", registry.names("algo"))
def test_every_algorithm_learns_with_several_policies(algo):
    words = [
        "env=cartpole",
        "tuned=null",
        "logger=none",
        "num_policies=2",
        "num_envs=4",
        f"algo={algo}",
        "actors=inline",
    ]
    with Experiment.compose(words) as experiment:
        rows = []
        experiment.metrics.display = rows.append
        experiment.train(1)
        assert {f"policy_{policy_id}/loss/value" for policy_id in (0, 1)} <= set(rows[0])
        assert len({weights_hash(policy) for policy in experiment.policies.values()}) == 2


def test_actors_that_lag_learn_from_every_policy_and_keep_the_counts():
    actors = ["algo=appo", "actors=process", "actors.num_actors=2"]
    with Experiment.compose([*TWO, *actors]) as experiment:
        rows = []
        experiment.metrics.display = rows.append
        for _ in range(3):
            experiment.train(4 * SHARE)
        own = [learner.env_steps for learner in experiment.learner.learners]
        assert experiment.env_steps == min(own) >= 12 * SHARE
        for learner in experiment.learner.learners:
            assert learner.env_steps == learner.updates * SHARE + learner.dropped_steps
        assert rows[-1]["actors/restarts"] == 0
        assert {"policy_0/actors/queue_depth", "policy_1/actors/queue_depth"} <= set(rows[-1])


# ---- what a run tells ----


def test_rows_have_every_policy_s_metrics_and_what_they_come_to():
    _, rows = trained("eval.every_steps=64", "eval.episodes=3", updates=8)
    learned = [row for row in rows if "loss/value" in row]
    played = [row for row in rows if "eval/return_mean" in row]
    assert [row["env_steps"] for row in learned] == [SHARE * n for n in range(1, 9)]
    assert not [name for row in rows for name in row if lookup(name) is None]
    for row in learned:
        each = [row[f"policy_{policy_id}/loss/value"] for policy_id in (0, 1)]
        assert row["loss/value"] == pytest.approx(sum(each) / 2)
        assert row["policy_0/env_steps"] == row["policy_1/env_steps"] == row["env_steps"]
        shares = [row[f"time/{part}_share"] for part in ("env", "act", "learn", "wait", "other")]
        assert sum(shares) == pytest.approx(1)
        assert row["time/env_share"] > 0
        assert row["time/act_share"] > 0
    assert learned[-1]["episode/count"] == sum(learned[-1][f"policy_{i}/episode/count"] for i in (0, 1)) > 2
    assert len(played) == 4
    for row in played:
        each = [row[f"policy_{policy_id}/eval/return_mean"] for policy_id in (0, 1)]
        assert row["eval/return_mean"] == pytest.approx(sum(each) / 2)
        assert row["eval/episodes"] == 6


# ---- checkpoints ----


def config_of_two(updates=8, **changes):
    return normalising_config(
        updates=updates // 2,
        num_policies=2,
        policies={"1": {"algo": {"learning_rate": 0.01}, "policy": {"hidden_sizes": [4]}}},
        eval=EvalConfig(every_steps=3 * SHARE, episodes=2),
        **changes,
    )


@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_run_is_resumed_bit_for_bit(tmp_path, stop_at):
    config = config_of_two()
    assert train(config, tmp_path / "whole") == "budget"
    assert train(config, tmp_path / "halves", stop_at=stop_at) == "interrupted: SIGINT"
    assert go_on(config, tmp_path / "halves") == "budget"
    runs = [tmp_path / "whole", tmp_path / "halves"]
    assert policy_hash(runs[0]) == policy_hash(runs[1])
    assert steady_rows(runs[0]) == steady_rows(runs[1])
    last = [(checkpoint.last(run) / "training.safetensors").read_bytes() for run in runs]
    assert last[0] == last[1]
    assert checkpoint.last(runs[0]).name == str(8 * SHARE)


def test_several_calls_of_train_equal_a_long_one():
    long, _ = trained(updates=6)
    with Experiment.compose(TWO) as experiment:
        for steps in (SHARE, 2 * SHARE, 3 * SHARE - 1):
            experiment.train(steps)
        assert {policy_id: weights_hash(policy) for policy_id, policy in experiment.policies.items()} == long


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_actors_of_their_own_are_resumed_too(kind, capfd):
    words = ["algo=appo", f"actors={kind}", "actors.num_actors=2", f"total_steps={8 * SHARE}"]
    with Experiment.compose([*TWO, *words]) as experiment:
        experiment.train(4 * SHARE)
        experiment.save("saved")
    with Experiment.load("saved") as heir:
        assert heir.learner.updates == 4
        heir.train()
        assert heir.env_steps >= 8 * SHARE


def test_a_checkpoint_says_that_it_is_damaged(tmp_path):
    with Experiment.compose(TWO) as experiment:
        experiment.train(SHARE)
        experiment.save("saved")

    def refused(change, message, name="training.json"):
        edit_json(Path("saved") / name, change)
        reseal(Path("saved"))
        with pytest.raises(CheckpointError, match=message) as caught:
            Experiment.load("saved")
        assert "\n" not in str(caught.value)

    refused(lambda values: values["learner"]["1"].update(updates=0), r"policies after \[1, 0\] updates")
    refused(lambda values: values["pool"].pop("1"), "its training state does not fit")
    refused(
        lambda values: values.update(num_policies=10**15), "num_policies=10+: there are weights of fewer", "config.json"
    )
    refused(lambda values: values.update(num_policies="two"), "does not fit", "config.json")
    refused(lambda values: values.update(num_policies=1), "made for another network", "config.json")
    refused(lambda values: values.update(num_policies=4), "made for another network", "config.json")
    refused(lambda values: values.update(num_policies=3), "num_envs=4: must divide by num_policies=3", "config.json")


# ---- parameters ----


def test_parameters_are_those_of_each_policy():
    with Experiment.compose([*TWO, *DIFFERENT]) as experiment:
        parameters = experiment.get_parameters()
        assert list(parameters) == [0, 1]
        assert parameters[1]["policy_head.weight"].shape[-1] == 4
        experiment.train(2 * SHARE)
        trained_one = weights_hash(experiment.policies[1])
        experiment.set_parameters({0: parameters[0]})
        assert weights_hash(experiment.policies[1]) == trained_one
        for name, value in experiment.get_parameters()[0].items():
            assert torch.equal(value, parameters[0][name])


def test_a_checkpoint_gives_each_policy_its_own_and_a_single_one_gives_it_to_all():
    with Experiment.compose(TWO) as source, Experiment.compose(TINY) as single:
        source.train(2 * SHARE)
        source.save("both")
        single.train(2 * SHARE)
        single.save("single")
        wanted = {policy_id: weights_hash(policy) for policy_id, policy in source.policies.items()}
        only = weights_hash(single.policy)
        with pytest.raises(CheckpointError, match="holds 2 policies, this run 1; in Python"):
            single.set_parameters({"default": "both"})
        single.set_parameters({"default": source.get_parameters()[1]})
        assert weights_hash(single.policy) == wanted[1]
    for words, weights in (("init_from=both", wanted), ("init_from=single", {0: only, 1: only})):
        with Experiment.compose([*TWO, words]) as heir:
            assert {policy_id: weights_hash(policy) for policy_id, policy in heir.policies.items()} == weights
    with Experiment.compose(TWO) as heir:
        before = weights_hash(heir.policies[0])
        heir.set_parameters({1: "both"})
        assert weights_hash(heir.policies[0]) == before
        assert weights_hash(heir.policies[1]) == wanted[1]
    with pytest.raises(CheckpointError, match="holds 2 policies, this run 4"):
        Experiment.compose([*TWO, "num_policies=4", "init_from=both"])


def test_wrong_parameters_change_no_policy():
    with Experiment.compose(TWO) as experiment:
        parameters = experiment.get_parameters()
        for value in parameters[0].values():
            value.zero_()
        before = [weights_hash(policy) for policy in experiment.policies.values()]
        with pytest.raises(ConfigError, match="no policy is called 2; there is 0 and 1"):
            experiment.set_parameters({0: parameters[0], 2: parameters[1]})
        del parameters[1]["policy_head.bias"]
        with pytest.raises(ConfigError, match=r"set_parameters: 1: made for another network"):
            experiment.set_parameters(parameters)
        assert [weights_hash(policy) for policy in experiment.policies.values()] == before


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_new_parameters_of_one_policy_reach_its_actors(kind):
    words = [f"actors={kind}", "actors.num_actors=2", "algo=appo", "policy.normalize_obs=false"]
    with Experiment.compose([*TWO, *words]) as experiment:
        experiment.train(2 * SHARE)
        parameters = experiment.get_parameters()[1]
        parameters["policy_head.bias"] = torch.tensor([0.0, 100.0])
        parameters["policy_head.weight"].zero_()
        experiment.set_parameters({1: parameters})
        experiment.pool.publish(experiment.learner.snapshot())
        for rollout in experiment.pool.get(1):
            assert bool((rollout.action == 1).all()) == (int(rollout.env_id[0]) % 2 == 1)


# ---- evaluation ----


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    run = tmp_path_factory.mktemp("two") / "run"
    train(config_of_two(checkpoint=CheckpointConfig(every_steps=SHARE)), run)
    return run


def evaluated(run, *words, output):
    assert main(["eval", f"checkpoint={run}", "episodes=5", f"output={output}", *words]) == 0
    return json.loads((Path(output) / "eval.json").read_text())


def test_eval_plays_every_policy_or_the_one_that_is_named(run_of_two, capsys):
    before = tree(run_of_two)
    both = evaluated(run_of_two, output="both")
    shown = capsys.readouterr().out
    each = [evaluated(run_of_two, f"policy_id={policy_id}", output=f"one{policy_id}") for policy_id in (0, 1)]
    assert both["returns"] == [*each[0]["returns"], *each[1]["returns"]]
    assert each[0]["returns"] != each[1]["returns"]
    assert both["episodes"] == 10
    assert both["policy_id"] is None
    assert both["mean_return"] == pytest.approx((each[0]["mean_return"] + each[1]["mean_return"]) / 2)
    for policy_id, one in enumerate(each):
        assert one["policy_id"] == policy_id
        assert "policies" not in one
        assert both["policies"][str(policy_id)]["mean_return"] == one["mean_return"]
        assert f"policy {policy_id}" in shown
    assert tree(run_of_two) == before


def test_eval_and_the_experiment_agree(run_of_two):
    report = evaluated(run_of_two, output="both")
    with Experiment.load(run_of_two) as experiment:
        summary = experiment.evaluate(5)
    assert summary["policies"] == report["policies"]
    assert summary["mean_return"] == report["mean_return"]


def test_the_best_checkpoint_is_of_the_best_mean(run_of_two):
    played = {row["env_steps"]: row["eval/return_mean"] for row in steady_rows(run_of_two) if "eval/return_mean" in row}
    best = checkpoint.load(run_of_two / "checkpoints" / "best")
    assert played[best.env_steps] == max(played.values())
    assert best.num_policies == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["policy_id=2"], "policy_id=2: the checkpoint has policies 0 to 1"),
        (["policy_id=-1"], "policy_id=-1: must be at least 0"),
        (["video=true"], "video=true: shows one policy, and the checkpoint has 2; add policy_id=0"),
    ],
)
def test_eval_refuses_what_it_cannot_show(run_of_two, capsys, words, message):
    assert main(["eval", f"checkpoint={run_of_two}", "output=out", *words]) == 2
    assert f"parl: error: {message}" in capsys.readouterr().err
    assert not os.path.exists("out")


# ---- the command line ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_policies=3"], "num_envs=4: must divide by num_policies=3; try num_envs=6"),
        (["num_policies=0"], "num_policies=0: must be at least 1"),
        (["actors=process", "algo=appo", "actors.num_actors=1"], "actors.num_actors=1: must divide by num_policies=2"),
        (
            ["policies.2.algo.gamma=0.9"],
            "policies.2: there is no such policy; with num_policies=2 the last is policies.1",
        ),
        (["policies.1.algo.gama=0.9"], "unknown key policies.1.algo.gama; did you mean gamma"),
        (["policies.1.algo.gamma=2"], "policies.1.algo.gamma=2.0: must be at most 1"),
        (["policies.1.algo.num_steps=8"], "policies.1.algo.num_steps=8: cannot differ between policies"),
        (["policies.1.env.id=x"], "policies.1.env: cannot differ between policies; keys of algo, policy can"),
        (
            ["policies.1.algo.num_minibatches=5"],
            "policy 1, with 2 envs of its own: algo.num_minibatches=5: must divide",
        ),
        (["vectorizer=thread", "vectorizer.num_workers=3"], "at most one per env, num_envs=4 / num_policies=2"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(workplace, capsys, words, message):
    assert main(["train", *TWO, *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert not list(workplace.iterdir())


def test_the_command_line_trains_resumes_and_evaluates_two_policies(workplace, capsys):
    words = [*TWO, *DIFFERENT, f"total_steps={4 * SHARE}", "hydra.run.dir=run"]
    assert main(["train", *words]) == 0
    out = capsys.readouterr().out
    assert "2, with envs of their own" in out
    assert f"{4 * SHARE} steps = 4 updates ({4 * SHARE} steps)" in out
    assert "mean of" in out
    assert "(policy 1)" in out
    assert main(["resume", "run=run", f"total_steps={6 * SHARE}"]) == 0
    assert [row["env_steps"] for row in steady_rows(Path("run"))] == [SHARE * n for n in range(1, 7)]
    assert main(["eval", "checkpoint=run", "episodes=2", "policy_id=1"]) == 0
    assert main(["train", *TWO, *DIFFERENT, "--cfg", "job"]) == 0
    assert "learning_rate: 0.01" in capsys.readouterr().out.partition("policies:")[2]
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "num_policies=1" in shown
    assert "policies.1.algo.learning_rate=1e-3" in shown


def test_bench_measures_a_run_of_two_policies():
    words = [*TWO, "seconds=0.05", "vectorizers=[serial]", "output=bench"]
    assert main(["bench", *words]) == 0
    assert json.loads(Path("bench/bench.json").read_text())["command"]
