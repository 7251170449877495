import pytest
import torch

from parl_cli.errors import ConfigError
from parl_cli.training.device import select_device


@pytest.fixture
def machine(monkeypatch):
    """A machine with some accelerators."""

    def make(cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return make


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "prefers", "device"),
    [
        ("auto", 0, False, True, "cpu"),
        ("auto", 2, False, True, "cuda"),
        ("auto", 2, False, False, "cpu"),
        ("auto", 0, True, True, "mps"),
        ("auto", 0, True, False, "cpu"),
        ("cpu", 2, False, True, "cpu"),
        ("cuda", 1, False, False, "cuda"),
        ("cuda:1", 2, False, False, "cuda:1"),
        ("mps", 0, True, False, "mps"),
    ],
)
def test_device_is_what_was_asked_for(machine, name, cuda, mps, prefers, device):
    machine(cuda, mps)
    assert select_device(name, prefers_accelerator=prefers) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "cuda", "words"),
    [
        ("cuda", 0, "device=cuda: this machine has 0 CUDA devices; use device=auto or device=cpu"),
        ("cuda:2", 2, "device=cuda:2: this machine has 2 CUDA devices; use device=auto or device=cpu"),
        ("mps", 0, "device=mps: this machine has no Metal device; use device=auto or device=cpu"),
        ("gpu", 1, "device=gpu: must be auto, cpu, cuda, cuda:N or mps"),
        ("cuda:x", 1, "device=cuda:x: must be auto"),
        ("cuda:256", 1, "device=cuda:256: this machine has 1 CUDA devices"),
        ("cuda:128", 0, "device=cuda:128: this machine has 0 CUDA devices"),
        ("cuda:00", 1, "device=cuda:00: must be auto"),
        ("cuda:99999999999", 1, "device=cuda:99999999999: must be auto"),
        ("cpu:0", 1, "device=cpu:0: must be auto"),
        ("", 1, "device=: must be auto"),
        ("Cuda", 1, "device=Cuda: must be auto"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_and_no_fallback(machine, name, cuda, words):
    machine(cuda)
    with pytest.raises(ConfigError) as caught:
        select_device(name, prefers_accelerator=True)
    assert str(caught.value).startswith(words)
