"""
An agent that tidies its own context: one task, turn by turn, with what is open, what the side thread says and what is
freed.

    python examples/agent_sidequest.py --model FOLDER_OR_NAME [--hops 4] [--parts 1] [--seed 1000003] [--interval 4]

The base model is SmolLM2-135M-Instruct, by its name on the Hub or as a folder. Two adapters go onto it: one answers
with search, open and find, the other names the results that are stale. docs/sidequest.md says how to train both.
"""

import argparse
import sys
from pathlib import Path

from peft import PeftModel
from rich.console import Console
from rich.markup import escape
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_infeco import SideQuestConfig, SideQuestSession
from hf_infeco.sidequest import Event, KeepAll, SideQuestResult
from hf_infeco.training.testbed.agent.tasks import Task, make_task

MODELS = Path(__file__).parent / "models"
STYLES = {"turn": "white", "fork": "dim", "command": "yellow", "rejected": "red", "evicted": "green", "answer": "bold"}


def load(name: str, agent: Path, side: Path) -> tuple[PeftModel, AutoTokenizer]:
    """The base model with both adapters, and its tokenizer."""
    if missing := [str(folder) for folder in (agent, side) if not folder.is_dir()]:
        sys.exit(f"No adapter in {' and '.join(missing)}: train them as docs/sidequest.md says, or name others.")
    base = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    model = PeftModel.from_pretrained(base, agent, adapter_name="agent")
    model.load_adapter(side, adapter_name="side")
    return model.eval(), AutoTokenizer.from_pretrained(name)


def describe(event: Event) -> str:
    """An event as a line or a few."""
    cursors = ", ".join(map(str, event.cursors)) or "none"
    return {
        "turn": f"turn {event.turn}: {event.text}\n   -> {event.result[:70]!r}...  open: {cursors}",
        "fork": f"side thread begins; open: {cursors}",
        "command": f"side thread: {event.text}",
        "rejected": f"side thread rejected: {event.text}",
        "evicted": f"freed: cursors {cursors}, {event.tokens} tokens, {event.nbytes / 1e6:.1f} MB",
        "answer": f"answer: {event.text}",
    }[event.kind]


def compare(console: Console, task: Task, kept: SideQuestResult, tidied: SideQuestResult) -> None:
    """The same task with and without side threads."""
    for name, result in (("keep all", kept), ("SideQuest", tidied)):
        record, verdict = result.record, "right" if task.is_right(result.answer or "") else "wrong"
        console.print(
            f"{name}: {verdict}, peak {record.peak_tokens} tokens, {record.mean_tokens:.0f} on average, "
            f"{record.kv_reads / 1000:.0f} thousand KV reads"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--agent", type=Path, default=MODELS / "agent", help="folder of the agent's adapter")
    parser.add_argument("--side", type=Path, default=MODELS / "sidequest", help="folder of the side thread's")
    parser.add_argument("--hops", type=int, default=4)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument(
        "--seed", type=int, default=1_000_003, help="of the task; from 1,000,000 on none was trained on"
    )
    parser.add_argument("--interval", type=int, default=4, help="tool calls between two side threads")
    arguments = parser.parse_args()

    model, tokenizer = load(arguments.model, arguments.agent, arguments.side)
    task = make_task(arguments.seed, arguments.hops, arguments.parts)
    config = SideQuestConfig(
        interval=arguments.interval, main_adapters=("agent",), side_adapters=("agent", "side"), max_new_tokens=200
    )
    console = Console(highlight=False)
    console.print(escape(task.messages[-1]["content"]), style="bold")
    tidied = SideQuestSession(model, tokenizer, task.tools, config).run(
        task.messages, on_event=lambda event: console.print(escape(describe(event)), style=STYLES[event.kind])
    )
    kept = SideQuestSession(model, tokenizer, task.tools, config, policy=KeepAll()).run(task.messages)
    compare(console, task, kept, tidied)


if __name__ == "__main__":
    main()
