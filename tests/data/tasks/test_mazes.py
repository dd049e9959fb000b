"""Mazes, beside a search through them."""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equilibria.data import Maze

Place = tuple[int, int]


def neighbours(maze: np.ndarray, place: Place) -> list[Place]:
    row, column = place
    around = ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1))
    return [(r, c) for r, c in around if 0 <= r < maze.shape[0] and 0 <= c < maze.shape[1] and maze[r, c] > 0]


def distances(maze: np.ndarray, start: Place) -> dict[Place, int]:
    """Breadth first."""
    found, queue = {start: 0}, deque([start])
    while queue:
        place = queue.popleft()
        for other in neighbours(maze, place):
            if other not in found:
                found[other] = found[place] + 1
                queue.append(other)
    return found


def only(places: np.ndarray) -> Place:
    ((row, column),) = np.argwhere(places).tolist()
    return row, column


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 99))
def test_targets_are_the_one_shortest_way(rows: int, columns: int, seed: int) -> None:
    task = Maze(height=2 * rows + 1, width=2 * columns + 1, held_out=3, seed=seed)
    training, held = task.training(4).at(2), next(iter(task.split("valid").segments(3)))
    for segment in (training, held):
        assert segment.answers is not None
        assert bool((segment.answers == (segment.inputs == 1)).all())
        for inputs, targets in zip(segment.inputs.numpy(), segment.targets.numpy(), strict=True):
            maze, way = inputs.reshape(task.grid), targets.reshape(task.grid)
            start, goal = only(maze == 2), only(maze == 3)
            from_start, from_goal = distances(maze, start), distances(maze, goal)
            assert len(from_start) == (maze > 0).sum()  # one part,
            edges = sum(len(neighbours(maze, place)) for place in from_start) // 2
            assert edges == len(from_start) - 1  # and a tree
            between = {place for place in from_start if from_start[place] + from_goal[place] == from_start[goal]}
            assert between == {(row, column) for row, column in np.argwhere(way).tolist()}
            assert bool((maze[::2, ::2] > 0).all())
            assert bool((maze[1::2, 1::2] == 0).all())


def turned(maze: np.ndarray) -> list[np.ndarray]:
    """All that the symmetries make of it, and of it with start and goal exchanged."""
    images = [np.rot90(image, quarter) for image in (maze, maze.T) for quarter in range(4)]
    exchanged = np.array([0, 1, 3, 2])
    return [image for image in (*images, *(exchanged[image] for image in images)) if image.shape == maze.shape]


@pytest.mark.parametrize("grid", [(5, 5), (5, 7), (9, 9)])
def test_no_image_of_a_held_out_maze_is_in_training(grid: tuple[int, int]) -> None:
    task = Maze(height=grid[0], width=grid[1], held_out=100)
    held = torch.cat([segment.inputs for segment in task.split("valid").segments(64)]).numpy().reshape(-1, *grid)
    images = {image.tobytes() for maze in held for image in turned(maze)}
    trained = np.concatenate([task.training(500).at(index).inputs.numpy() for index in range(2)]).reshape(-1, *grid)
    assert not images & {maze.tobytes() for maze in trained}
    assert len({maze.tobytes() for maze in trained}) > (300 if grid == (5, 5) else 900)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 10**9))
def test_a_digest_is_that_of_all_images(rows: int, columns: int, number: int) -> None:
    task = Maze(height=2 * rows + 1, width=2 * columns + 1)
    (puzzle,) = task.drawn(np.array([number]))
    images = np.stack([image.ravel() for image in turned(puzzle.reshape(task.grid))])
    assert len({*task.digest(images).tolist()}) == 1


def test_mazes_that_differ_have_digests_that_differ() -> None:
    task = Maze()
    puzzles = task.drawn(np.arange(3000))
    assert len({*task.digest(puzzles).tolist()}) == len({puzzle.tobytes() for puzzle in puzzles}) == 3000


def test_every_tree_of_a_small_maze_is_drawn() -> None:
    """Four of 2 × 2 rooms, in a maze that is smaller than any of the task."""
    task = object.__new__(Maze)
    for name, value in {"height": 3, "width": 3, "seed": 0}.items():
        object.__setattr__(task, name, value)
    walls = {tuple((puzzle > 0).tolist()) for puzzle in task.drawn(np.arange(200))}
    assert len(walls) == 4


def test_what_it_says_of_itself() -> None:
    task = Maze(height=7, width=9, held_out=200)
    assert (task.directed, task.grid, task.length, task.vocabulary_size) == (False, (7, 9), 63, 4)
    assert task.name == "maze of 7 × 9"
    assert task.tokenizer.decode([0, 1, 2, 3]) == "0123"
    (segment,) = task.split("valid").segments(200)
    on_the_way = float(segment.targets[segment.inputs == 1].double().mean())
    assert task.yardsticks("valid")["chance_accuracy"] == pytest.approx(max(on_the_way, 1 - on_the_way))
    fixed = Maze(samples=50)
    rows = torch.cat([fixed.training(10).at(index).inputs for index in range(10)]).tolist()
    assert sorted(rows[:50]) == sorted(rows[50:]) != rows[:50] != rows[50:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 10}, "height must be odd, from 5 to 99, found 10"),
        ({"width": 3}, "width must be odd, from 5 to 99, found 3"),
        ({"held_out": 0}, "held_out must be at least 1, found 0"),
    ],
)
def test_impossible_mazes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Maze(**arguments)
