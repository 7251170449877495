import json

import pytest

from parl_cli.errors import CheckpointError
from parl_cli.metrics.episodes import EpisodeWindow
from parl_cli.types import Episode


def episodes(*returns):
    return [Episode(env_id=i, episode_return=value, length=10 * (i + 1)) for i, value in enumerate(returns)]


def test_statistics_of_known_episodes():
    window = EpisodeWindow()
    window.add(episodes(1.0, 3.0))
    assert window.metrics() == {
        "episode/return_mean": 2.0,
        "episode/return_std": 1.0,
        "episode/return_min": 1.0,
        "episode/return_max": 3.0,
        "episode/length_mean": 15.0,
        "episode/count": 2.0,
    }


def test_only_the_last_episodes_count_but_all_are_counted():
    window = EpisodeWindow(size=2)
    window.add(episodes(100.0, 1.0, 3.0))
    assert window.metrics()["episode/return_max"] == 3.0
    assert window.metrics()["episode/count"] == 3.0


def test_before_the_first_episode_there_is_a_count_and_no_return():
    assert EpisodeWindow().metrics() == {"episode/count": 0.0}


def test_state_survives_json_exactly():
    window, restored = EpisodeWindow(size=3), EpisodeWindow(size=3)
    window.add(episodes(0.1, 1 / 3, -1e-17, 7.7))
    restored.load_state_dict(json.loads(json.dumps(window.state_dict())))
    for each in (window, restored):
        each.add(episodes(0.3))
    assert restored.metrics() == window.metrics()
    assert restored.state_dict() == window.state_dict()


@pytest.mark.parametrize(
    "broken",
    [
        {"count": -1},
        {"count": "3"},
        {"returns": [float("nan")]},
        {"returns": ["1"]},
        {"returns": [1.0, 2.0]},
        {"lengths": [1.5]},
        {"returns": [1.0] * 101, "lengths": [1] * 101},
        {"returns": None},
    ],
)
def test_damaged_state_is_refused(broken):
    state = {"count": 1, "returns": [1.0], "lengths": [1]}
    EpisodeWindow().load_state_dict(state)
    with pytest.raises(CheckpointError, match="episode statistics"):
        EpisodeWindow().load_state_dict(state | broken)
