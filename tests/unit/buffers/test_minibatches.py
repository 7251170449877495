import pytest
import torch

from parl_cli.buffers.minibatches import minibatches, shuffle, unstack

T, N, A = 6, 4, 2


def numbered(*extra):
    """Every entry tells its step and column."""
    t, n = torch.meshgrid(torch.arange(T), torch.arange(N), indexing="ij")
    where = torch.stack([t, n], dim=-1)
    return where if not extra else where[:, :, None].expand(T, N, *extra, 2).clone()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_minibatches", [1, 2, 3, 24])
def test_every_row_comes_once_per_epoch(num_minibatches):
    parts = list(minibatches({"obs": numbered()}, num_minibatches, generator()))
    assert [len(part["obs"]) for part in parts] == [T * N // num_minibatches] * num_minibatches
    rows = torch.cat([part["obs"] for part in parts]).tolist()
    assert sorted(rows) == [[t, n] for t in range(T) for n in range(N)]


def test_fields_stay_together():
    batch = {"obs": numbered(), "reward": numbered()[..., 0] * 10 + numbered()[..., 1]}
    for part in minibatches(batch, 3, generator()):
        assert torch.equal(part["reward"], part["obs"][:, 0] * 10 + part["obs"][:, 1])


def test_each_epoch_has_its_own_order_and_the_generator_decides_it():
    def orders(seed):
        shared = generator(seed)
        return [[part["obs"].tolist() for part in minibatches({"obs": numbered()}, 2, shared)] for _ in range(2)]

    first, second = orders(0)
    assert first != second
    assert orders(0) == [first, second]
    assert orders(1)[0] != first


def test_agents_stay_with_their_step():
    for part in minibatches({"obs": numbered(A)}, 2, generator()):
        assert part["obs"].shape == (T * N // 2, A, 2)
        assert torch.equal(part["obs"][:, 0], part["obs"][:, 1])


def test_whole_columns_keep_time_in_order_and_their_initial_state():
    batch = {"obs": numbered(), "state": torch.arange(N)[:, None].repeat(1, 3)}
    seen = []
    for part in minibatches(batch, 2, generator(), whole_columns=True):
        assert part["obs"].shape == (T, N // 2, 2)
        assert torch.equal(part["obs"][..., 0], torch.arange(T)[:, None].expand(T, N // 2))
        columns = part["obs"][0, :, 1]
        assert torch.equal(part["obs"][..., 1], columns.expand(T, -1))
        assert torch.equal(part["state"], columns[:, None].expand(-1, 3))
        seen += columns.tolist()
    assert sorted(seen) == list(range(N))
    assert seen != list(range(N))


def test_state_may_be_the_first_field():
    batch = {"state": torch.arange(N)[:, None], "obs": numbered()}
    [part] = minibatches(batch, 1, generator(), whole_columns=True)
    assert torch.equal(part["state"][:, 0], part["obs"][0, :, 1])


@pytest.mark.parametrize("whole_columns", [False, True])
def test_minibatches_are_views_of_one_gather_and_the_batch_is_left_alone(whole_columns):
    batch = {"obs": numbered()}
    first, second = minibatches(batch, 2, generator(), whole_columns=whole_columns)
    assert first["obs"].untyped_storage().data_ptr() == second["obs"].untyped_storage().data_ptr()
    first["obs"].fill_(-1)
    assert torch.equal(batch["obs"], numbered())


@pytest.mark.parametrize(("num_minibatches", "whole_columns"), [(5, False), (25, False), (3, True), (8, True)])
def test_parts_that_do_not_divide_are_an_error_and_no_row_is_dropped_in_silence(num_minibatches, whole_columns):
    with pytest.raises(ValueError, match=rf"num_minibatches={num_minibatches}: must divide"):
        next(minibatches({"obs": numbered()}, num_minibatches, generator(), whole_columns=whole_columns))


@pytest.mark.parametrize("whole_columns", [False, True])
def test_minibatches_are_the_shuffled_batch_taken_apart(whole_columns):
    batch = {"obs": numbered(A), "state": torch.arange(N)[:, None]} if whole_columns else {"obs": numbered(A)}
    stacked = shuffle(batch, 2, generator(), whole_columns=whole_columns)
    assert stacked["obs"].shape == ((2, T, N // 2, A, 2) if whole_columns else (2, T * N // 2, A, 2))
    for part, other in zip(
        unstack(stacked), minibatches(batch, 2, generator(), whole_columns=whole_columns), strict=True
    ):
        assert part.keys() == other.keys() == batch.keys()
        assert all(torch.equal(part[name], other[name]) for name in batch)
