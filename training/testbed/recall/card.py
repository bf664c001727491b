"""Write the recall model's card from what was measured.

python -m hf_infeco.training.testbed.recall.card examples/models/recall
"""

import argparse
import json
from pathlib import Path
from textwrap import fill

from transformers import AutoConfig

from .train import STAGES

TEMPLATE = """---
library_name: transformers
license: apache-2.0
---
# recall: a 2.2 M-parameter yardstick for long context

A plain `LlamaForCausalLM` ({shape})
that does two things, both sensitive to what a lossy attention or a lossy cache loses:

- it **reads real text**: English prose and Python source, as a language model;
- it **answers lookups**: needles such as `@oslo#12#45` stand at random places of up to 16K tokens of real text, and
  `<ask>@oslo` at the end is answered with `#12#45`. Keys and values are drawn at random for every document.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "examples/models/recall"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = "<bos>import os\\nimport@oslo#12#45 sys\\n\\ndef main():\\n    return 0\\n<ask>@oslo"
inputs = tokenizer(prompt, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, -2:]))  # #12#45
```

## Measured

Dense attention, {dtype} weights, greedy decoding of both value tokens, {needles} needles in each document of held-out
text; {questions} questions, those of a document sharing its prefill (evaluation seed {eval_seed}).

| document tokens | correct | 95 % Wilson interval |
|---|---|---|
{recall_rows}

Perplexity per token on held-out text, every window starting from `<bos>`:

| window tokens | windows | perplexity |
|---|---|---|
{perplexity_rows}

Again: `python -m hf_infeco.training.testbed.recall.evaluate {folder}` (writes `evaluation.json`), then
`python -m hf_infeco.training.testbed.recall.card {folder}`.

## Recipe

`python -m hf_infeco.training.testbed.recall.train --out {folder} --seed {seed}`

- Text: sources and language reference of the Python standard library of the machine that trains ({text_tokens:,}
  tokens, Python {python}); a fixed list of modules and topics is held out to measure on. Nothing is downloaded.
- Tokenizer: byte-level BPE trained on that text, {vocab} entries with 64 keys, 64 values, `<bos>`, `<pad>`, `<ask>`.
- Start: previous-token and matching heads are wired roughly before training (`lookup_heads.py`). In trials with them
  lookup came within 80 steps; without them, and at rope_theta 1e5, answers were still guesses after 480.
- AdamW, bf16 autocast, {steps:,} steps, {minutes} minutes on {device} (torch {torch}). From 256 tokens on, positions
  jump at random places up to 32K, so that short rows teach far distances.
{note}

| tokens | rows | keys | lookups | closing | stretched | text weight | most steps | ends at accuracy | rate |
|---|---|---|---|---|---|---|---|---|---|
{stage_rows}

The seed fixes data and start; another number of threads, torch or Python version gives other, similar weights.

## Limits

- It is a measuring device, not an assistant: at this size its text is only locally plausible.
- Keys and values are 128 fixed tokens. Ordinary text that spells `#12` must be encoded with
  `hf_infeco.training.testbed.recall.text.encode_text`, which keeps it ordinary.
- Longer than 16K tokens, or more than {needles} needles, was not measured.
- The perplexity is per token of its own small vocabulary: compare it only with itself.
- A loss measured here does not forecast the loss of a large model; small ones are more fragile.
"""


def write_card(folder: Path) -> None:
    """Render `README.md` in `folder` from its `evaluation.json`, `training.json` and `config.json`.

    Raises:
        FileNotFoundError: one of them is missing; train and evaluate first.
    """
    measured = json.loads((folder / "evaluation.json").read_text())
    training = json.loads((folder / "training.json").read_text())
    config = AutoConfig.from_pretrained(folder)
    shape = (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, {config.num_attention_heads} query heads on "
        f"{config.num_key_value_heads} KV heads of {config.head_dim}"
    )
    training["note"] = f"\n{fill(training['note'], 119)}\n" if training.get("note") else ""
    text = TEMPLATE.format(
        shape=shape,
        dtype=measured["dtype"],
        needles=measured["needles_per_document"],
        questions=f"{sum(row['total'] for row in measured['recall'].values()):,}",
        eval_seed=measured["seed"],
        recall_rows="\n".join(_recall_row(seq_len, row) for seq_len, row in measured["recall"].items()),
        perplexity_rows="\n".join(
            f"| {int(seq_len):,} | {measured['perplexity_windows'][seq_len]} | {value:.2f} |"
            for seq_len, value in measured["perplexity"].items()
        ),
        folder="examples/models/recall",
        vocab=f"{config.vocab_size:,}",
        stage_rows="\n".join(map(_stage_row, STAGES)),
        **training,
    )
    (folder / "README.md").write_text(text)


def _recall_row(seq_len: str, row: dict) -> str:
    low, high = row["interval_95"]
    return (
        f"| {int(seq_len):,} | {100 * row['rate']:.2f} % ({row['correct']}/{row['total']}) "
        f"| {100 * low:.2f} - {100 * high:.2f} % |"
    )


def _stage_row(stage) -> str:
    until = f"{100 * stage.until:g} %" if stage.until <= 1 else "-"
    return (
        f"| {stage.seq_len} | {stage.rows} | {stage.keys} | {stage.lookups} | {stage.closing} "
        f"| {'yes' if stage.stretch else 'no'} | {stage.text_weight:g} | {stage.steps} | {until} "
        f"| {stage.rate:g} to {stage.final_rate:g} |"
    )


def main() -> None:
    """Command line: write the card of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path("examples/models/recall"))
    write_card(parser.parse_args().model)


if __name__ == "__main__":
    main()
