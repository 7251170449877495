import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env

from parl_cli.config import EnvConfig, parse
from parl_cli.envs import maze
from parl_cli.envs.gymnasium_adapter import make_env
from parl_cli.errors import ConfigError

PRESET = Path(__file__).parents[3] / "conf" / "env" / "maze.yaml"
UP, RIGHT, DOWN, LEFT = range(4)


def one_way(*moves):
    """A 3 × 3 maze of which only the cells that `moves` visit are connected, one after the other."""
    passages, cell = np.zeros((3, 3, 4), bool), (0, 0)
    for move in moves:
        passages[*cell, move] = True
        cell = (cell[0] + maze.MOVES[move][0], cell[1] + maze.MOVES[move][1])
        passages[*cell, (move + 2) % 4] = True
    return passages


def made(**kwargs):
    return gym.make(maze.ID, disable_env_checker=True, **kwargs).unwrapped


def transitions(env):
    """The chance of going from each cell to each other one by a uniformly random action; the goal is kept."""
    chance = np.zeros((env.size**2, env.size**2))
    for row, column in np.ndindex(env.size, env.size):
        for action in range(4):
            env.cell = (row, column)
            env.step(action)
            chance[row * env.size + column, env.cell[0] * env.size + env.cell[1]] += 1 / 4
    chance[-1] = np.eye(env.size**2)[-1]
    return chance


@pytest.mark.parametrize("size", [2, 3, 9, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_carved_maze_has_exactly_one_path_between_any_two_cells(size, seed):
    passages = maze.carve(size, np.random.default_rng(seed))
    assert passages.sum() == 2 * (size**2 - 1)  # a tree: connected, and one edge fewer than there are cells
    reach = [maze.shortest_path(passages, goal=cell) for cell in np.ndindex(size, size)]
    assert max(reach) < size**2


def test_carved_passages_are_open_from_both_sides_and_never_lead_out():
    passages = maze.carve(9, np.random.default_rng(3))
    np.testing.assert_array_equal(passages[:, :-1, RIGHT], passages[:, 1:, LEFT])
    np.testing.assert_array_equal(passages[:-1, :, DOWN], passages[1:, :, UP])
    edge = (passages[0, :, UP], passages[-1, :, DOWN], passages[:, 0, LEFT], passages[:, -1, RIGHT])
    assert not np.any(edge)


def test_shortest_path_counts_steps_and_ignores_detours():
    detour = one_way(DOWN, DOWN, RIGHT, UP, RIGHT, DOWN)
    assert maze.shortest_path(detour) == 6
    detour[2, 1, RIGHT] = detour[2, 2, LEFT] = True
    assert maze.shortest_path(detour) == 4
    assert maze.shortest_path(detour, (1, 0), (1, 0)) == 0


def test_shortest_path_to_a_walled_off_cell_is_an_error():
    with pytest.raises(ValueError, match=r"no way from \(0, 0\) to \(2, 2\)"):
        maze.shortest_path(one_way(RIGHT))


def test_documented_path_and_random_arrivals_are_those_of_the_preset():
    header = PRESET.read_text()
    env = made(**yaml.safe_load(header)["kwargs"])
    np.testing.assert_array_equal(env.passages, made().passages)
    path = maze.shortest_path(env.passages)
    arrives = np.linalg.matrix_power(transitions(env), maze.MAX_EPISODE_STEPS)[0, -1]
    for text in (header, " ".join(maze.MazeEnv.__doc__.split())):
        assert int(re.search(r"shortest path has (\d+) steps", text)[1]) == path
        assert int(re.search(r"(\d+) of 10,000 episodes", text.replace("\n# ", " "))[1]) == round(arrives * 1e4)
        assert f"cut off after {maze.MAX_EPISODE_STEPS} steps" in text


def test_moves_walls_and_the_one_reward():
    env = made(size=3)
    env.passages = one_way(DOWN, RIGHT, UP, RIGHT, DOWN, DOWN)
    env.reset(seed=0)
    seen = [(env.step(a)[1:4], env.cell) for a in (LEFT, UP, RIGHT, DOWN, RIGHT, UP, RIGHT, DOWN, LEFT, DOWN)]
    cells = [(0, 0), (0, 0), (0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2), (1, 2), (2, 2)]
    assert [cell for _, cell in seen] == cells
    assert [result for result, _ in seen] == [(0.0, False, False)] * 9 + [(1.0, True, False)]


def test_observation_is_row_column_and_the_walls_around():
    env = made(size=3)
    env.passages = one_way(DOWN, RIGHT, UP, RIGHT, DOWN, DOWN)
    np.testing.assert_array_equal(env.reset(seed=0)[0], [1, 0, 0, 1, 0, 0, 1, 1, 0, 1])
    env.step(DOWN)
    np.testing.assert_array_equal(env.step(RIGHT)[0], [0, 1, 0, 0, 1, 0, 0, 1, 1, 0])


def test_observation_tells_every_cell_from_every_other():
    env = made()
    seen = set()
    for cell in np.ndindex(9, 9):
        env.cell = cell
        seen.add(env.step(next(a for a in range(4) if not env.passages[*cell, a]))[0].tobytes())  # against a wall
    assert len(seen) == 81


def test_random_layout_puts_the_whole_map_into_the_observation():
    env = made(size=3, random_layout=True)
    obs, _ = env.reset(seed=4)
    assert obs.shape == env.observation_space.shape == (2 * 3 + 4 + 2 * 3 * 2,)
    right, below = obs[10:16].reshape(3, 2), obs[16:22].reshape(2, 3)
    np.testing.assert_array_equal(right, ~env.passages[:, :-1, RIGHT])
    np.testing.assert_array_equal(below, ~env.passages[:-1, :, DOWN])


def test_layout_stays_across_episodes_unless_it_is_random():
    fixed, random = made(), made(random_layout=True)
    first, drawn = fixed.passages.copy(), []
    for seed in (1, 2, 1):
        fixed.reset(seed=seed)
        np.testing.assert_array_equal(fixed.passages, first)
        random.reset(seed=seed)
        drawn.append(random.passages.tobytes())
    assert drawn[0] == drawn[2] != drawn[1]


def test_layout_seed_chooses_the_maze():
    layouts = {made(layout_seed=seed).passages.tobytes() for seed in (0, 1, 2, 0)}
    assert len(layouts) == 3


@pytest.mark.parametrize("random_layout", [False, True])
def test_maze_keeps_the_gymnasium_contract_and_draws_itself(random_layout):
    check_env(
        gym.make(maze.ID, disable_env_checker=True, render_mode="rgb_array", random_layout=random_layout).unwrapped
    )


def test_time_limit_is_the_registered_one():
    env = make_env(EnvConfig(id=maze.ID))
    env.reset(seed=0)
    ends = [env.step(LEFT)[2:4] for _ in range(maze.MAX_EPISODE_STEPS)]
    assert ends == [(False, False)] * (maze.MAX_EPISODE_STEPS - 1) + [(False, True)]


def test_ansi_shows_walls_agent_and_goal():
    env = made(size=3, render_mode="ansi")
    env.passages = one_way(DOWN, RIGHT, UP, RIGHT, DOWN, DOWN)
    env.reset(seed=0)
    assert env.render().split("\n") == ["#######", "#A#   #", "# # # #", "#   # #", "##### #", "# # #G#", "#######"]
    env.step(DOWN)
    assert env.render().split("\n")[1:4] == ["# #   #", "# # # #", "#A  # #"]


def test_picture_shows_what_the_text_shows():
    env, text = made(size=3, render_mode="rgb_array"), made(size=3, render_mode="ansi")
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (7 * 16, 7 * 16, 3)
    assert picture.dtype == np.uint8
    glyphs = np.array([list(line) for line in text.render().split("\n")])
    colours = {glyph: {tuple(c) for c in picture[8::16, 8::16][glyphs == glyph]} for glyph in "# AG"}
    assert all(len(found) == 1 for found in colours.values())
    assert len(set().union(*colours.values())) == 4


def test_nothing_is_drawn_without_a_render_mode():
    assert made().render() is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 1}, "size=1: must be a whole number from 2 to 99"),
        ({"size": 100}, "size=100: must be a whole number from 2 to 99"),
        ({"size": 9.5}, "size=9.5: must be a whole number"),
        ({"size": True}, "size=True: must be a whole number"),
        ({"layout_seed": -1}, "layout_seed=-1: must be a whole number, at least 0"),
        ({"layout_seed": "a"}, "layout_seed='a': must be a whole number"),
        ({"random_layout": 2}, "random_layout=2: must be true or false"),
        ({"layout": 3}, "env.kwargs.layout=3: parl/Maze-v0 has no such argument; did you mean layout_seed"),
    ],
)
def test_wrong_arguments_are_one_line_with_value_and_rule(kwargs, message):
    config = parse(EnvConfig, {"name": "maze", "id": maze.ID, "kwargs": kwargs}, "env")
    with pytest.raises(ConfigError) as caught:
        make_env(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
