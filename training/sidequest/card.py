"""The side adapter's card, from the settings and what was measured."""

from typing import Any

from .config import RecipeConfig
from .evaluate import session_settings

TEMPLATE = """---
base_model: {base}
library_name: peft
---
# SideQuest: an adapter that tidies an agent's context

A LoRA (rank {rank}) that is active in side threads{where}: asked what is stale, it names the tool results that the
agent no longer needs, and `hf_infeco.SideQuestSession` drops their keys and values (arXiv 2602.22603).

## Use

```python
model = AutoModelForCausalLM.from_pretrained("{base}", dtype="bfloat16")
{agent}model.load_adapter(folder_of_this_file, adapter_name="side")
config = SideQuestConfig(interval={interval}, main_adapters={main}, side_adapters={side})
session = hf_infeco.SideQuestSession(model, tokenizer, tools, config)
```

## Measured

{tasks} held-out tasks, greedy; 95 % Wilson intervals; ratios are means over tasks, against keeping everything.

{table}

## Recipe

`hf-infeco train sidequest --model BASE --config infeco_config.json` with the settings beside this file: {traces}
correct traces of the agent, labelled by hindsight; passes over them: {epochs}.
"""


def card(base: str, config: RecipeConfig, report: dict[str, Any]) -> str:
    """The text of `README.md`."""
    rows = ["| | right | | peak | KV reads | malformed | wrong deletions |", "|---|---|---|---|---|---|---|"]
    for name, entry in report.items():
        low, high = (100 * bound for bound in entry["interval_95"])
        rows.append(
            f"| {name} | {entry['right']} of {entry['tasks']} | {low:.0f}-{high:.0f} % | {entry['peak_ratio']:.2f} "
            f"| {entry['reads_ratio']:.2f} | {entry['malformed']} of {entry['commands']} "
            f"| {entry['wrong']} of {entry['deletions']} |"
        )
    settings = session_settings(config)
    agent = f'model.load_adapter("{config.agent_adapter}", adapter_name="agent")\n' if config.agent_adapter else ""
    return TEMPLATE.format(
        base=base,
        where=" and in the main thread" if config.adapts_main else " alone",
        agent=agent,
        main=settings.main_adapters,
        side=settings.side_adapters,
        tasks=report["keep_all"]["tasks"],
        table="\n".join(rows),
        **{name: getattr(config, name) for name in ("rank", "interval", "traces", "epochs")},
    )
