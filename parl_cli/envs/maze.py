"""A sparse-reward maze: one reward, at the far end, for the study of exploration.

The layout is a perfect maze, carved by randomised depth-first search: between any two cells there is exactly one
path, with long dead ends beside it. Finding the reward is all that is hard: the observation tells the whole state in a
form that a small network reads at once, and an episode is a function of its reset seed and the actions.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Info = dict[str, Any]
Cell = tuple[int, int]

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left; a move's opposite is two further on
MAX_EPISODE_STEPS = 500
MAX_SIZE = 99

_GLYPHS = np.array([" ", "#", "G", "A"])  # of the squares of a picture: floor, wall, goal, agent
_COLOURS = np.array([(235, 235, 235), (40, 40, 40), (60, 170, 80), (200, 60, 50)], np.uint8)
_SQUARE = 16  # pixels


def carve(size: int, rng: np.random.Generator) -> np.ndarray:
    """A maze of size × size cells by randomised depth-first search from the upper left corner.

    Returns:
        bool [size, size, 4]: whether one can leave cell (row, column) by each of `MOVES`. Always symmetric.
    """
    passages = np.zeros((size, size, 4), bool)
    seen: set[Cell] = {(0, 0)}
    stack: list[Cell] = [(0, 0)]
    while stack:
        here = stack[-1]
        around = [(move, (here[0] + down, here[1] + right)) for move, (down, right) in enumerate(MOVES)]
        fresh = [(move, cell) for move, cell in around if min(cell) >= 0 and max(cell) < size and cell not in seen]
        if not fresh:
            stack.pop()
            continue
        move, cell = fresh[rng.integers(len(fresh))]
        passages[*here, move] = passages[*cell, (move + 2) % 4] = True
        seen.add(cell)
        stack.append(cell)
    return passages


def shortest_path(passages: np.ndarray, start: Cell = (0, 0), goal: Cell | None = None) -> int:
    """Steps from `start` to `goal` (None: the lower right corner) by breadth-first search.

    Raises:
        ValueError: there is no way.
    """
    goal = goal or (len(passages) - 1, len(passages) - 1)
    steps = {start: 0}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        if here == goal:
            return steps[here]
        for move in np.flatnonzero(passages[here]):
            cell = (here[0] + MOVES[move][0], here[1] + MOVES[move][1])
            if cell not in steps:
                steps[cell] = steps[here] + 1
                queue.append(cell)
    raise ValueError(f"no way from {start} to {goal}")


class MazeEnv(gym.Env[np.ndarray, Any]):
    """From the upper left cell to the lower right one; reward 1 on arrival, which terminates, and 0 before.

    Four actions: up, right, down, left; a step against a wall leaves the agent where it is. No penalty for time, so
    only discounting prefers the shortest path. The layout's shortest path is `shortest_path(env.unwrapped.passages)`.

    Observation, float32 of 0 and 1, [2 size + 4]: row one-hot, column one-hot, walls (up, right, down, left).
    With `random_layout` the whole map follows, [2 size (size - 1)] more: for each cell, row by row, the wall to its
    right, then the same for the wall below it. Either way the state is in it, so no memory is needed; a wrapper
    `select_obs` that takes the first 2 size + 4 numbers of a random layout makes a memory task of it.

    As registered, `parl/Maze-v0` is 9 × 9 and cut off after 500 steps. Its shortest path has 50 steps, and uniformly
    random actions arrive in 15 of 10,000 episodes. Another size wants another `max_episode_steps`.

    Args:
        size: cells per side, 2 to 99.
        layout_seed: which maze, not negative; the same in every episode.
        random_layout: a new maze in every episode, drawn from the episode's seed; `layout_seed` does not matter then.
        render_mode: None, `ansi` (text) or `rgb_array` ([H, W, 3] uint8).
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self, size: int = 9, layout_seed: int = 0, random_layout: bool = False, render_mode: str | None = None
    ) -> None:
        if type(size) is not int or not 2 <= size <= MAX_SIZE:
            raise ValueError(f"size={size!r}: must be a whole number from 2 to {MAX_SIZE}")
        if type(layout_seed) is not int or layout_seed < 0:
            raise ValueError(f"layout_seed={layout_seed!r}: must be a whole number, at least 0")
        if type(random_layout) is not bool:
            raise ValueError(f"random_layout={random_layout!r}: must be true or false")
        self.size, self.random_layout, self.render_mode = size, random_layout, render_mode
        self.passages = carve(size, np.random.default_rng(layout_seed))
        self.cell: Cell = (0, 0)
        self.goal: Cell = (size - 1, size - 1)
        self._map = self._draw_map()
        self._width = 2 * size + 4 + len(self._map)
        self.observation_space = spaces.Box(0, 1, (self._width,), np.float32)
        self.action_space = spaces.Discrete(len(MOVES))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Begin in the upper left corner, in a new maze if layouts are random."""
        super().reset(seed=seed)
        self.cell = (0, 0)
        if self.random_layout:
            self.passages = carve(self.size, self.np_random)
            self._map = self._draw_map()
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Move, or stay where there is a wall."""
        row, column = self.cell
        if self.passages[row, column, action]:
            down, right = MOVES[action]
            self.cell = (row + down, column + right)
        arrived = self.cell == self.goal
        return self._obs(), float(arrived), arrived, False, {}

    def render(self) -> Any:
        """The maze from above: text, one line per row of squares, or [H, W, 3] uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        squares = self._squares()
        if self.render_mode == "ansi":
            return "\n".join("".join(line) for line in _GLYPHS[squares])
        return _COLOURS[squares].repeat(_SQUARE, axis=0).repeat(_SQUARE, axis=1)

    def _obs(self) -> np.ndarray:
        row, column = self.cell
        obs = np.zeros(self._width, np.float32)
        obs[row] = obs[self.size + column] = 1.0
        obs[2 * self.size : 2 * self.size + 4] = ~self.passages[row, column]
        obs[2 * self.size + 4 :] = self._map
        return obs

    def _draw_map(self) -> np.ndarray:
        """The walls between cells, as they stand in the observation."""
        if not self.random_layout:
            return np.empty(0, np.float32)
        return np.concatenate([~self.passages[:, :-1, 1].ravel(), ~self.passages[:-1, :, 2].ravel()])

    def _squares(self) -> np.ndarray:
        """The picture as numbers of `_GLYPHS`, [2 size + 1, 2 size + 1]: cells at odd places, walls between them."""
        squares = np.ones((2 * self.size + 1, 2 * self.size + 1), int)
        squares[1::2, 1::2] = 0
        squares[1:-1:2, 2:-1:2] = ~self.passages[:, :-1, 1]
        squares[2:-1:2, 1:-1:2] = ~self.passages[:-1, :, 2]
        for mark, (row, column) in ((2, self.goal), (3, self.cell)):
            squares[2 * row + 1, 2 * column + 1] = mark
        return squares


ID = "parl/Maze-v0"

if ID not in gym.registry:
    gym.register(ID, f"{__name__}:MazeEnv", max_episode_steps=MAX_EPISODE_STEPS, order_enforce=False)
