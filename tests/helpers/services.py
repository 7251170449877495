"""Stand-ins for the packages `wandb` and `mlflow`: they remember what they are told, and raise when asked to."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest


class FakeRuns:
    """What both services have in common.

    Attributes:
        runs: by id, the rows as (step, values).
        ends: by id, how it was ended.
        begun: the keyword arguments with which each was begun or gone on with.
        failing: called before each row is taken; may raise.
    """

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.ends: dict[str, Any] = {}
        self.begun: list[dict[str, Any]] = []
        self.failing: Any = lambda: None

    def steps(self, run_id: str | None = None) -> list[int]:
        """The steps of a run (the only one), each once, in the order they came."""
        return list(dict.fromkeys(step for step, _ in self.runs[run_id or next(iter(self.runs))]))


def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    """Put a `wandb` into the place of the package; as the real one does, it ignores steps that go back."""
    fake = FakeRuns()

    class Run:
        url = "https://wandb.example/run"

        def __init__(self, run_id: str) -> None:
            self.id, self.dir = run_id, "somewhere/files"

        def log(self, values: dict[str, float], step: int) -> None:
            fake.failing()
            fake.runs[self.id].append((step, values))

        def finish(self, exit_code: int) -> None:
            fake.ends[self.id] = exit_code

    def init(**options: Any) -> Run:
        fake.begun.append(options)
        run_id = options["id"] or f"run{len(fake.runs)}"
        fake.runs.setdefault(run_id, [])
        return Run(run_id)

    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
    module.init, module.Settings = init, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return fake


def fake_mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    """Put an `mlflow` into the place of the package, with its limits on the size of a batch."""
    fake = FakeRuns()
    experiments: dict[str, str] = {}

    def entity(*names: str) -> Any:
        return lambda *values: types.SimpleNamespace(**dict(zip(names, values, strict=True)))

    class Client:
        def __init__(self, tracking_uri: str | None) -> None:
            self.tracking_uri = tracking_uri

        def get_experiment_by_name(self, name: str) -> Any:
            return types.SimpleNamespace(experiment_id=experiments[name]) if name in experiments else None

        def create_experiment(self, name: str) -> str:
            if name in experiments:
                raise RuntimeError(f"RESOURCE_ALREADY_EXISTS: {name}")
            return experiments.setdefault(name, f"experiment {name}")

        def create_run(self, experiment_id: str, **options: Any) -> Any:
            fake.begun.append({"experiment_id": experiment_id, "uri": self.tracking_uri, "params": {}} | options)
            run_id = f"run{len(fake.runs)}"
            fake.runs[run_id] = []
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

        def update_run(self, run_id: str, status: str) -> None:
            fake.begun.append({"id": run_id, "status": status})

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            assert len(metrics) <= 1000
            assert len(params) <= 100
            for param in params:
                fake.begun[-1]["params"][param.key] = param.value
            for metric in metrics:
                fake.failing()
                fake.runs[run_id].append((metric.step, {metric.key: metric.value}))

        def set_terminated(self, run_id: str, status: str) -> None:
            fake.ends[run_id] = status

    module, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    module.__spec__ = types.SimpleNamespace(name="mlflow")  # type: ignore[assignment]
    module.MlflowClient = Client  # type: ignore[attr-defined]
    entities.Metric = entity("key", "value", "timestamp", "step")  # type: ignore[attr-defined]
    entities.Param = entity("key", "value")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return fake
