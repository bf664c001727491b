"""
The `puzzle` model: 4x4 Sudoku, additions and countdowns, filled in by masked diffusion.

Read in this order: `puzzles` (the tasks and who checks an answer), `train` (masks, loss, command line), `evaluate`
(accuracy and forwards), `card` (the model card).
"""
