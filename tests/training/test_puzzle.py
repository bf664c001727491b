"""The puzzles and who checks them, the training of their model, and what the bundled one does."""

import copy
import json
import runpy
from pathlib import Path

import pytest
import torch

from hf_infeco.remix import MaskedDiffusionLM
from hf_infeco.training.testbed.puzzle import card
from hf_infeco.training.testbed.puzzle.evaluate import held_out, load_model, solve
from hf_infeco.training.testbed.puzzle.puzzles import (
    GRIDS,
    MASK,
    TASKS,
    decode,
    draw,
    encode,
    is_held_out,
    solves_addition,
    solves_countdown,
    solves_sudoku,
)
from hf_infeco.training.testbed.puzzle.train import Stage, Trainer, masked_rows, puzzle_config, save

ROOT = Path(__file__).resolve().parents[2]
PUZZLE = ROOT / "examples" / "models" / "puzzle"

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("held", [False, True])
def test_drawn_puzzles_are_solved_by_their_answers_and_held_out_or_not(task, held):
    kind, puzzles = TASKS[task], draw(task, 100, generator(), held_out=held)
    for puzzle in puzzles:
        assert (len(puzzle.prompt), len(puzzle.answer)) == (kind.prompt_length, kind.answer_length)
        assert kind.solves(puzzle.prompt, puzzle.answer) and is_held_out(puzzle.prompt) == held
        assert decode(encode(puzzle.prompt)) == puzzle.prompt
    assert puzzles == draw(task, 100, generator(), held_out=held)
    assert not held or len({puzzle.prompt for puzzle in puzzles}) == 100


def test_there_are_288_grids_and_a_sudoku_s_clues_leave_one():
    assert len(GRIDS) == len(set(GRIDS)) == 288
    for puzzle in draw("sudoku", 50, generator()):
        assert [grid for grid in GRIDS if solves_sudoku(puzzle.prompt, grid)] == [puzzle.answer]


def test_sums_carry_far():
    """A carry that has come to a digit goes on where both digits sum to nine."""
    pairs = ["".join(str(int(a) + int(b)).zfill(2) for a, b in zip(p.prompt[1:10], p.prompt[11:20])) for p in sums()]
    assert sum("090909" in pair for pair in pairs) > 10


def sums():
    return draw("addition", 300, generator())


@pytest.mark.parametrize(
    ("clues", "answer", "is_right"),
    [
        ("." * 16, "1234341221434321", True),
        ("2" + "." * 15, "1234341221434321", False),  # not that clue
        ("." * 16, "1234123412341234", False),  # columns
        ("." * 16, "1234234134124123", False),  # boxes
        ("." * 16, "123434122143432", False),  # too short
    ],
)
def test_a_sudoku_is_checked(clues, answer, is_right):
    assert solves_sudoku("S" + clues, answer) == is_right


def test_a_wrong_sum_is_wrong():
    assert solves_addition("A000000019+000000001=", "0000000020")
    assert not solves_addition("A000000019+000000001=", "0000000019")


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("12-07=0505+03=08", True),
        ("07-03=0412-04=08", True),
        ("12-07=0505+03=09", False),  # not true
        ("12-03=0909-07=02", False),  # another target
        ("12-07=0507+03=10", False),  # does not go on with the result
        ("12-04=0808-00=08", False),  # other numbers
        ("12-07=0505+=0308", False),  # no equation
    ],
)
def test_a_countdown_uses_each_number_once_and_ends_in_the_target(answer, is_right):
    assert solves_countdown("C12070308", answer) == is_right


def test_a_countdown_is_held_out_in_every_order_of_its_numbers():
    puzzles = draw("countdown", 50, generator(), held_out=True)
    assert all(is_held_out("C" + p.prompt[5:7] + p.prompt[3:5] + p.prompt[1:3] + p.prompt[7:]) for p in puzzles)


def test_rows_hide_between_one_and_all_tokens_of_their_answer_and_nothing_else():
    puzzles = [puzzle for task in TASKS for puzzle in draw(task, 200, generator())]
    ids, targets = masked_rows(puzzles, generator())
    hidden = (ids == MASK).sum(1)
    answers = torch.tensor([len(puzzle.answer) for puzzle in puzzles])
    assert (hidden >= 1).all() and (hidden <= answers).all()
    assert set(hidden[:200].tolist()) == set(range(1, 17))
    assert torch.equal(ids == MASK, targets != -100)
    whole = torch.where(targets == -100, ids, targets)
    assert [decode(row) for row in whole.tolist()] == [puzzle.prompt + puzzle.answer for puzzle in puzzles]


def one_layer(mixed, steps=4):
    torch.manual_seed(0)
    config = puzzle_config()
    config.num_hidden_layers = 1
    stage = Stage(steps, {"sudoku": 4, "addition": 4, "countdown": 4}, "+-", mixed)
    return Trainer(MaskedDiffusionLM(config), 1, (stage,))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(mixed):
    whole, resumed = one_layer(mixed), one_layer(mixed)
    states = []
    whole.run(progress=False, save=lambda: states.append(copy.deepcopy(whole.state_dict())), saved_every=2)
    resumed.load_state_dict(states[0])
    resumed.run(progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters()))


@pytest.mark.parametrize("mixed", [False, True])
def test_training_lowers_the_loss_and_the_model_is_saved(mixed, tmp_path):
    trainer = one_layer(mixed, steps=30)
    trainer.run(progress=False)
    losses = list(trainer.recent)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    save(trainer.model, tmp_path)
    assert load_model(tmp_path).num_parameters() == trainer.model.num_parameters()


def test_soft_embeddings_reach_half_the_rows_and_only_their_masks():
    trainer = one_layer(mixed=True)
    ids, _ = masked_rows([puzzle for task in TASKS for puzzle in draw(task, 4, generator())], generator())
    plain = trainer.model.get_input_embeddings()(ids)
    is_changed = (trainer._mixed_embeds(ids) != plain).any(2)
    expected = (ids == MASK) & (torch.arange(len(ids)) % 2 == 0)[:, None]
    assert torch.equal(is_changed, expected)


def test_the_bundled_model_solves_most_held_out_puzzles():
    model = load_model(PUZZLE)
    for task, least in (("sudoku", 0.9), ("addition", 0.85)):
        is_solved, forwards = solve(model, task, held_out(task, 100), strategy="one")
        assert is_solved.float().mean() >= least and (forwards == TASKS[task].answer_length).all()


def test_the_bundled_model_s_card_is_that_of_its_files(tmp_path):
    for name in ("config", "training", "evaluation"):
        (tmp_path / f"{name}.json").write_text((PUZZLE / f"{name}.json").read_text())
    card.write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == (PUZZLE / "README.md").read_text()


def test_the_report_s_accuracies_are_what_is_promised():
    measured = json.loads((PUZZLE / "evaluation.json").read_text())
    assert measured["sudoku"]["one"]["rate"] >= 0.9


def test_the_bundled_files_stay_under_five_megabytes():
    assert sum(path.stat().st_size for path in PUZZLE.iterdir()) < 5e6


def test_the_example_draws_every_forward_of_both_ways(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["diffusion_sudoku.py"])
    runpy.run_path(str(ROOT / "examples" / "diffusion_sudoku.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "one: solved in 16 forwards" in printed and "remix: solved in" in printed
    assert all(f"forward {number}" in printed for number in range(1, 17))
