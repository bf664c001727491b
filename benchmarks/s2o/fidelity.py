"""What S2O loses: with its defaults, and beside its peers when all of them visit as many pairs."""

import torch
from tqdm import tqdm

from hf_infeco.training.testbed.structured_heads import structured_heads

from .inputs import LAST_LAYERS, Captor, Heads, generated
from .operator import DEFAULT_TAU, dense, distance, sparse
from .restricted import follow, knob_at
from .rules import RULES

NEEDLES = 32  # planted in the heads of `measure_error`
FOUND = 0.1  # relative error below which a needle's row counts as found
TAUS = (0.01, 0.002, 0.0005)  # whose densities the peers are given


def measure_error(captor: Captor, lengths: tuple[int, ...], device: str) -> list[dict]:
    """S2O with its defaults: error, worst head, density, and rows that found the one key that only they seek."""
    entries = []
    for seq_len in tqdm(lengths, desc="error", unit="length"):
        for head_dim in (64, 128):
            planted = structured_heads(seq_len, head_dim=head_dim, needles=NEEDLES, seed=1)
            heads = Heads(*planted[:3]).to(device)
            reference = dense(heads)
            out, shares = sparse(heads)
            rows = [(0, needle.head, needle.row) for needle in planted.needles]
            missing = [float((out[row] - reference[row]).norm() / reference[row].norm()) for row in rows]
            entry = {"input": f"generated, head_dim {head_dim}", "tokens": seq_len, "tau": DEFAULT_TAU}
            found = {"needles": len(rows), "found": sum(error < FOUND for error in missing)}
            entries.append(entry | distance(out, reference) | shares | found)
        heads = captor.heads(seq_len, 1, captor.model.config.num_hidden_layers)
        out, shares = sparse(heads)
        entry = {"input": "captured, all layers", "tokens": seq_len, "tau": DEFAULT_TAU}
        entries.append(entry | distance(out, dense(heads)) | shares)
    return entries


def compare_rules(captor: Captor, lengths: tuple[int, ...], device: str) -> list[dict]:
    """S2O at each of `TAUS`, and every peer at the knob that gives it at least the same density."""
    entries = []
    for seq_len in lengths:
        inputs = {
            "generated, head_dim 64": generated(seq_len, 64, 1).to(device),
            "captured, last two layers": captor.heads(seq_len, 1, LAST_LAYERS),
        }
        for name, heads in inputs.items():
            reference = dense(heads)
            for tau in tqdm(TAUS, desc=f"rules at {seq_len}, {name}", unit="density"):
                cell = {"input": name, "tokens": seq_len}
                entries += [cell | entry for entry in _at_equal_density(heads, reference, tau)]
    return entries


def _at_equal_density(heads: Heads, reference: torch.Tensor, tau: float) -> list[dict]:
    out, shares = sparse(heads, tau)
    without, _ = sparse(heads, tau, compensate=False)  # the same visits
    entries = [
        {"rule": "S2O", "knob": tau, **shares, **distance(out, reference)},
        {"rule": "S2O without means", "knob": tau, **shares, **distance(without, reference)},
    ]
    for name, rule in RULES.items():
        knob = knob_at(rule, heads, shares["density"])
        out, density = follow(rule, heads, knob)
        entries.append({"rule": name, "knob": knob, "density": density, **distance(out, reference)})
    return entries
