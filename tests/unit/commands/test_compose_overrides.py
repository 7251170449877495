import pytest

from parl_cli.commands._flags import parse_flags
from parl_cli.composition.compose import compose, gather_words, parse_overrides, plain, prepare, quote_values, session
from parl_cli.composition.grid import expand
from parl_cli.config import EnvConfig, parse
from parl_cli.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(*overrides, name="train", config_dir=None):
    with session(config_dir) as hydra:
        return plain(compose(hydra, name, overrides))


def message(*overrides, name="train"):
    with pytest.raises(ConfigError) as caught:
        values(*overrides, name=name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("algo=ppoo", "algo=ppoo: no such option; did you mean ppo or appo or tr_ppo?"),
        ("env=cartpol", "env=cartpol: no such option; did you mean cartpole?"),
        ("experiment=zzz", "experiment=zzz: no such option; choose from "),
        ("sede=1", "unknown key sede; did you mean seed?"),
        ("clip_range=0.1", "unknown key clip_range; did you mean algo.clip_range?"),
        ("algo.gama=1", "unknown key algo.gama; did you mean gamma?"),
        ("seed.x=1", "unknown key seed.x; seed has no keys"),
        ("+seed=1", "+seed: the key is there already; leave out the +"),
        ("seed=1,2", "seed=1,2: several values need -m"),
        ("seed=choice(1,2)", "seed=choice(1,2): several values need -m"),
        ("cartpole", "cannot read 'cartpole': write key=value"),
        ("name=a[b", "cannot read 'name=a[b'"),
        ("algo=null", "algo=null: one is needed; choose from "),
        ("logger=null", "logger=null: one is needed; choose from default, mlflow, none"),
        ("vectorizer=[serial,thread]", "one is needed; for several jobs type -m vectorizer=serial,thread"),
        ("env=ALE/Pong-v5", "env=ALE/Pong-v5: no such option; for a Gymnasium id type env=gym env.id=ALE/Pong-v5"),
        ("env=FrozenLake-v1", "for a Gymnasium id type env=gym env.id=FrozenLake-v1"),
        ("total_steps=${nothing}", "total_steps: Interpolation key 'nothing' not found"),
        ("init_from=${oc.env:PARL_NO_SUCH}", "Environment variable 'PARL_NO_SUCH' not found"),
    ],
)
def test_a_mistake_is_told_in_one_line(override, words):
    assert message(override).startswith(words) or words in message(override)


def test_a_users_yaml_that_cannot_be_read_is_told_with_its_line(elsewhere):
    (elsewhere / "conf" / "env").mkdir(parents=True)
    (elsewhere / "conf" / "env" / "mine.yaml").write_text("name: mine\nid: [1\n")
    assert "mine.yaml, line 3: not valid YAML" in message("env=mine")


def test_numbers_in_paths_stay():
    typed = ["init_from=/data/1e6/latest", "hydra.run.dir=out/1e5"]
    assert prepare(typed) == typed


def test_whole_exponents_become_whole_numbers():
    assert prepare(["total_steps=1e6", "seed=1e2,2.5e1", "x=1.5e-3", "y='1e6'", "z=a1e6"]) == [
        "total_steps=1000000",
        "seed=100,25",
        "x=1.5e-3",
        "y='1e6'",
        "z=a1e6",
    ]


def test_env_kwargs_are_open_and_keep_their_floats():
    assert values("env.kwargs.gravity=1e1")["env"]["kwargs"] == {"gravity": 10.0}
    assert prepare(["env.kwargs.gravity=1e1"]) == ["++env.kwargs.gravity=1e1"]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("env.kwargs={g: 9}", "env", {"g": 9}),
        ("policies={1: {algo: {gamma: 0.9}}}", "policies", {1: {"algo": {"gamma": 0.9}}}),
        ("logger.sinks={tensorboard: {}}", "logger", {"csv": {}, "tensorboard": {}}),
    ],
)
def test_open_mappings_may_be_given_whole(override, key, value):
    found = values(override)[key]
    inner = override.partition("=")[0].partition(".")[2]
    assert (found[inner] if inner else found) == value


@pytest.mark.parametrize("name", ["2024_10", "1e5", "007"])
def test_a_name_that_looks_like_a_number_is_text(name):
    assert values(f"name={name}")["name"] == name


def test_a_choice_can_be_taken_away_with_null():
    assert values("debug=null", "experiment=null") == values()


def test_paths_may_hold_characters_of_the_override_grammar():
    path = "/tmp/a b,c=d(1)[2]'x"
    with session() as hydra:
        [override] = parse_overrides(hydra, quote_values([f"run={path}"], frozenset({"run"})))
    assert override.value() == path


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert quote_values(["run=~/runs/1"], frozenset({"run"})) == ["run='/home/me/runs/1'"]


@pytest.mark.parametrize("text", ["run='a'", 'run="a"', "run=null", "run=${name}", "step=3", "run="])
def test_what_needs_no_quotes_is_left_alone(text):
    assert quote_values([text], frozenset({"run"})) == [text]


def test_words_beside_their_key_are_refused():
    assert gather_words(["a", "confidence=0.9"], "runs") == ["confidence=0.9", "runs=['a']"]
    with pytest.raises(ConfigError, match="runs=a: stands beside b; leave out runs="):
        gather_words(["runs=a", "b"], "runs")


def test_interpolated_folder_name_follows_the_choices():
    assert values("env=pendulum")["name"] == "ppo_pendulum"


def test_missing_values_are_left_out():
    assert "checkpoint" not in values(name="eval")


@pytest.fixture
def mine(elsewhere):
    """A user's own conf/ with an env, a recipe that chooses it, and tuned values for it."""
    for path, text in {
        "env/mine.yaml": "id: CartPole-v1\n",
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /env: mine\nnum_envs: 3\n",
        "tuned/ppo/mine.yaml": "# @package _global_\nnum_envs: 5\ntotal_steps: 50\nalgo:\n  gamma: 0.5\n",
        "algo/ppo.yaml": "name: ppo\n",
    }.items():
        file = elsewhere / "own" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return elsewhere / "own"


def test_experiment_wins_over_tuned_and_the_command_line_over_both(mine):
    (mine / "algo" / "ppo.yaml").unlink()
    composed = values("experiment=mine", "total_steps=7", config_dir=str(mine))
    assert composed["env"]["name"] == "mine"
    assert composed["algo"]["gamma"] == 0.5  # tuned, for the env that the experiment chose
    assert composed["num_envs"] == 3
    assert composed["total_steps"] == 7


def test_an_env_of_ones_own_needs_nothing_but_its_id(mine):
    (mine / "algo" / "ppo.yaml").unlink()
    changes = ("env.max_episode_steps=100", "env.wrappers=[flatten_obs]")
    composed = values("env=mine", *changes, config_dir=str(mine))
    assert parse(EnvConfig, composed["env"], "env") == EnvConfig(
        name="mine", id="CartPole-v1", wrappers=["flatten_obs"], max_episode_steps=100
    )
    assert composed["name"] == "ppo_mine"


def test_tuned_values_can_be_left_out(mine):
    (mine / "algo" / "ppo.yaml").unlink()
    assert values("env=mine", "tuned=null", config_dir=str(mine))["num_envs"] == 32


def test_a_users_file_that_is_hidden_by_parls_own_is_an_error(mine):
    with pytest.raises(ConfigError, match=r"algo=ppo: .*own/algo/ppo.yaml is hidden"):
        values(config_dir=str(mine))


def test_conf_of_another_project_does_not_disturb(elsewhere):
    (elsewhere / "conf").mkdir()
    (elsewhere / "conf" / "train.yaml").write_text("learning_rate: 1\n")
    assert "learning_rate" not in values()


def test_flags_and_overrides_mix():
    flags = parse_flags("train", ["algo=ppo", "-m", "seed=1,2", "--config-dir", "x", "env=cartpole"])
    assert flags.multirun
    assert flags.config_dir == "x"
    assert flags.overrides == ["algo=ppo", "seed=1,2", "env=cartpole"]


@pytest.mark.parametrize(
    "args", [["--nonsense"], ["--cfg", "nonsense"], ["-m", "--cfg", "job"], ["--resolve"], ["--config-dir"]]
)
def test_flags_that_make_no_sense_are_an_error(args):
    with pytest.raises(ConfigError):
        parse_flags("train", args)


def test_a_grid_is_every_combination_with_the_last_key_changing_fastest():
    with session() as hydra:
        jobs = expand(hydra.config_loader, ["seed=1,2", "num_envs=8", "env=cartpole,acrobot"])
    assert jobs == [
        ["seed=1", "num_envs=8", "env=cartpole"],
        ["seed=1", "num_envs=8", "env=acrobot"],
        ["seed=2", "num_envs=8", "env=cartpole"],
        ["seed=2", "num_envs=8", "env=acrobot"],
    ]


@pytest.mark.parametrize("sweep", ["seed=range(0,0)", "algo.gamma=interval(0,1)"])
def test_a_grid_without_single_values_is_an_error(sweep):
    with session() as hydra, pytest.raises(ConfigError, match="values"):
        expand(hydra.config_loader, [sweep])
