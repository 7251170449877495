"""What a search came to: its trials, what mattered, and the best config as an experiment that is ready to run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from parl_cli.metrics import console, gauges
from parl_cli.sweeps.ledger import Job, State
from parl_cli.sweeps.search import Search
from parl_cli.sweeps.summary import print_table

_SHOWN = 10  # trials


def print_search(search: Search) -> None:
    """Print the best trials, why others failed, and how much each key mattered; write the best as an experiment.

    Raises:
        ParlError: no trial came to an end.
    """
    ledger, objectives = search.ledger, [str(objective) for objective in search.options.objectives]
    for job in ledger.of_state(State.FAILED):
        console.print_line(f"trial {job.number} failed: {job.reason}")
    best = search.best()
    columns = ["trial", *objectives, "steps", "what"]
    labels = ledger.labels()
    rows = [_row(job, labels[job.number]) for job in _ranked(search, best)[:_SHOWN]]
    print_table(columns, rows, title=f"best of {len(ledger.jobs)} trials")
    importances = search.importances()
    if importances:
        shares = [[key, f"{share:.0%}"] for key, share in importances.items()]
        print_table(["key", "importance"], shares, title=f"what moved {objectives[0]}")
    file = write_best(search, best[0])
    console.print_line(f"best config: {console.short_path(file)}")
    train = ["parl", "train", "experiment=best", "--config-dir", console.short_path(ledger.path)]
    if config_dir := ledger.base.get("config_dir"):
        train.append(f"hydra.searchpath=['file://{config_dir}']")
    console.print_line(f"  train it   {console.command_line(train, ledger.plugins)}")


def write_best(search: Search, job: Job) -> Path:
    """Write a trial as `experiment/best.yaml` below the sweep's folder.

    It names the groups that were chosen and holds every value that differs from what those bring.
    """
    ledger, value = search.ledger, job.result["values"][0]
    groups = [{f"override /{group}": choice} for group, choice in ledger.base["choices"].items()]
    values = copy.deepcopy(ledger.base["changes"])
    for key, tried in search.values(job).items():
        _put(values, key, tried)
    about = (
        f"# Trial {job.number}, the best of {len(ledger.jobs)}: {search.options.objectives[0]} {value:.4g}, after "
        f"{job.result['env_steps']:,} env steps."
    )
    dump = functools.partial(yaml.safe_dump, sort_keys=False, allow_unicode=True)
    file = ledger.path / "experiment" / "best.yaml"
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)  # never written through a link
    file.write_text(f"# @package _global_\n{about}\n{dump({'defaults': groups})}\n{dump(values)}", encoding="utf-8")
    return file


def difference(values: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What must be changed in `other` to get `values`, as far as that is done by setting keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(other.get(key), Mapping):
            below = difference(value, other[key])
            if below:
                found[key] = below
        elif key not in other or other[key] != value:
            found[key] = value
    return found


def _ranked(search: Search, best: list[Job]) -> list[Job]:
    """Those that are done, the best first."""
    sign = -1 if search.options.objectives[0].direction == "maximize" else 1
    rest = [job for job in search.ledger.of_state(State.DONE) if job not in best]
    return [*best, *sorted(rest, key=lambda job: sign * job.result["values"][0])]


def _row(job: Job, label: str) -> list[str]:
    values = [gauges.figure(value) for value in job.result["values"]]
    return [str(job.number), *values, gauges.count(job.result["env_steps"]), label]


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings, which are made as needed."""
    *path, last = key.split(".")
    for name in path:
        values = values.setdefault(name, {})
    values[last] = value
