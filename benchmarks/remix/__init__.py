"""
ReMix against one token per step, several per step, and the confidence threshold, on the puzzle model.

`curves` measures accuracy over forwards and what each setting does, `cost` what a forward and an answer take, `report`
and `plots` show it, `run` is the command.
"""
