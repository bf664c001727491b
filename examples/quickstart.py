"""
Hides needles in 16,384 tokens of real text, asks a trained model for them, dense and patched, and compares.

    make demo        or        python examples/quickstart.py [--tokens 16384] [--questions 32]

The model is the bundled recall model (examples/models/recall), the text is Python's own library and documentation.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_infeco
from hf_infeco.training.testbed.recall.evaluate import ask
from hf_infeco.training.testbed.recall.needles import answer_text, sample_document
from hf_infeco.training.testbed.recall.text import encode_text, held_out_text

MODEL = Path(__file__).parent / "models" / "recall"
NEW_TOKENS = 32


@torch.no_grad()
def measure(model, tokenizer, needles):
    """Prefills the document once, asks for every needle, then times plain decoding from the same cache."""
    document = needles.document[None].to(model.device)
    start = time.perf_counter()
    cache = model(document, use_cache=True, logits_to_keep=1)[hf_infeco.CACHE_NAME]
    prefill_seconds = seconds_since(start)

    groups = needles.keys.split(16)  # questions asked at once, each on its own copy of the cache
    answers = torch.cat([ask(model, tokenizer, cache, keys) for keys in groups])
    correct = (answers == needles.answers).all(dim=1)
    kv_bytes = hf_infeco.cache_nbytes(cache)

    prompt = torch.cat([document, document[:, :1]], dim=1)  # generate() wants one token that is not in the cache yet
    start = time.perf_counter()
    model.generate(
        prompt, **{hf_infeco.CACHE_NAME: cache}, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    decode_seconds = seconds_since(start)
    return {
        "right answers": f"{int(correct.sum())} of {len(correct)}",
        "prefill": f"{prefill_seconds:.2f} s",
        "KV cache": f"{kv_bytes / 2**20:.2f} MiB",
        "decoding": f"{NEW_TOKENS / decode_seconds:.1f} tokens/s",
    }, answers


def seconds_since(start: float) -> float:
    """A GPU works on after the call has returned: wait for it before reading the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16384, help="length of the document")
    parser.add_argument("--questions", type=int, default=32, help="needles hidden and asked for, at most 64")
    arguments = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval().to(device)
    text = torch.tensor(encode_text(tokenizer, held_out_text()))
    generator = torch.Generator().manual_seed(0)
    needles = sample_document(tokenizer, text, arguments.tokens, arguments.questions, generator)
    size = f"{model.num_parameters() / 1e6:.1f} M parameters, {model.config.num_hidden_layers} layers, {model.dtype}"
    print(f"A model of {size}, on {hf_infeco.describe_device(model.device)}")
    print(f"{arguments.tokens} tokens of text, with {arguments.questions} needles such as")
    print(f"    {tokenizer.decode(needles.keys[:1])} -> {answer_text(tokenizer, needles.answers[0])}\n")

    dense, dense_answers = measure(model, tokenizer, needles)
    hf_infeco.patch(model)
    hf_infeco.warm_up(model, needles.document[None, :2048])  # compiles and measures, which is no part of a prefill
    patched, patched_answers = measure(model, tokenizer, needles)
    report = hf_infeco.report(model)
    same = (dense_answers == patched_answers).all(dim=1)
    dense["same answers"] = "-"
    patched["same answers"] = f"{int(same.sum())} of {len(same)}"
    dense["attention pairs in prefill"] = "100 %"
    patched["attention pairs in prefill"] = f"{100 * report.s2o.density:.0f} %"

    print(f"{'':28}{'dense':>16}{'patched':>16}")
    for name in dense:
        print(f"{name:28}{dense[name]:>16}{patched[name]:>16}")
    print(f"\n{report}")


if __name__ == "__main__":
    main()
