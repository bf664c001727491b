"""A patched model and transformers' continuous batching: refused with a sentence, and as before once unpatched."""

import pytest
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import hf_infeco

from .contract.families import build, prompt

POOL = ContinuousBatchingConfig(page_size=16, num_blocks=16, max_batch_tokens=64)


@pytest.mark.parametrize("methods", [{}, {"innerq": False}, {"s2o": False}])
def test_a_patched_model_says_that_it_cannot_batch_continuously(methods):
    model = hf_infeco.patch(build("llama"), **methods)
    with pytest.raises(ValueError, match="is patched, and continuous batching"):
        model.generate_batch([[2, 3, 4]], max_new_tokens=2)
    assert hf_infeco.report(model).status("s2o") == ({"off"} if "s2o" in methods else {"enabled"})


def test_unpatch_gives_continuous_batching_back():
    model, ids = build("llama"), prompt(1, 12)
    plain = model.generate(ids, max_new_tokens=4, min_new_tokens=4)[0, 12:].tolist()
    hf_infeco.unpatch(hf_infeco.patch(model))
    (answer,) = model.generate_batch(ids.tolist(), max_new_tokens=4, continuous_batching_config=POOL).values()
    assert answer.generated_tokens == plain
