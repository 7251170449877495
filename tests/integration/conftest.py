"""What integration tests share."""

import pytest


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working directory, in which every file that is written shows."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"
