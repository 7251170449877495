from parl_cli import build
from parl_cli.bench import candidates, measure
from parl_cli.bench.measure import Bench
from parl_cli.bench.parts import measure_parts
from parl_cli.config import BenchCommand
from parl_cli.envs.factory import env_spec
from parl_cli.vectorizers.speed import StepCost
from tests.helpers.stubs import train_config, weights_hash


def test_learning_is_measured_from_the_same_state_each_time(monkeypatch):
    config = train_config()
    seen = []
    original = build.make_learner

    def watched(*args):
        learner = original(*args)
        step = learner.step

        def noting(rollouts):
            seen.append((learner.updates, weights_hash(learner.algo.policy)))
            return step(rollouts)

        learner.step = noting
        return learner

    monkeypatch.setattr(build, "make_learner", watched)
    parts = measure_parts(config, env_spec(config.env), 0.05)
    assert len(seen) > 2
    assert len(set(seen)) == 1
    assert parts.update_steps == config.num_envs * config.algo.num_steps
    assert 0 < parts.act_s < 0.1
    assert 0 < parts.learn_s < 0.1
    assert 0 < parts.act_cpu_s <= parts.act_s * 1.01
    assert 0 < parts.learn_cpu_s <= parts.learn_s * 1.01


def test_a_tuning_trains_only_the_most_promising(monkeypatch):
    monkeypatch.setattr(measure, "FINALISTS", 2)
    monkeypatch.setattr(candidates, "TUNED_NUM_ENVS", (2, 8))
    monkeypatch.setattr(measure, "step_cost", lambda env_fn, seconds: StepCost(1e-4, 6e-6, 1.0))
    monkeypatch.setattr(measure, "wake_up_s", lambda: 1e-5)
    stages = []
    command = BenchCommand(seconds=0.01, tune=True, vectorizers=["serial", "thread"])
    found = Bench(train_config(), command, lambda stage, now: stages.append(stage)).run()
    sizes = [result.candidate.config.num_envs for result in found.results]
    assert sorted(set(sizes)) == [2, 4, 8]
    assert sum(bool(result.end_to_end.steps_per_s) for result in found.results) == 2
    assert "end to end, 2 ways" in stages
    assert list(found.parts) == [2, 4, 8]
