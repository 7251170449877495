import dataclasses
import sys

import pytest
import torch

from parl_cli import build, registry
from parl_cli.actors.inline import LaggedActors
from parl_cli.actors.process import ProcessActors
from parl_cli.actors.thread import ThreadActors
from parl_cli.algos.ppo import PPO
from parl_cli.config import DebugConfig, EnvConfig, LoggerConfig, to_plain
from parl_cli.errors import CheckpointError, ConfigError
from parl_cli.policies.actor_critic import ActorCritic
from parl_cli.training import checkpoint
from parl_cli.training.evaluate import evaluate
from parl_cli.vectorizers.asynchronous import AsyncVectorizer
from parl_cli.vectorizers.native import NativeVectorizer
from parl_cli.vectorizers.serial import SerialVectorizer
from parl_cli.vectorizers.thread import ThreadVectorizer
from tests.helpers.stubs import GRUPolicy, build_all, make_policy, train_config, weights_hash


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    monkeypatch.setattr(build, "available_cores", lambda: 3)


def plain(**changes):
    """A whole config as the command line gives it: plain values."""
    config = train_config(**changes)
    return to_plain(config) | {"num_threads": changes.get("num_threads")}


def threaded(num_workers=None):
    return ThreadVectorizer.Config(num_workers=num_workers)


def refused(values):
    with pytest.raises(ConfigError) as caught:
        build.validate(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- resolve ----


@pytest.mark.parametrize(("num_envs", "workers"), [(2, 2), (8, 3)])
def test_workers_are_one_per_core_and_at_most_one_per_env(num_envs, workers):
    config = build.resolve(train_config(vectorizer=threaded(), num_envs=num_envs))
    assert config.vectorizer.num_workers == workers


def test_workers_that_were_asked_for_stay():
    assert build.resolve(train_config(vectorizer=threaded(4))).vectorizer.num_workers == 4


def test_more_workers_than_envs_are_refused():
    message = refused(plain(vectorizer=threaded(5), num_envs=4))
    assert message.startswith("vectorizer.num_workers=5: at most one per env, num_envs=4")


def test_a_vectorizer_without_workers_needs_none():
    config = train_config()
    assert build.resolve(config).vectorizer == config.vectorizer


@pytest.mark.parametrize(
    ("cores", "num_envs", "vectorizer", "num_actors"),
    [
        (1, 32, None, 1),
        (2, 32, None, 1),
        (4, 32, None, 2),
        (6, 32, None, 4),
        (99, 32, None, 4),
        (99, 4, None, 1),
        (8, 50, None, 5),
        (8, 32, ThreadVectorizer.Config(), 1),
    ],
)
def test_actors_are_one_per_core_but_the_learners(monkeypatch, cores, num_envs, vectorizer, num_actors):
    monkeypatch.setattr(build, "available_cores", lambda: cores)
    parts = {"actors": ProcessActors.Config(), "num_envs": num_envs}
    config = build.resolve(train_config(**parts, **({"vectorizer": vectorizer} if vectorizer else {})))
    assert config.actors.num_actors == num_actors


def test_a_thread_acts_alone_by_default():
    assert build.resolve(train_config(actors=ThreadActors.Config(), num_envs=32)).actors.num_actors == 1


@pytest.mark.parametrize(
    ("cores", "num_policies", "num_envs", "num_actors"), [(2, 2, 32, 2), (6, 2, 32, 4), (6, 3, 48, 3), (9, 2, 8, 2)]
)
def test_every_policy_has_as_many_actors_and_one_at_least(monkeypatch, cores, num_policies, num_envs, num_actors):
    monkeypatch.setattr(build, "available_cores", lambda: cores)
    config = train_config(actors=ProcessActors.Config(), num_envs=num_envs, num_policies=num_policies)
    assert build.resolve(config).actors.num_actors == num_actors
    threads = dataclasses.replace(config, actors=ThreadActors.Config())
    assert build.resolve(threads).actors.num_actors == num_policies


def test_policies_that_take_turns_have_all_cores_for_their_workers(monkeypatch):
    monkeypatch.setattr(build, "available_cores", lambda: 4)
    config = build.resolve(train_config(vectorizer=threaded(), num_envs=16, num_policies=2))
    assert config.vectorizer.num_workers == 4
    assert len(build.envs_of_one_actor(config)) == 8


def test_actors_that_were_asked_for_stay_and_share_the_cores_for_workers():
    config = train_config(actors=ProcessActors.Config(num_actors=2), vectorizer=threaded(), num_envs=8)
    config = build.resolve(config)
    assert (config.actors.num_actors, config.vectorizer.num_workers) == (2, 1)


def test_more_workers_than_an_actor_has_envs_are_refused():
    values = plain(vectorizer=threaded(3), actors=ProcessActors.Config(num_actors=2), num_envs=4)
    assert refused(values).startswith("vectorizer.num_workers=3: at most one per env, num_envs=4 / actors.num_actors=2")


@pytest.mark.parametrize(
    ("changes", "of_one"),
    [
        ({"num_envs": 4}, ""),
        (
            {"num_envs": 8, "actors": ProcessActors.Config(num_actors=2, max_policy_lag=0)},
            "; an actor has num_envs=8 / actors.num_actors=2",
        ),
        ({"num_envs": 8, "num_policies": 2}, "; an actor has num_envs=8 / num_policies=2"),
    ],
)
def test_options_of_a_vectorizer_must_fit_the_envs_of_one_actor(changes, of_one):
    for batch_size in (4, 5):
        config = AsyncVectorizer.Config(batch_size=batch_size, num_workers=1)
        values = plain(vectorizer=config, **changes)
        if batch_size == 4:
            build.validate(values)
        else:
            assert refused(values) == f"vectorizer.batch_size=5: at most num_envs=4{of_one}"


def test_a_native_batch_is_tried_with_the_envs_of_one_actor(monkeypatch):
    tried = []
    monkeypatch.setattr(NativeVectorizer, "check", lambda options, env_fns: tried.append(len(env_fns)))
    for changes in ({}, {"actors": ProcessActors.Config(num_actors=2, max_policy_lag=0)}, {"num_policies": 4}):
        build.validate(plain(vectorizer=NativeVectorizer.Config(), num_envs=8, **changes))
    assert tried == [8, 4, 2]


@pytest.mark.parametrize(
    ("actors", "words"),
    [
        (ProcessActors.Config(num_actors=3), "num_envs=4: must divide by actors.num_actors=3; try num_envs=6"),
        (ProcessActors.Config(device="cuda"), "actors.device=cuda: actor processes act on the cpu"),
        (ThreadActors.Config(max_policy_lag=0, device="cuda:77"), "actors.device=cuda:77: this machine has"),
        (ThreadActors.Config(max_policy_lag=0, device="gpu"), "actors.device=gpu: must be auto, cpu"),
    ],
)
def test_actors_that_cannot_work_are_refused(actors, words):
    assert refused(plain(actors=actors)).startswith(words)


def test_a_perceptron_gets_one_thread_and_a_large_network_one_per_core(monkeypatch):
    assert build.resolve(train_config(num_threads=None)).num_threads == 1
    monkeypatch.setattr(ActorCritic, "prefers_accelerator", True, raising=False)
    assert build.resolve(train_config(num_threads=None)).num_threads == 3


def test_threads_that_were_asked_for_stay():
    assert build.resolve(train_config(num_threads=7)).num_threads == 7


# ---- validate ----


def test_a_valid_config_comes_back_resolved():
    config = build.validate(plain(vectorizer=threaded()))
    assert config == dataclasses.replace(train_config(vectorizer=threaded(3)), num_threads=1)


@pytest.mark.parametrize(("num_envs", "num_minibatches"), [(3, 5), (7, 128), (1, 16)])
def test_advice_on_minibatches_can_be_followed(num_envs, num_minibatches):
    values = plain(num_envs=num_envs)
    values["algo"]["num_minibatches"] = num_minibatches
    message = refused(values)
    assert message.startswith(f"algo.num_minibatches={num_minibatches}:")
    if "try" in message:
        values["algo"]["num_minibatches"] = int(message.rpartition("try algo.num_minibatches=")[2])
        build.validate(values)
    else:
        assert "algo.normalize_advantage=false" in message
        values["algo"]["normalize_advantage"] = False
        build.validate(values)


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_a_recurrent_policys_minibatches_must_divide_the_envs(algo, monkeypatch):
    monkeypatch.setattr(build, "make_policy", lambda spec, config, policy_id: make_policy(spec, GRUPolicy))
    config = registry.load("algo", algo).Config(num_steps=8, num_minibatches=4)
    message = refused(plain(algo=config, num_envs=6))
    assert message.startswith("algo.num_minibatches=4: policy=mlp is recurrent")
    assert message.endswith("it must divide num_envs=6; try algo.num_minibatches=3")
    build.validate(plain(algo=dataclasses.replace(config, num_minibatches=3), num_envs=6))


def test_a_rate_for_a_critic_that_is_not_seen_is_refused(monkeypatch):
    policy = torch.nn.Linear(1, 1)
    policy.state_size = 0
    monkeypatch.setattr(build, "make_policy", lambda *_: policy)
    message = refused(plain(algo=PPO.Config(critic_learning_rate=1e-3)))
    assert message.startswith("algo.critic_learning_rate=0.001: policy=mlp has no parameters called value_")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"algo": {"name": "pop"}}, "algo=pop: no such algo"),
        ({"device": "gpu"}, "device=gpu: must be auto"),
        ({"num_envs": 0}, "num_envs=0: must be at least 1"),
        ({"plugins": ["no_such_module_at_all"]}, "plugins=[no_such_module_at_all]: cannot be imported"),
        ({"polciy": {}}, "unknown key polciy; did you mean policy or policies?"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, words):
    assert refused(plain() | change).startswith(words)


def test_a_policy_that_cannot_act_in_the_env_is_refused():
    values = plain()
    values["policy"]["squash"] = True
    assert "squash" in refused(values)


def test_an_algorithm_learns_only_the_actions_that_it_says_it_supports(monkeypatch):
    monkeypatch.setattr(PPO, "supports", PPO.supports | {"actions": ("Box",)})
    words = "algo=ppo: cannot learn to act in CartPole-v1, whose action space is Discrete; it takes Box"
    assert refused(plain()) == words


def test_actors_that_lag_on_their_own_get_no_lag_on_purpose():
    debug = DebugConfig(policy_lag=8)
    message = refused(plain(actors=ProcessActors.Config(max_policy_lag=0), debug=debug))
    assert message == "debug.policy_lag=8: needs actors=inline; actors=process lag on their own"
    assert build.validate(plain(debug=debug)).debug == debug


def test_a_lag_on_purpose_is_acted_with_a_policy_of_its_own():
    learner, pool = build_all(train_config(debug=DebugConfig(policy_lag=8)))
    try:
        assert isinstance(pool, LaggedActors)
        assert pool.lag == 8
        assert pool.actor.policy is not learner.algo.policy
        assert weights_hash(pool.actor.policy) == weights_hash(learner.algo.policy)
    finally:
        pool.close()


def test_an_env_that_is_not_there_is_refused():
    assert "NoSuchEnv-v0" in refused(plain(env=EnvConfig(id="NoSuchEnv-v0")))


def test_plugins_are_imported_before_names_are_looked_up(tmp_path, monkeypatch):
    (tmp_path / "plug_in_for_build.py").write_text(
        "from parl_cli import registry\n"
        "from parl_cli.policies.actor_critic import ActorCritic\n"
        "class Mine(ActorCritic):\n    pass\n"
        "registry.register('policy', 'plug_in_mlp', 'plug_in_for_build:Mine')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(build.registry, "_TARGETS", {k: dict(v) for k, v in build.registry._TARGETS.items()})
    values = plain() | {"plugins": ["plug_in_for_build"]}
    values["policy"]["name"] = "plug_in_mlp"
    assert build.validate(values).policy.name == "plug_in_mlp"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_sink_without_its_extra_is_refused_before_training(name, monkeypatch):
    package = {"tensorboard": "tensorboardX"}.get(name, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert f'pip install "parl-cli[{name}]"' in refused(plain(logger=LoggerConfig(sinks={name: {}})))


# ---- init_from ----


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a policy that has learned something."""
    learner, pool = build_all(train_config())
    learner.step(pool.get(1))
    pool.close()
    policy = learner.algo.policy
    folder = tmp_path / "64"
    checkpoint.save(
        folder, env_steps=64, config=to_plain(train_config()), policy=policy.state_dict(), training={"learner": {}}
    )
    return folder, policy


def test_init_from_is_checked_before_anything_starts(trained):
    folder, _ = trained
    assert build.validate(plain() | {"init_from": str(folder)}).init_from == str(folder)


def test_init_from_a_checkpoint_of_another_network_is_refused(trained):
    folder, _ = trained
    values = plain() | {"init_from": str(folder)}
    values["policy"]["hidden_sizes"] = [5]
    assert "made for other spaces" in refused(values)


def test_init_from_nowhere_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        build.validate(plain() | {"init_from": str(tmp_path / "nothing")})


def test_weights_of_a_checkpoint_start_a_new_policy(trained):
    folder, policy = trained
    fresh = build.make_policy(build.env_spec(train_config().env), train_config())
    assert weights_hash(fresh) != weights_hash(policy)
    checkpoint.load_weights(fresh, checkpoint.load(folder).policy, folder)
    assert weights_hash(fresh) == weights_hash(policy)


# ---- what is made ----


def test_weights_are_a_function_of_the_seed_alone():
    spec = build.env_spec(train_config().env)
    first = build.make_policy(spec, train_config())
    torch.rand(3)
    state = torch.get_rng_state()
    again = build.make_policy(spec, train_config())
    assert torch.equal(torch.get_rng_state(), state)
    other = build.make_policy(spec, train_config(seed=2))
    assert weights_hash(again) == weights_hash(first) != weights_hash(other)


def test_learner_and_pool_share_one_policy_and_train():
    learner, pool = build_all(train_config())
    try:
        assert pool.actor.policy is learner.algo.policy
        assert isinstance(pool.actor.vectorizer, SerialVectorizer)
        before = weights_hash(learner.algo.policy)
        metrics = learner.step(pool.get(1))
        assert learner.env_steps == 64
        assert metrics["rollout/policy_lag_max"] == 0.0
        assert weights_hash(learner.algo.policy) != before
    finally:
        pool.close()


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not():
    def run(seed):
        learner, pool = build_all(train_config(seed=seed))
        for _ in range(2):
            learner.step(pool.get(1))
        pool.close()
        return weights_hash(learner.algo.policy)

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize("wanted", [False, True])
def test_rewards_are_scaled_where_the_algorithm_asks_for_it(wanted):
    config = train_config()
    config = dataclasses.replace(
        config, algo=dataclasses.replace(config.algo, normalize_reward=wanted, gamma=0.7, reward_clip=3.0)
    )
    scaler = build.make_learner(config, build.env_spec(config.env)).reward_scaler
    assert (scaler is not None) == wanted
    if wanted:
        assert (scaler.gamma, scaler.clip) == (0.7, 3.0)


def test_evaluation_does_not_depend_on_how_many_envs_play_at_once():
    config = train_config()
    policy = build.make_policy(build.env_spec(config.env), config)

    def returns(num_envs):
        vectorizer = build.make_eval_vectorizer(config.env, seed=1, episodes=5, num_envs=num_envs)
        assert vectorizer.num_envs == min(num_envs or 5, 5)
        try:
            return evaluate(policy, vectorizer, 5, deterministic=False).returns.tolist()
        finally:
            vectorizer.close()

    assert returns(None) == returns(1) == returns(2) == returns(9)


def test_evaluation_plays_other_episodes_than_training():
    config = train_config()
    evaluation = build.make_eval_vectorizer(config.env, seed=config.seed, episodes=4)
    _, pool = build_all(config)
    try:
        assert not (evaluation.begin() == pool.actor.vectorizer.begin()).all(axis=1).any()
    finally:
        evaluation.close()
        pool.close()
