"""
Serves a few prompts on several processes and changes the parallel width while they are being answered.

    torchrun --nproc-per-node 2 --max-restarts 0 examples/serve_and_switch.py [--model FOLDER_OR_NAME]

Each process holds the whole model. At width 1 each serves requests of its own; at width 2 both serve one batch, each
with half of every matrix. Without torchrun it runs on one process, whose only width is 1.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from hf_infeco.flying import FlyingManager

MODEL = Path(__file__).parent / "models" / "recall"
POOL = ContinuousBatchingConfig(page_size=16, num_blocks=64, max_batch_tokens=128)


def join_processes() -> None:
    """By torchrun's variables; alone without them."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update({name: os.environ.get(name, value) for name, value in alone.items()})
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def serve(manager: FlyingManager, prompts: list[list[int]], new_tokens: int) -> None:
    """Sends all prompts, switches every fifth of a second, and tells what came of it."""
    names = {manager.add_request(prompt, max_new_tokens=new_tokens) for prompt in prompts}
    answered, widths = 0, manager.switcher.widths
    while names:
        output = manager.get_result(timeout=0.05)
        if output is not None and output.is_finished():
            names.discard(output.request_id)
            answered += 1
        elif len(widths) > 1:
            manager.switch(widths[(widths.index(manager.width) + 1) % len(widths)])
            switch = manager.switches[-1]
            print(
                f"width {switch['width']}: waited {1e3 * switch['wait_s']:.1f} ms, moved {switch['bytes']:,} bytes of "
                f"{switch['requests']} requests in {1e3 * switch['window_s']:.1f} ms"
            )
            time.sleep(0.2)
    print(f"{answered} of {len(prompts)} prompts answered; widths {widths}, tokens of a request {manager.budgets}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--requests", type=int, default=6)
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    join_processes()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    if torch.cuda.is_available():
        model.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    manager = FlyingManager(model, continuous_batching_config=POOL)
    manager.start()
    if manager.is_front:
        vocabulary = model.config.get_text_config().vocab_size
        prompts = [[(7 * i * j + j) % vocabulary for j in range(40)] for i in range(1, arguments.requests + 1)]
        serve(manager, prompts, arguments.new_tokens)
        manager.stop()
    else:
        manager.wait()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
