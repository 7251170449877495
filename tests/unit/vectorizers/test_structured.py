import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from parl_cli.vectorizers.structured import has_nan, item_layout, to_item, unpack, write_batch

SPACE = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (2, 3), np.uint8),
        "pose": spaces.Tuple([spaces.Box(-1, 1, (3,), np.float64), spaces.Discrete(5, start=-2)]),
        "buttons": spaces.MultiBinary(4),
        "gears": spaces.Dict(left=spaces.MultiDiscrete([3, 4])),
    }
)


def same(a, b):
    if isinstance(b, dict):
        assert a.keys() == b.keys()
        return all(same(a[key], b[key]) for key in b)
    if isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype


def rows(n):
    shape, dtype = item_layout(SPACE, "observation")
    return np.zeros((n, *shape), dtype)


def test_the_layout_is_a_field_for_every_part():
    array = rows(5)
    assert array.shape == (5,)
    assert array["camera"].shape == (5, 2, 3)
    assert array["camera"].dtype == np.uint8
    assert array["pose"]["0"].shape == (5, 3)
    assert array["pose"]["1"].dtype == np.int64
    assert array["gears"]["left"].shape == (5, 2)


def test_items_come_back_as_they_went_in():
    SPACE.seed(3)
    values = [SPACE.sample() for _ in range(4)]
    array = rows(4)
    for row, value in enumerate(values):
        array[row] = to_item(SPACE, value, "observation")
    for row, value in enumerate(values):
        assert same(unpack(SPACE, array[row]), value)


def test_gymnasiums_batches_go_in_and_come_out():
    batched = batch_space(SPACE, 6)
    batched.seed(1)
    batch = batched.sample()
    array = rows(6)
    write_batch(SPACE, batch, array, "actions")
    assert same(unpack(SPACE, array), batch)
    again = rows(6)
    write_batch(SPACE, array, again, "actions")
    assert np.array_equal(again, array)


def sample(**changes):
    SPACE.seed(0)
    return {**SPACE.sample(), **changes}


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (sample(camera=np.zeros((3, 2), np.uint8)), ValueError, r"observation\['camera'\] has shape \(3, 2\)"),
        (sample(camera=np.zeros((2, 3))), TypeError, r"observation\['camera'\] has dtype float64"),
        (sample(gears={"right": np.zeros(2, int)}), ValueError, r"observation\['gears'\] is \['right'\]"),
        (sample(pose=(np.zeros(3),)), ValueError, r"observation\['pose'\] is tuple; the space says 2 parts"),
        (sample(pose=(np.zeros(2), 0)), ValueError, r"observation\['pose'\]\[0\] has shape \(2,\)"),
        (sample(more=1), ValueError, "observation is .*'more'"),
        (np.zeros(3), ValueError, "observation is ndarray; the space says a dict"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(value, error, words):
    with pytest.raises(error, match=words):
        to_item(SPACE, value, "observation")


def test_a_batch_that_does_not_fit_is_named_by_its_path():
    batch = batch_space(SPACE, 2).sample()
    with pytest.raises(ValueError, match=r"actions\['buttons'\] have shape \(3, 4\): must be \(2, 4\)"):
        write_batch(SPACE, {**batch, "buttons": np.zeros((3, 4), np.int8)}, rows(2), "actions")
    with pytest.raises(ValueError, match=r"actions have \['camera'\]: must have"):
        write_batch(SPACE, {"camera": batch["camera"]}, rows(2), "actions")
    with pytest.raises(TypeError, match=r"actions\['gears'\]\['left'\] have dtype float64"):
        write_batch(SPACE, {**batch, "gears": {"left": np.zeros((2, 2))}}, rows(2), "actions")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_is_found_beside_the_largest_numbers_and_in_nothing(dtype):
    items = np.full((4, 3), np.finfo(dtype).max, dtype)
    assert not has_nan(items)
    assert not has_nan(items[:0])
    items[2, 1] = -np.inf
    assert not has_nan(items)
    items[1, 1] = np.nan
    assert has_nan(items)


def test_copies_of_the_parts_are_arrays_that_every_library_takes():
    space = spaces.Dict(a=spaces.Box(0, 9, (3,), np.uint8), b=spaces.Tuple([spaces.Box(0, 9, (2,), np.float32)]))
    _, dtype = item_layout(space, "observation")
    batch = np.zeros(4, dtype)
    views, copies = unpack(space, batch), unpack(space, batch, copy=True)
    batch["b"]["0"] = 5.0
    assert views["b"][0].max() == 5.0
    assert copies["b"][0].max() == 0.0
    assert all(part.flags.c_contiguous and part.flags.aligned for part in (copies["a"], copies["b"][0]))
