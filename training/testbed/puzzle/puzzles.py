"""
Three kinds of puzzles as characters: what they look like, how they are drawn, and whether an answer is right.

    sudoku      S.4....1.3.......       -> the 16 cells of a 4x4 grid
    addition    A123456789+987654321=   -> 1111111110
    countdown   C12070308               -> 12-07=0505+03=08 for the numbers 12, 7, 3 and the target 8

A countdown is two equations, larger number first, that use each number once and end in the target; often several are
right. A puzzle belongs to the held-out sixteenth by a hash of its prompt, and is never trained on.
"""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PAD, MASK = 0, 1
ALPHABET = "0123456789+-*=.SAC"
VOCAB_SIZE = 2 + len(ALPHABET)

FEWEST_CLUES, MOST_CLUES = 5, 9
DIGITS = 9  # of a summand
LARGEST_NUMBER, LARGEST_RESULT = 20, 99  # of a countdown
HELD_OUT_ONE_IN = 16


def encode(text: str) -> list[int]:
    """Token ids of characters."""
    return [2 + ALPHABET.index(character) for character in text]


def decode(ids: list[int]) -> str:
    """Characters of token ids; `_` stands for the mask, padding is left out."""
    return "".join("_" if token == MASK else ALPHABET[token - 2] for token in ids if token != PAD)


@dataclass(frozen=True)
class Puzzle:
    """
    Attributes:
        prompt, answer: characters; of several right answers, one.
    """

    prompt: str
    answer: str


def is_held_out(prompt: str) -> bool:
    """Whether a puzzle is kept from training. The numbers of a countdown count in any order."""
    if prompt[0] == "C":
        prompt = "C" + "".join(sorted(_pairs(prompt[1:7]))) + prompt[7:]
    return hashlib.sha256(prompt.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


# ---------------------------------------------------------------- sudoku


def all_grids() -> list[str]:
    """The 288 solved grids of 4 x 4 cells."""
    rows = list(itertools.permutations("1234"))
    grids = ("".join(itertools.chain(*grid)) for grid in itertools.product(rows, repeat=4) if _columns_differ(grid))
    return [grid for grid in grids if is_solved(grid)]


def _columns_differ(grid: tuple[tuple[str, ...], ...]) -> bool:
    return all(len(set(column)) == 4 for column in zip(*grid))


def is_solved(grid: str) -> bool:
    """Whether every row, column and box holds 1, 2, 3 and 4."""
    groups = [grid[at : at + 4] for at in range(0, 16, 4)] + [grid[at::4] for at in range(4)]
    groups += [grid[at : at + 2] + grid[at + 4 : at + 6] for at in (0, 2, 8, 10)]
    return len(grid) == 16 and all(set(group) == set("1234") for group in groups)


GRIDS = all_grids()
CELLS = torch.tensor([list(map(int, grid)) for grid in GRIDS])  # [288, 16]


def draw_sudoku(generator: torch.Generator, fewest: int = FEWEST_CLUES, most: int = MOST_CLUES) -> Puzzle:
    """Clues at random that leave exactly one solution; it takes at least four."""
    while True:
        number = _integer(0, len(GRIDS) - 1, generator)
        clues = torch.randperm(16, generator=generator)[: _integer(fewest, most, generator)]
        if int((CELLS[:, clues] == CELLS[number, clues]).all(1).sum()) == 1:
            grid, known = GRIDS[number], set(clues.tolist())
            return Puzzle("S" + "".join(grid[cell] if cell in known else "." for cell in range(16)), grid)


def solves_sudoku(prompt: str, answer: str) -> bool:
    return is_solved(answer) and all(clue in (".", cell) for clue, cell in zip(prompt[1:], answer))


# ---------------------------------------------------------------- addition


def draw_addition(generator: torch.Generator) -> Puzzle:
    """Two numbers of nine digits. A third of their digits sum to nine, so that carries run far."""
    first, second = torch.randint(0, 10, (2, DIGITS), generator=generator).tolist()
    nines = (torch.rand(DIGITS, generator=generator) < 0.3).tolist()
    second = [9 - a if is_nine else b for a, b, is_nine in zip(first, second, nines)]
    a, b = ("".join(map(str, digits)) for digits in (first, second))
    return Puzzle(f"A{a}+{b}=", f"{int(a) + int(b):0{DIGITS + 1}d}")


def solves_addition(prompt: str, answer: str) -> bool:
    a, b = prompt[1:-1].split("+")
    return answer == f"{int(a) + int(b):0{DIGITS + 1}d}"


# ---------------------------------------------------------------- countdown

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def draw_countdown(generator: torch.Generator, operations: str = "+-") -> Puzzle:
    """Three numbers of at most 20 and a target that two operations reach without passing 99."""
    while True:
        numbers = [_integer(1, LARGEST_NUMBER, generator) for _ in range(3)]
        first, second = (operations[_integer(0, len(operations) - 1, generator)] for _ in range(2))
        between, one = _equation(numbers[0], first, numbers[1])
        target, two = _equation(between, second, numbers[2])
        if 0 < between <= LARGEST_RESULT and 0 < target <= LARGEST_RESULT:
            shown = torch.randperm(3, generator=generator).tolist()
            return Puzzle("C" + "".join(f"{numbers[at]:02d}" for at in shown) + f"{target:02d}", one + two)


def solves_countdown(prompt: str, answer: str) -> bool:
    """Whether the two equations are true, use each number once and end in the target."""
    numbers, target = sorted(_pairs(prompt[1:7])), prompt[7:]
    one, two = answer[:8], answer[8:]
    if len(answer) != 16 or not (_is_true(one) and _is_true(two)) or two[6:] != target:
        return False
    between, given = one[6:], [two[:2], two[3:5]]
    if between not in given:
        return False
    given.remove(between)
    return sorted([one[:2], one[3:5], *given]) == numbers


def _is_true(equation: str) -> bool:
    a, operation, b, equals, result = equation[:2], equation[2], equation[3:5], equation[5], equation[6:]
    if not (a + b + result).isdigit() or operation not in OPERATIONS or equals != "=":
        return False
    return OPERATIONS[operation](int(a), int(b)) == int(result)


def _equation(a: int, operation: str, b: int) -> tuple[int, str]:
    """Result and text, the larger number first."""
    a, b = max(a, b), min(a, b)
    result = OPERATIONS[operation](a, b)
    return result, f"{a:02d}{operation}{b:02d}={result:02d}"


def _pairs(digits: str) -> list[str]:
    return [digits[at : at + 2] for at in range(0, len(digits), 2)]


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        draw: a puzzle, held out or not.
        solves: whether an answer to a prompt is right.
        prompt_length, answer_length: characters.
    """

    draw: Callable[..., Puzzle]
    solves: Callable[[str, str], bool]
    prompt_length: int
    answer_length: int


TASKS = {
    "sudoku": Task(draw_sudoku, solves_sudoku, 17, 16),
    "addition": Task(draw_addition, solves_addition, 2 * DIGITS + 3, DIGITS + 1),
    "countdown": Task(draw_countdown, solves_countdown, 9, 16),
}


def draw(task: str, count: int, generator: torch.Generator, held_out: bool = False, **how: Any) -> list[Puzzle]:
    """So many puzzles of one kind, all of them held out or none; held-out ones are all different."""
    found: dict[str, Puzzle] | list[Puzzle] = {} if held_out else []
    while len(found) < count:
        puzzle = TASKS[task].draw(generator, **how)
        if is_held_out(puzzle.prompt) != held_out:
            continue
        if isinstance(found, dict):
            found[puzzle.prompt] = puzzle
        else:
            found.append(puzzle)
    return list(found.values()) if isinstance(found, dict) else found


def as_prompts(puzzles: list[Puzzle]) -> Tensor:
    """Prompts of one kind of puzzle, int64 `[puzzles, prompt_length]`."""
    return torch.tensor([encode(puzzle.prompt) for puzzle in puzzles])
