import pytest

from parl_cli import cli
from tests.helpers.run_folders import config, write_run, write_seeds


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_seeds(tmp_path / "outputs", [4, 8, 6], "ppo")
    write_seeds(tmp_path / "outputs", [1, 2, 3], "a2c")
    return tmp_path


def parl(capsys, *args):
    code = cli.main(["report", *args])
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    "words",
    [
        ["outputs"],
        ["outputs/ppo_cartpole", "outputs/a2c_cartpole"],
        ["runs=outputs/*"],
        ["runs=[outputs/ppo_cartpole,outputs/a2c_cartpole]"],
        ["formats=[]", "outputs/*/*"],
    ],
)
def test_runs_are_named_by_words_lists_or_globs(words, folder, capsys):
    code, out, _ = parl(capsys, *words, "formats=[]")
    assert code == 0
    assert "a2c" in out
    assert "ppo" in out
    assert not (folder / "outputs" / "report").exists()


def test_a_path_with_an_equals_sign_and_a_quote_is_a_path(folder, capsys):
    write_run(folder / "lr=1,it's" / "run")
    code, out, _ = parl(capsys, "./lr=1,it's", "formats=[]")
    assert (code, "ppo" in out) == (0, True)


def test_files_are_written_and_their_place_is_told(folder, capsys):
    code, out, _ = parl(capsys, "outputs", "formats=[md]", "output=my report")
    assert code == 0
    assert out.endswith("written to my report\n")
    assert (
        "Made by `parl report outputs 'formats=[md]' 'output=my report'`"
        in (folder / "my report/report.md").read_text()
    )


def test_values_of_config_keys_choose_runs(folder, capsys):
    code, out, _ = parl(capsys, "outputs", "where.algo.name=ppo", "where.seed=[1,2]", "formats=[]", "thresholds=[5]")
    assert code == 0
    assert "ppo  2" in out
    assert "a2c" not in out


def test_each_task_can_have_thresholds_and_ends_of_its_own(folder, capsys):
    write_seeds(folder / "outputs", [4, 8, 6], "ppo", env="acrobot")
    write_seeds(folder / "outputs", [4, 8, 5], "a2c", env="acrobot")
    words = ["thresholds.cartpole=[3]", "normalize.acrobot=[0,10]", "formats=[]"]
    code, out, _ = parl(capsys, "outputs", *words)
    assert code == 0
    assert "≥ 3" in out
    assert "acrobot 0.0 … 10.0" in out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "missing key runs: "),
        (["nope"], "runs=nope: nothing is there"),
        (["outputs", "by=[algo.nam]"], "by=[algo.nam]: no run has such a key; did you mean algo.name"),
        (["outputs", "score=last"], "score=last: "),
        (["outputs", "score=eval", "steps=100"], "steps=100: score=eval is what parl eval found"),
        (["outputs", "where.policies={}"], "no run has a key policies"),
        (["outputs", "formats=[pdf]"], "formats[0]=pdf: "),
        (["outputs", "confidence=1.5"], "confidence=1.5: must be less than 1"),
        (["outputs", "metrics=x"], "unknown key metrics; did you mean metric?"),
        (["outputs", "thresholds=x"], "thresholds=x: must be "),
        (["outputs", "by=[algo.num_steps]"], "mixes runs of different settings: algo.name=a2c (3 runs, like "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, reason, folder, capsys):
    code, out, err = parl(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"parl: error: {reason}") or reason in err
    assert err.count("\n") == 1


def test_a_broken_run_is_named_and_the_rest_is_shown(folder, capsys):
    (write_run(folder / "outputs" / "broken", config(seed=9)) / "config.yaml").unlink()
    code, out, _ = parl(capsys, "outputs", "formats=[]")
    assert code == 0
    assert "broken: outputs/broken: config.yaml is missing" in out
    assert "ppo" in out


def test_with_m_one_report_for_each_value(folder, capsys):
    code, out, _ = parl(capsys, "-m", "outputs", "score=final,best", "formats=[csv]")
    assert code == 0
    assert "last episode/return_mean" in out
    assert "best episode/return_mean" in out
    assert len(list((folder / "outputs/report").iterdir())) == 2
