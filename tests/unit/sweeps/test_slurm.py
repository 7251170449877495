"""What a sweep tells Slurm and hears from it; tests/integration/test_slurm.py runs one against a stand-in."""

import json
import sys

import pytest

from parl_cli.cli import main
from parl_cli.errors import ConfigError
from parl_cli.sweeps import slurm
from parl_cli.sweeps.options import SlurmConfig
from parl_cli.sweeps.slurm import Slurm, SlurmJob, check_options, make_executor
from tests.helpers import fake_slurm
from tests.helpers.runs import edit_json, tree
from tests.helpers.sweeps import new_ledger, write_result


@pytest.fixture
def cluster(tmp_path_factory, monkeypatch):
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    for name, value in fake_slurm.install(folder).items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


SWEEP = ["train", "-m", "seed=1,2"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sweep.cluster=pbs"], "sweep.cluster=pbs: choose from slurm"),
        (["sweep.slurm.partition=gpu"], "is of no effect without sweep.cluster=slurm"),
        (["sweep.cluster=slurm", "sweep.slurm.partition=nowhere"], "would not take such a job: sbatch: error: invalid"),
        (["sweep.cluster=slurm", "sweep.slurm.partition='a b'"], "sweep.slurm.partition='a b': must be as sbatch"),
        (["sweep.cluster=slurm", "sweep.slurm.time_min=1"], "sweep.slurm.time_min=1: must be at least 5"),
        (["sweep.cluster=slurm", "sweep.slurm.cpus=0"], "sweep.slurm.cpus=0: must be at least 1"),
        (["sweep.cluster=slurm", "sweep.slurm.mem=5"], "sweep.slurm.mem"),
        (["sweep.cluster=slurm", "sweep.slurm.on_interrupt=no"], "choose from cancel, leave"),
        (["sweep.cluster=slurm", "hydra.sweep.dir=a%j"], "Slurm would change a %"),
        (["sweep.cluster=slurm", "sweep=ppo"], "sweep.num_jobs=null: all 30 trials at once"),
        (["sweep.cluster=slurm", "algo.gamma=2"], "algo.gamma=2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_with_exit_code_2_and_writes_nothing(cluster, here, capsys, args, words):
    assert main([*(SWEEP[:2] if "sweep=ppo" in args else SWEEP), *args]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert words in err
    assert out == ""
    assert not tree(here)
    assert not fake_slurm.jobs(cluster)


def test_without_slurm_or_submitit_a_sweep_says_what_is_missing(here, capsys, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(here))
    assert main([*SWEEP, "sweep.cluster=slurm"]) == 2
    assert "sweep.cluster=slurm: no sbatch on the PATH" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([*SWEEP, "sweep.cluster=slurm"]) == 2
    assert 'needs submitit; pip install "parl-cli[slurm]"' in capsys.readouterr().err
    assert not tree(here)


@pytest.mark.parametrize("text", ["gpu\nrm -rf ~", "a b", "$(id)", "`id`", "a;b", "a'b", 'a"b', "", "é"])
def test_no_option_can_leave_its_line_of_the_script(text, tmp_path):
    with pytest.raises(ConfigError, match=r"must be as sbatch takes it"):
        check_options(SlurmConfig(gres=text), tmp_path)


def test_a_ledger_from_elsewhere_cannot_put_commands_into_a_script(cluster, here, capsys):
    (here / "sweep").mkdir()
    ledger = new_ledger(here / "sweep", ["seed=1"], cluster="slurm")
    edit_json(ledger.path / "sweep.json", lambda values: values["options"]["slurm"].update(account="a\ntouch harmed"))
    assert main(["resume", "run=sweep"]) == 2
    assert "must be as sbatch takes it" in capsys.readouterr().err
    assert not fake_slurm.jobs(cluster)


def test_null_says_nothing_to_the_cluster(cluster, tmp_path):
    text = make_executor(SlurmConfig(), tmp_path, "n", tmp_path / "a b" / "log")._make_submission_file_text("true", "")
    head = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert head == [
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --job-name=n",
        "#SBATCH --no-requeue",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output='{tmp_path}/a b/log'",
        "#SBATCH --signal=B:TERM@60",
    ]
    assert "srun" not in text


@pytest.fixture
def sweep(cluster, tmp_path, monkeypatch):
    """A cluster that answers as the test says, and its clock."""
    said = {"squeue": "", "sacct": "", "scancel": ""}
    asked = []

    def ask(words, text=""):
        asked.append(list(words))
        if said[words[0]] is None:
            raise slurm.SlurmError(f"{words[0]}: down")
        return said[words[0]]

    clock = [1000.0]
    monkeypatch.setattr(slurm, "ask", ask)
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock[0])
    ledger = new_ledger(tmp_path, ["seed=1", "seed=2"], cluster="slurm")
    ledger.jobs[0].cluster_id = "7"
    return Slurm(ledger), said, asked, clock


def line(sweep, state, number=0, cluster_id="7"):
    return f"{cluster_id}|{sweep.name(sweep.ledger.jobs[number])}|{state}\n"


def test_a_job_is_over_once_the_cluster_says_so_and_the_disk_had_time(sweep):
    cluster, said, asked, clock = sweep
    job = SlurmJob(cluster, cluster.ledger.jobs[0], clock[0])
    said["squeue"] = line(cluster, "PENDING")
    assert job.poll() is None
    assert job.is_queued
    said["squeue"] = line(cluster, "RUNNING")
    clock[0] += 29.0
    assert job.poll() is None
    assert job.is_queued  # not asked every second
    clock[0] += 2.0
    assert job.poll() is None
    assert not job.is_queued
    assert [words[0] for words in asked] == ["squeue", "squeue"]
    said["squeue"] = line(cluster, "OUT_OF_MEMORY")
    clock[0] += 31.0
    assert job.poll() is None
    clock[0] += 6.0
    assert job.poll() == 1
    assert "OUT_OF_MEMORY; ask for more" in job.cause(1)


def test_what_squeue_has_forgotten_the_accounting_tells(sweep):
    cluster, said, _, clock = sweep
    job = SlurmJob(cluster, cluster.ledger.jobs[0], clock[0])
    said["sacct"] = "CANCELLED by 1000\n"
    assert job.poll() is None
    clock[0] += 6.0
    assert job.poll() == 1
    assert job.cause(1).endswith("as 7: CANCELLED")


def test_without_accounting_the_cause_is_unknown_but_the_end_is_not(sweep):
    cluster, said, _, clock = sweep
    job = SlurmJob(cluster, cluster.ledger.jobs[0], clock[0])
    said["sacct"] = None
    job.poll()
    clock[0] += 6.0
    assert job.poll() == 1
    assert job.cause(1).endswith("it left no result")


def test_a_cluster_that_does_not_answer_ends_nothing(sweep, capsys):
    cluster, said, _, clock = sweep
    job = SlurmJob(cluster, cluster.ledger.jobs[0], clock[0])
    said["squeue"] = None
    for _ in range(5):
        clock[0] += 31.0
        assert job.poll() is None
    assert capsys.readouterr().out.count("squeue: down") == 1
    write_result(cluster.ledger.folder(job.job), "finished", exit_code=0)
    clock[0] += 3.0
    assert job.poll() == 0


def test_another_jobs_number_is_not_taken_for_ones_own(sweep):
    cluster, said, asked, _ = sweep
    said["squeue"] = "7|somebody-elses|RUNNING\n" + line(cluster, "RUNNING", number=1, cluster_id="9")
    adopted = cluster.adopt()
    assert list(adopted) == [1]
    assert cluster.ledger.jobs[1].cluster_id == "9"
    adopted[1].stop()
    assert asked[-1] == ["scancel", f"--name={cluster.name(cluster.ledger.jobs[1])}", "9"]
    assert cluster.state(cluster.ledger.jobs[0], since=0.0) == "GONE"


def test_what_was_asked_to_end_is_asked_after_oftener(sweep):
    cluster, said, asked, clock = sweep
    said["squeue"] = line(cluster, "RUNNING")
    job = SlurmJob(cluster, cluster.ledger.jobs[0], clock[0])
    job.poll()
    job.stop()
    job.stop()
    assert [words[0] for words in asked] == ["squeue", "scancel"]
    said["squeue"] = line(cluster, "CANCELLED")
    clock[0] += 3.0
    assert job.poll() == 1


def test_an_interrupted_job_was_cut_off_unless_somebody_cancelled_it(sweep):
    cluster, said, _, clock = sweep
    write_result(cluster.ledger.folder(cluster.ledger.jobs[0]), "interrupted", exit_code=143)
    for state, cut_off in (
        ("PREEMPTED", "was preempted"),
        ("FAILED", "came to the end of its time"),
        ("CANCELLED", ""),
    ):
        job = SlurmJob(cluster, cluster.ledger.jobs[0], clock[0])
        said["squeue"] = line(cluster, state)
        clock[0] += 31.0
        assert job.poll() == 143
        assert job.cut_off.startswith(cut_off)
        assert bool(job.cut_off) == bool(cut_off)


def test_a_refused_submission_is_a_failed_job_with_the_reason(cluster, tmp_path):
    ledger = new_ledger(tmp_path, ["seed=1"], cluster="slurm")
    place = Slurm(ledger)
    fake_slurm.change(cluster, down=True)
    with pytest.raises(slurm.SlurmError, match="parl resume"):
        place.start(ledger.jobs[0])
    fake_slurm.change(cluster)
    place.options = SlurmConfig(partition="nowhere")
    job = place.start(ledger.jobs[0])
    assert job.poll() == 1
    assert "was not submitted: " in job.cause(1)
    assert "nowhere" in job.cause(1)
    assert json.loads((tmp_path / "sweep.json").read_text())["jobs"][0]["cluster_id"] == ""
