from parl_cli.metrics.catalog import lookup
from parl_cli.metrics.episodes import EpisodeWindow, WindowGroup
from parl_cli.metrics.per_policy import aggregates, merged
from parl_cli.types import Episode
from tests.helpers.saved import as_saved


def test_aggregates_of_known_metrics():
    each = [
        {"loss/value": 1.0, "episode/return_min": 1.0, "episode/return_max": 7.0, "rollout/dropped_steps": 2.0},
        {"loss/value": 2.0, "episode/return_min": 3.0, "episode/return_max": 5.0, "rollout/dropped_steps": 3.0},
    ]
    assert aggregates(each) == {
        "loss/value": 1.5,
        "episode/return_min": 1.0,
        "episode/return_max": 7.0,
        "rollout/dropped_steps": 5.0,
    }


def test_what_only_one_policy_has_is_not_averaged_with_nothing():
    assert aggregates([{}, {"algo/kl_penalty_coef": 2.0}]) == {"algo/kl_penalty_coef": 2.0}
    assert aggregates([{}, {}]) == {}


def test_shares_of_lags_stay_with_each_policy():
    name = "rollout/policy_lag_1_share"
    assert merged([{name: 0.25}, {}]) == {f"policy_0/{name}": 0.25}


def test_every_metric_is_there_for_each_policy():
    assert merged([{"loss/value": 1.0}, {"loss/value": 2.0}]) == {
        "loss/value": 1.5,
        "policy_0/loss/value": 1.0,
        "policy_1/loss/value": 2.0,
    }


def test_the_catalogue_knows_a_policy_s_metric_as_the_metric():
    assert lookup("policy_12/loss/value") is lookup("loss/value") is not None
    assert lookup("policy_0/loss/none") is None
    assert lookup("policy_0/policy_1/loss/value") is None
    assert lookup("policy_x/loss/value") is None


def test_episodes_count_for_the_policy_of_their_env():
    group, alone = WindowGroup(2), [EpisodeWindow(), EpisodeWindow()]
    episodes = [Episode(env, float(10 * env + n), n + 1) for n in range(3) for env in (0, 1, 2, 5)]
    group.add(episodes)
    for policy_id, window in enumerate(alone):
        window.add([episode for episode in episodes if episode.env_id % 2 == policy_id])
    metrics = group.metrics()
    assert metrics == merged([window.metrics() for window in alone])
    assert metrics["episode/count"] == 12
    assert metrics["policy_0/episode/return_mean"] == 11.0
    assert metrics["policy_1/episode/return_mean"] == 31.0
    assert metrics["episode/return_mean"] == 21.0


def test_a_saved_group_of_windows_is_the_same():
    group, heir = WindowGroup(3), WindowGroup(3)
    group.add([Episode(env, 0.1 * env, env + 1) for env in range(7)])
    heir.load_state_dict(as_saved(group.state_dict()))
    assert heir.metrics() == group.metrics()
