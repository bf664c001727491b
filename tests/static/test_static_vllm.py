"""
`VLLMProcessor` against the interface that vLLM documents for its V1 logits processors
(vllm/v1/sample/logits_processor/interface.py): an engine's batch is played here, request by request.
"""

import enum
import inspect
from types import SimpleNamespace

import pytest
import torch

from hf_infeco.static import StaticIndex
from hf_infeco.static.vllm import VLLMProcessor

from .catalogues import EOS, VOCAB, random_index

# Names of the arguments of the methods that vLLM calls, and of the fields of the update that it hands over.
INTERFACE = {
    "__init__": ["self", "vllm_config", "device", "is_pin_memory"],
    "apply": ["self", "logits"],
    "is_argmax_invariant": ["self"],
    "update_state": ["self", "batch_update"],
    "validate_params": ["sampling_params"],
}
Move = enum.Enum("Move", ["UNIDIRECTIONAL", "SWAP"])


def update(removed=(), added=(), moved=()):
    return SimpleNamespace(batch_size=4, removed=list(removed), added=list(added), moved=list(moved))


def params(name=None, ends=(EOS,)):
    extra = None if name is None else {"static_index": name}
    return SimpleNamespace(extra_args=extra, all_stop_token_ids=set(ends))


@pytest.fixture
def shop() -> StaticIndex:
    return random_index(0, variable=True)[0]


@pytest.fixture
def processor(shop, tmp_path):
    random_index(1)[0].save_pretrained(tmp_path)

    class Catalogues(VLLMProcessor):
        indexes = {"shop": shop, "saved": str(tmp_path)}  # noqa: RUF012

    return Catalogues(None, torch.device("cpu"), False)


def test_it_has_the_methods_that_vllm_calls(processor):
    for name, arguments in INTERFACE.items():
        assert list(inspect.signature(getattr(VLLMProcessor, name)).parameters) == arguments
    assert inspect.ismethod(VLLMProcessor.validate_params) and processor.is_argmax_invariant() is False


def test_requests_stay_in_the_index_that_they_ask_for_wherever_they_are_moved(processor, shop):
    saved = processor.loaded["saved"]
    outputs = {name: [] for name in "abcd"}
    of = {
        "a": (shop, (EOS,)),
        "b": (saved, (EOS,)),
        "c": None,
        "d": (shop, (EOS, 60)),
    }  # and stops at no token of ours
    added = [(0, params("shop"), [1, 2], outputs["a"]), (1, params("saved"), None, outputs["b"])]
    added += [(2, params(), [1], outputs["c"]), (3, params("shop", (EOS, 60, 10**6)), [1], outputs["d"])]
    steps = [
        (update(added=added), "abcd"),
        (None, "abcd"),
        (update(moved=[(0, 1, Move.SWAP)]), "bacd"),
        (update(moved=[(2, 3, Move.SWAP)]), "badc"),
        (update(removed=[0], moved=[(2, 0, Move.UNIDIRECTIONAL)]), "da c"),
        (update(added=[(2, params("saved"), [], outputs["b"])]), "dabc"),
        (update(added=[(0, params(), [], outputs["c"])]), "cab "),
    ]
    generator = torch.Generator().manual_seed(0)
    for change, slots in steps:
        processor.update_state(change)
        logits = torch.randn(4, VOCAB, generator=generator)
        got = processor.apply(logits.clone())
        for slot, name in enumerate(slots):
            if of.get(name) is None:
                assert torch.equal(got[slot], logits[slot])
                continue
            index, ends = of[name]
            allowed = index.allowed_tokens(outputs[name], ends)
            assert got[slot].isfinite().nonzero().flatten().tolist() == allowed
            assert torch.equal(got[slot, allowed], logits[slot, allowed])
        for slot, name in enumerate(slots):  # the engine appends to the lists that it handed over
            if name != " " and len(outputs[name]) < 4:
                outputs[name].append(int(got[slot].argmax()))


def test_a_whole_generation_gives_members_and_then_ends(processor, shop):
    output = []
    processor.update_state(update(added=[(1, params("shop"), [5], output)]))
    generator = torch.Generator().manual_seed(0)
    while EOS not in output:
        output.append(int(processor.apply(torch.randn(2, VOCAB, generator=generator))[1].argmax()))
    rank = int(shop.lookup([output])[0])
    assert [token for token in shop.sequences(rank).tolist() if token >= 0] == output[:-1]


def test_an_index_that_the_server_has_not_is_refused(processor):
    type(processor).validate_params(params("shop"))
    type(processor).validate_params(params())
    with pytest.raises(ValueError, match=r"static_index='/etc' is none of.*\['saved', 'shop'\]"):
        type(processor).validate_params(params("/etc"))
    processor.update_state(update(added=[(0, params("shop"), [], [])]))
    with pytest.raises(ValueError, match="vocab_size"):
        processor.apply(torch.randn(1, VOCAB + 1))
