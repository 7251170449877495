"""`vectorizer=native` from the command line, and with the libraries that bring batches, where they are installed."""

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from parl_cli.config import EnvConfig
from parl_cli.envs.batches import make_batch
from parl_cli.envs.factory import EnvFactory, EpisodeSeeds
from parl_cli.errors import ConfigError
from parl_cli.experiment import Experiment
from parl_cli.vectorizers import NativeVectorizer
from tests.helpers.cli import TINY, parl
from tests.helpers.runs import normalising_config, policy_hash, train

CARTPOLE = "CartPole-v1"


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_resumes_and_evaluates_and_says_how_it_resumes(tmp_path):
    native = ("vectorizer=native", "env=cartpole")
    done = parl("train", *native, *TINY, "num_envs=8", "total_steps=2048", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "envs begin new episodes: vectorizer=native cannot re-step any" in done.stdout
    assert "2,048 steps = at least 16 updates" in done.stdout
    written = rows(tmp_path / "run")
    assert written[-1]["env_steps"] >= 2048
    assert len(written) > 16  # filler rows are no steps
    assert 0 < written[-1]["rollout/masked_share"] < 0.2
    assert written[-1]["rollout/dropped_steps"] == 0
    assert 9 < written[-1]["episode/return_mean"] == written[-1]["episode/length_mean"] < 60
    resumed = parl("resume", "run=run", "total_steps=2500", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert rows(tmp_path / "run")[-1]["env_steps"] >= 2500
    evaluated = parl("eval", "checkpoint=run", "episodes=2", "device=cpu", "output=out", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["episodes"] == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["env=pendulum"], "vectorizer=native: Pendulum-v1 has no batch of its own; use vectorizer=serial"),
        (["env=cartpole_no_velocity"], "env=cartpole_no_velocity: is made of wrappers around single envs"),
        (["env=cartpole", "vectorizer.backend=jax"], "vectorizer.backend=jax: choose from envpool, gymnasium"),
        (["env=cartpole", "vectorizer.num_workers=2"], "num_workers"),
        (["env=gym", "env.id=phys2d/CartPole-v1"], "phys2d/CartPole-v1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_with_exit_code_2_and_writes_nothing(args, words, tmp_path):
    done = parl("train", "vectorizer=native", *args, *TINY, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def native_config(updates, **changes):
    return normalising_config(CARTPOLE, updates, vectorizer=NativeVectorizer.Config(), **changes)


def test_the_seed_alone_decides_the_weights(tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train(native_config(6, seed=seed), tmp_path / name)
    hashes = [policy_hash(tmp_path / name) for name in ("one", "same", "other")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_resumed_run_goes_on_with_its_weights_in_new_episodes(tmp_path):
    train(native_config(6), tmp_path / "run")

    def went_on():
        with Experiment.load(tmp_path / "run", total_steps=10_000) as experiment:
            before = experiment.get_parameters()["default"]
            experiment.train(128)
            assert experiment.learner.updates > 6
            return before, experiment.get_parameters()["default"]

    (before, after), (again_before, again_after) = went_on(), went_on()
    for name in before:
        assert np.array_equal(before[name], again_before[name])
        assert np.array_equal(after[name], again_after[name])
    assert any(not np.array_equal(before[name], after[name]) for name in before)


# ---- libraries ----


def copies(step):
    return dataclasses.replace(step, **{f.name: np.array(getattr(step, f.name)) for f in dataclasses.fields(step)})


def play(vectorizer, steps):
    """The first observation and every step, with actions from a fixed generator."""
    rng = np.random.default_rng(0)
    obs = np.array(vectorizer.begin())
    taken = []
    for _ in range(steps):
        vectorizer.send(rng.integers(vectorizer.single_action_space.n, size=vectorizer.num_envs))
        taken.append(copies(vectorizer.recv()))
    vectorizer.close()
    return obs, taken


def pong(mode, frames=200):
    vector_env = pytest.importorskip("ale_py.vector_env")
    return vector_env.AtariVectorEnv("pong", 8, autoreset_mode=mode, max_num_frames_per_episode=frames, num_threads=2)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_eight_pongs_are_ale_s_own(mode):
    seeds = EpisodeSeeds(3)
    first, steps = play(NativeVectorizer(pong(mode), episode_seed=seeds), 150)
    bare = pong(mode)
    obs, _ = bare.reset(seed=seeds(0, 0) >> 1)
    np.testing.assert_array_equal(first, obs)
    rng, resting, length, ends = np.random.default_rng(0), np.zeros(8, bool), np.zeros(8, int), 0
    for step in steps:
        obs, reward, terminated, truncated, infos = bare.step(rng.integers(6, size=8))
        ended = terminated | truncated
        length = np.where(resting, 0, length + 1)
        np.testing.assert_array_equal(step.obs, obs)
        np.testing.assert_array_equal(step.reward, reward)
        np.testing.assert_array_equal(step.truncated, truncated)
        np.testing.assert_array_equal(step.mask, ~resting)
        np.testing.assert_array_equal(step.ended, ended | resting)
        np.testing.assert_array_equal(step.episode_length, length[step.ended])
        if mode is AutoresetMode.NEXT_STEP:
            np.testing.assert_array_equal(step.final_obs, obs[step.ended])
            resting = ended
        else:
            if ended.any():
                np.testing.assert_array_equal(step.final_obs, infos["final_obs"][ended])
            length[ended] = 0
        ends += int(ended.sum())
    assert ends > 8


def test_ale_s_preprocessing_is_not_that_of_the_env_alone():
    pytest.importorskip("ale_py")
    with pytest.raises(ConfigError, match=r"the batch of ale_py:ALE/Pong-v5 observes Box\(.* the env alone"):
        make_batch(EnvConfig(id="ale_py:ALE/Pong-v5"), 2)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's, of bounds that EnvPool declares
def test_envpool_s_cartpoles_give_filler_rows_and_true_final_observations():
    pytest.importorskip("envpool")
    factory = EnvFactory(EnvConfig(id=CARTPOLE, max_episode_steps=30))

    def steps():
        return play(NativeVectorizer([factory] * 8, episode_seed=EpisodeSeeds(3), backend="envpool"), 200)

    (first, taken), (again, repeated) = steps(), steps()
    np.testing.assert_array_equal(first, again)
    alone, ends = gym.make(CARTPOLE).unwrapped, 0
    alone.reset()
    at, over, rng = first, np.zeros(8, bool), np.random.default_rng(0)
    for step, same in zip(taken, repeated, strict=True):
        np.testing.assert_array_equal(step.obs, same.obs)
        np.testing.assert_array_equal(step.mask, ~over)
        np.testing.assert_array_equal(step.final_obs, step.obs[step.ended])
        actions = rng.integers(2, size=8)
        for env in range(8):
            if not over[env]:  # the same physics as Gymnasium's, which play when the policy is evaluated
                alone.state = at[env].astype(np.float64)
                alone.steps_beyond_terminated = None
                obs, _, terminated, _, _ = alone.step(int(actions[env]))
                np.testing.assert_allclose(step.obs[env], obs, atol=1e-5)
                assert step.terminated[env] == (terminated and not step.truncated[env])  # EnvPool tells one of both
        at, over = step.obs, step.terminated | step.truncated
        assert (step.episode_length <= 30).all()
        ends += int(over.sum())
    assert ends > 20
