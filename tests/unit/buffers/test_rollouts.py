import numpy as np
import pytest
import torch

from parl_cli.buffers.rollouts import FINALS, ColumnBuffer, concatenate, to_device
from parl_cli.types import Episode
from tests.helpers.rollouts import clone, random_rollout, spec_of
from tests.helpers.stubs import make_policy

T = 3


def fill(buffer, columns, name="obs", first=0):
    """Every entry tells column and step: 100 · (first + position) + t."""
    for t in range(buffer.num_steps):
        buffer.write(name, t, columns, 100 * (first + np.arange(len(columns))) + t)


def finish(buffer, columns):
    """The fields that a rollout cannot do without."""
    for name in ("policy_version", "action", "reward", "terminated", "truncated", "is_first", "mask"):
        fill(buffer, columns, name)
    buffer.write_head("env_id", columns, np.asarray(columns) + 50)
    buffer.write_head("last_obs", columns, np.asarray(columns) * 1000)
    buffer.write_head("last_is_first", columns, np.ones(len(columns), bool))


def test_columns_are_opened_in_order_and_reused_when_taken():
    buffer = ColumnBuffer(T, 3, ())
    assert buffer.open(2).tolist() == [0, 1]
    assert buffer.open(1).tolist() == [2]
    columns = np.array([0, 1])
    fill(buffer, columns)
    finish(buffer, columns)
    buffer.take(columns, [])
    assert buffer.open(2).tolist() == [0, 1]


def test_it_grows_when_more_columns_are_open_than_it_holds():
    buffer = ColumnBuffer(T, 2, ())
    held = buffer.open(2)
    fill(buffer, held)
    finish(buffer, held)
    more = buffer.open(3)
    assert len({*held.tolist(), *more.tolist()}) == 5
    fill(buffer, more, first=2)
    finish(buffer, more)
    rollout = buffer.take(np.concatenate([held, more]), [])
    assert rollout.extras == {}
    assert rollout.obs.tolist() == [[100 * n + t for n in range(5)] for t in range(T)]


def test_columns_come_out_in_the_order_asked_for():
    buffer = ColumnBuffer(T, 4, ())
    columns = buffer.open(4)
    fill(buffer, columns)
    finish(buffer, columns)
    rollout = buffer.take(np.array([2, 0]), [])
    assert rollout.obs[:, 0].tolist() == [200, 201, 202]
    assert rollout.obs[:, 1].tolist() == [0, 1, 2]
    assert rollout.env_id.tolist() == [52, 50]
    assert rollout.last_obs.tolist() == [2000, 0]
    assert rollout.obs.is_contiguous()


def test_rows_at_different_steps_are_written_at_once():
    buffer = ColumnBuffer(T, 3, ())
    columns = buffer.open(3)
    buffer.write("obs", np.array([0, 2, 1]), columns, np.array([7, 8, 9]))
    assert buffer.read("obs", np.array([0, 2, 1]), columns).tolist() == [7, 8, 9]
    assert buffer.read("obs", 0, slice(0, 3)).tolist() == [7, 0, 0]


def test_what_is_taken_is_a_copy():
    buffer = ColumnBuffer(T, 1, ())
    columns = buffer.open(1)
    fill(buffer, columns)
    finish(buffer, columns)
    rollout = buffer.take(columns, [])
    kept = clone(rollout)
    columns = buffer.open(1)
    fill(buffer, columns, first=9)
    buffer.write_head("last_obs", columns, np.array([-1]))
    assert torch.equal(rollout.obs, kept.obs)
    assert torch.equal(rollout.last_obs, kept.last_obs)


def test_finals_say_where_they_belong_and_are_forgotten_with_their_column():
    buffer = ColumnBuffer(T, 3, ())
    columns = buffer.open(3)
    fill(buffer, columns)
    finish(buffer, columns)
    buffer.add_final(1, 0, np.array([10]), None)
    buffer.add_final(2, 2, np.array([22]), None)
    buffer.add_final(1, 2, np.array([12]), None)
    rollout = buffer.take(np.array([2, 1]), [])
    assert dict(zip(map(tuple, rollout.final_index.tolist()), rollout.final_obs[:, 0].tolist(), strict=True)) == {
        (2, 0): 22,
        (0, 1): 10,
        (2, 1): 12,
    }
    columns = buffer.open(2)
    fill(buffer, columns)
    finish(buffer, columns)
    assert buffer.take(columns, []).final_index.shape == (0, 2)


def test_without_finals_their_tensors_are_empty_but_shaped():
    buffer = ColumnBuffer(T, 2, ())
    columns = buffer.open(2)
    fill(buffer, columns)
    finish(buffer, columns)
    rollout = buffer.take(columns, [])
    assert rollout.final_index.shape == (0, 2)
    assert rollout.final_index.dtype == torch.int64
    assert rollout.final_obs.shape == (0, *rollout.last_obs.shape[1:])
    assert rollout.final_obs.dtype == rollout.last_obs.dtype


def test_recurrent_state_comes_with_columns_and_finals():
    buffer = ColumnBuffer(T, 2, ())
    columns = buffer.open(2)
    fill(buffer, columns)
    finish(buffer, columns)
    buffer.write_head("state", columns, np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    buffer.add_final(1, 1, np.array(5), np.array([8.0, 9.0], np.float32))
    rollout = buffer.take(columns, [])
    assert rollout.state.tolist() == [[1, 2], [3, 4]]
    assert rollout.final_state.tolist() == [[8, 9]]


def test_what_the_policy_returns_goes_to_extras_and_noise_is_dropped():
    buffer = ColumnBuffer(T, 2, ())
    columns = buffer.open(2)
    fill(buffer, columns)
    finish(buffer, columns)
    fill(buffer, columns, "log_prob")
    buffer.write_whole("noise", columns, np.zeros((T, 2, 1), np.float32))
    episodes = [Episode(1, 2.0, 3)]
    rollout = buffer.take(columns, episodes)
    assert set(rollout.extras) == {"log_prob"}
    assert rollout.episodes == episodes


def test_columns_are_copied_into_arrays_that_are_given():
    taken = []
    for given in (False, True):
        buffer = ColumnBuffer(T, 2, ())
        columns = buffer.open(2)
        fill(buffer, columns)
        fill(buffer, columns, "log_prob")
        finish(buffer, columns)
        buffer.write_head("state", columns, np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
        buffer.add_final(1, 1, np.array(5), np.array([8.0, 9.0], np.float32))
        if given:
            out = {name: np.zeros_like(array) for name, array in whole_arrays(taken[0]).items()}
            out |= {name: np.zeros((2 * T, *out[name].shape[1:]), out[name].dtype) for name in FINALS}
        taken.append(buffer.take(columns[::-1], [], out if given else None))
    first, second = (whole_arrays(rollout) for rollout in taken)
    assert first.keys() == second.keys() == out.keys()
    for name, array in first.items():
        assert np.array_equal(array, second[name])
        assert np.shares_memory(second[name], out[name])


def whole_arrays(rollout):
    tensors = vars(rollout) | rollout.extras
    return {name: value.numpy() for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def test_a_block_is_written_into_whole_columns():
    buffer = ColumnBuffer(T, 3, ())
    block = np.arange(T * 2).reshape(T, 2)
    buffer.write_whole("noise", np.array([2, 0]), block)
    assert buffer.read("noise", 1, np.array([2, 0])).tolist() == block[1].tolist()
    assert not buffer.read("noise", 1, np.array([1])).any()


def pieces(count=3):
    spec = spec_of()
    policy = make_policy(spec)
    return [random_rollout(policy, spec, seed=seed, num_columns=2 + seed, end_share=0.3) for seed in range(count)]


def test_rollouts_side_by_side_keep_their_columns_and_finals():
    parts = pieces()
    for k, part in enumerate(parts):
        part.episodes = [Episode(k, 1.0, 1)]
        part.dropped_steps = 10**k
        part.state = torch.full((len(part.env_id), 2), float(k))
        part.final_state = torch.full((len(part.final_index), 2), float(k))
    whole = concatenate(parts)
    first = 0
    for part in parts:
        columns = slice(first, first + len(part.env_id))
        for name in ("obs", "action", "reward", "mask", "is_first", "policy_version"):
            assert torch.equal(getattr(whole, name)[:, columns], getattr(part, name))
        assert torch.equal(whole.last_obs[columns], part.last_obs)
        assert torch.equal(whole.state[columns], part.state)
        assert torch.equal(whole.extras["dist_params"][:, columns], part.extras["dist_params"])
        here = (whole.final_index[:, 1] >= columns.start) & (whole.final_index[:, 1] < columns.stop)
        assert torch.equal(whole.final_index[here] - torch.tensor([0, first]), part.final_index)
        assert torch.equal(whole.final_obs[here], part.final_obs)
        assert torch.equal(whole.final_state[here], part.final_state)
        first = columns.stop
    assert whole.obs.shape[1] == first
    assert [episode.env_id for episode in whole.episodes] == [0, 1, 2]
    assert whole.dropped_steps == 111
    assert whole.num_env_steps == sum(part.num_env_steps for part in parts)


def test_rollouts_side_by_side_have_the_values_of_each():
    spec = spec_of()
    policy = make_policy(spec)
    parts = pieces()
    value, following = policy.values(concatenate(parts))
    separate = [policy.values(part) for part in parts]
    torch.testing.assert_close(value, torch.cat([v for v, _ in separate], dim=1))
    torch.testing.assert_close(following, torch.cat([f for _, f in separate], dim=1))


def test_one_rollout_is_not_copied():
    [part] = pieces(1)
    assert concatenate([part]) is part


def test_to_the_same_device_is_no_copy():
    [part] = pieces(1)
    assert to_device(part, torch.device("cpu")) is part


def test_to_another_device_moves_every_tensor():
    [part] = pieces(1)
    part.state = torch.zeros(2, 3)
    moved = to_device(part, torch.device("meta"))
    tensors = {name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
    assert {"env_id", "obs", "mask", "final_index", "last_obs", "state"} <= set(tensors)
    for name, value in tensors.items():
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == value.shape
    assert all(value.device.type == "meta" for value in moved.extras.values())
    assert moved.episodes is part.episodes


@pytest.mark.parametrize("agents", [(), (2,)])
def test_env_steps_are_counted_once_for_all_agents_and_not_where_masked(agents):
    [part] = pieces(1)
    part.mask = torch.ones(8, 2, *agents, dtype=torch.bool)
    assert part.num_env_steps == 16
    part.mask[3, 1] = False
    assert part.num_env_steps == 15
    if agents:
        part.mask[5, 0, 1] = False  # one agent is dead, the env still stepped
        assert part.num_env_steps == 15
