"""
The agent testbed: SmolLM2-135M-Instruct with an adapter that answers questions by search, open and find.

Read in this order: `world` (invented pages and the tools that read them), `tasks` (questions, expert, who checks an
answer), `train` (the adapter, command line), `evaluate` (accuracy, command line),
`card` (the model card).
"""
