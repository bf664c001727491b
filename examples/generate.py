"""
Answers a prompt with a patched model, and says what the patch did.

    python examples/generate.py MODEL [--prompt TEXT | --file PATH] [--new-tokens 64]

MODEL is a folder or a name on the Hub; the bundled recall model where none is given.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

import hf_infeco

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default=str(Path(__file__).parent / "models" / "recall"))
parser.add_argument("--prompt", default="A long text costs less when")
parser.add_argument("--file", type=Path, help="read the prompt from a file")
parser.add_argument("--new-tokens", type=int, default=64)
arguments = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(arguments.model)
model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16).to(device)
model = hf_infeco.patch(model)

text = arguments.file.read_text() if arguments.file else arguments.prompt
inputs = tokenizer(text, return_tensors="pt").to(device)
model.generate(**inputs, max_new_tokens=arguments.new_tokens, streamer=TextStreamer(tokenizer, skip_prompt=True))
print(f"\n{hf_infeco.report(model, num_tokens=inputs['input_ids'].shape[1] + arguments.new_tokens)}")
