import numpy as np
import pytest
from gymnasium import spaces

from parl_cli.errors import ConfigError
from parl_cli.vectorizers.blocks import ALIGNMENT, Blocks, buffer_size, make_layout

BOX = spaces.Box(0, 255, (2, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "shape", "dtype"),
    [
        (spaces.Box(-1, 1, (3,), np.float64), (5, 3), np.float64),
        (spaces.Box(0, 255, (4, 2, 2), np.uint8), (5, 4, 2, 2), np.uint8),
        (spaces.Box(-1, 1, (), np.float32), (5,), np.float32),
        (spaces.Discrete(7, start=2), (5,), np.int64),
        (spaces.MultiDiscrete([3, 4]), (5, 2), np.int64),
        (spaces.MultiBinary((2, 2)), (5, 2, 2), np.int8),
    ],
)
def test_each_array_space_becomes_rows_of_its_shape_and_dtype(space, shape, dtype):
    layout = make_layout(space, spaces.Discrete(2), 5, None)
    assert layout["obs"] == layout["final_obs"] == (shape, np.dtype(dtype))


def test_agents_stand_between_the_rows_and_the_item():
    layout = make_layout(BOX, spaces.Discrete(2), 5, 4)
    assert layout["obs"][0] == (5, 4, 2, 3)
    assert layout["action"][0] == layout["reward"][0] == layout["mask"][0] == (5, 4)
    assert layout["ended"][0] == layout["episode_length"][0] == (5,)


@pytest.mark.parametrize("space", [spaces.Text(4), spaces.Dict(a=spaces.Text(4)), spaces.Sequence(BOX)])
def test_spaces_without_a_fixed_layout_are_refused_with_what_is_allowed(space):
    with pytest.raises(ConfigError, match=r"observation space (Text|Sequence).*must be Box, .* or a Dict or Tuple"):
        make_layout(space, spaces.Discrete(2), 1, None)
    with pytest.raises(ConfigError, match=r"action space (Text|Sequence)"):
        make_layout(BOX, space, 1, None)


def test_agents_with_structured_spaces_are_told_to_flatten():
    with pytest.raises(ConfigError, match=r"env\.wrappers=\[flatten_obs\]"):
        make_layout(spaces.Dict(a=BOX), spaces.Discrete(2), 1, 2)


def test_fields_share_one_buffer_without_overlap():
    layout = make_layout(BOX, spaces.Discrete(2), 3, 2)
    buffer = np.zeros(buffer_size(layout), np.uint8)
    blocks = Blocks.over(buffer, layout)
    for value, name in enumerate(layout):
        getattr(blocks, name)[...] = value % 2 if layout[name][1] == np.bool_ else value
    for value, name in enumerate(layout):
        field = getattr(blocks, name)
        assert np.all(field == (value % 2 if field.dtype == np.bool_ else value)), name
        assert np.shares_memory(field, buffer)
        assert (field.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]) % ALIGNMENT == 0


def test_rows_are_views_of_the_whole():
    blocks = Blocks.plain(make_layout(BOX, spaces.Discrete(2), 4, None))
    blocks.rows(range(1, 3)).reward[:] = 5.0
    assert blocks.reward.tolist() == [0.0, 5.0, 5.0, 0.0]
