import multiprocessing
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def forked_actors(monkeypatch):
    """Actor processes are forked from one that has imported torch: where a test is not about how processes live."""
    from parl_cli.actors import process

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["parl_cli.build", "parl_cli.actors.worker"])
    monkeypatch.setattr(process, "multiprocessing", SimpleNamespace(get_context=lambda method: context))
