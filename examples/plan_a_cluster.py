"""
Plans a cluster that nobody has rented yet: an H100 described by its data sheet, a model's config, a bursty load, and
what TTFT and time per token may be.

    python examples/plan_a_cluster.py [--rate 6]

The tables are a roofline's, an estimate. With a log of your own, `hf-infeco calibrate` brings them close.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from hf_infeco.servesim.generators import poisson
from hf_infeco.servesim.plan import Plan, Promise, make_plan
from hf_infeco.servesim.roofline import find_device, write_roofline
from hf_infeco.servesim.settings import Instance
from hf_infeco.servesim.shape import ModelShape

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
WIDTHS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=6.0, help="requests per second")
    rate = parser.parse_args().rate

    with TemporaryDirectory() as folder:
        config, profile = Path(folder) / "config.json", Path(folder) / "profile"
        config.write_text(json.dumps(LLAMA_8B))
        device = find_device("H100")
        write_roofline(ModelShape.read(config), device, "H100", profile, WIDTHS)
        each = Instance(
            model=str(config),
            profile=str(profile),
            memory_gb=device.memory_gb,
            link=device.link,
            dollars_per_hour=3.0,
        )
        plan = Plan(each, devices=(1, 2, 4), promise=Promise(ttft=0.5, tpot=0.02), transfer=device.link, splits=True)
        trace = list(poisson(rate, 300, input_tokens=1200, output_tokens=250, burstiness=2.0))
        for layout in make_plan(plan, trace):
            line = f"{layout.name:<32}{layout.devices:>3} devices"
            if layout.summary:
                line += f"{layout.summary['ttft']['p99']:>8.2f} s TTFT p99{layout.dollars_per_million:>8.2f} $/M"
            print(f"{line}   {'; '.join(layout.reasons) or 'keeps the promise, and nobody beats it'}")


if __name__ == "__main__":
    main()
