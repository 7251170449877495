import numpy as np

from parl_cli.actors.tails import ActionTails


def recorded():
    """Env 0: two actions; env 1: none, its episode just ended; env 2: one."""
    tails = ActionTails(3)
    tails.record(np.array([0, 1, 2]), np.array([[0, 1], [10, 11], [20, 21]]))
    tails.record(np.array([0, 1]), np.array([[2, 3], [12, 13]]))
    tails.end_episode(1)
    return tails


def as_lists(tails):
    return [(envs.tolist(), actions.tolist()) for envs, actions in tails.steps()]


def test_steps_give_each_env_its_actions_in_order():
    assert as_lists(recorded()) == [([0, 2], [[0, 1], [20, 21]]), ([0], [[2, 3]])]


def test_packed_is_end_to_end_by_env():
    actions, lengths = recorded().packed()
    assert actions.tolist() == [[0, 1], [2, 3], [20, 21]]
    assert lengths.tolist() == [2, 0, 1]


def test_unpack_is_the_inverse_of_packed():
    other = ActionTails(3)
    other.record(np.array([1]), np.array([[99, 99]]))
    other.unpack(*recorded().packed())
    assert as_lists(other) == as_lists(recorded())
    other.record(np.array([1]), np.array([[5, 5]]))
    assert other.packed()[1].tolist() == [2, 1, 1]


def test_an_ended_episode_leaves_nothing():
    tails = recorded()
    for env in range(3):
        tails.end_episode(env)
    actions, lengths = tails.packed()
    assert actions.size == 0
    assert lengths.tolist() == [0, 0, 0]
    assert as_lists(tails) == []
    other = ActionTails(3)
    other.unpack(actions, lengths)
    assert as_lists(other) == []


def test_scalar_actions_stay_scalar():
    tails = ActionTails(2)
    tails.record(np.array([1, 0]), np.array([7, 8]))
    assert as_lists(tails) == [([0, 1], [8, 7])]


def test_tails_are_those_of_a_list_per_env_whenever_they_are_folded(monkeypatch):
    rng = np.random.default_rng(0)
    for fold_after in (1, 3, 1000):
        monkeypatch.setattr("parl_cli.actors.tails._FOLD_AFTER", fold_after)
        tails, lists = ActionTails(5), [[] for _ in range(5)]
        for step in range(200):
            envs = rng.permutation(5)[: rng.integers(1, 6)]
            actions = rng.integers(0, 9, (len(envs), 2))
            tails.record(envs, actions)
            for env, action in zip(envs.tolist(), actions.tolist(), strict=True):
                lists[env].append(action)
            for env in (rng.random(5) < 0.1).nonzero()[0].tolist():
                tails.end_episode(env)
                lists[env] = []
            if step % 50 == 7:
                actions, lengths = tails.packed()
                assert lengths.tolist() == list(map(len, lists))
                assert actions.tolist() == [action for own in lists for action in own]
                again = ActionTails(5)
                again.unpack(actions, lengths)
                assert as_lists(again) == as_lists(tails)
                tails = again if step % 100 == 7 else tails  # as after a resume


def test_an_episode_without_an_end_costs_its_actions_bytes_and_a_finished_one_nothing(monkeypatch):
    monkeypatch.setattr("parl_cli.actors.tails._FOLD_AFTER", 10)
    tails, folds, fold = ActionTails(2), [], ActionTails._fold
    monkeypatch.setattr(ActionTails, "_fold", lambda self: folds.append(len(self._envs)) or fold(self))
    for _ in range(1000):
        tails.record(np.array([0, 1]), np.array([0, 1], np.int8))
        tails.end_episode(1)
    assert len(tails._fresh) <= 500
    assert tails._actions.nbytes <= 1000
    assert sum(folds) < 4 * 1000  # what is copied again each time
