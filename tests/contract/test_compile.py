"""A model compiled by torch computes what it computes eagerly, with and without a cache, padding and packing."""

import pytest
import torch
from transformers import CompileConfig, StaticCache

import hf_infeco
from hf_infeco import CACHE_NAME

from .behaviours import pad_left, run
from .families import DEVICE, build, prompt
from .settings import EXACT, LOSSY

LENGTH = 60
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _compile_anew():
    yield
    torch.compiler.reset()


def own_cache(model):
    """The cache that the forward makes, and a second call that goes on with it."""
    first = model(prompt(2, LENGTH), use_cache=True)
    second = model(prompt(2, 25, seed=2), **{CACHE_NAME: first[CACHE_NAME]})
    return torch.cat([first.logits, second.logits], dim=1)


def static_cache(model):
    """Longer than what is in it: two chunks, then single tokens."""
    cache = StaticCache(config=model.config, max_cache_len=LENGTH + 20)
    chunks = prompt(1, LENGTH + 5).split([40, 20, 1, 1, 1, 1, 1], dim=1)
    return torch.cat([model(chunk, **{CACHE_NAME: cache}).logits for chunk in chunks], dim=1)


def full_static_cache(model):
    """As long as its two chunks are together."""
    cache = StaticCache(config=model.config, max_cache_len=LENGTH)
    chunks = prompt(1, LENGTH).split([40, 20], dim=1)
    return torch.cat([model(chunk, **{CACHE_NAME: cache}).logits for chunk in chunks], dim=1)


def left_padding(model):
    ids, mask = pad_left(prompt(2, LENGTH), 13)
    return model(ids, attention_mask=mask, use_cache=False).logits[:, 13:]


def padding_inside(model):
    """Not the prefix that S2O knows."""
    mask = torch.ones_like(prompt(1, LENGTH))
    mask[:, 20:30] = 0
    return model(prompt(1, LENGTH), attention_mask=mask, use_cache=False).logits[:, 30:]


def packed_sequences(model):
    """Two sequences in a row, told apart by their positions alone."""
    positions = torch.cat([torch.arange(35), torch.arange(25)])[None].to(DEVICE)
    return model(prompt(1, LENGTH), position_ids=positions, use_cache=False).logits


FORWARDS = [own_cache, static_cache, full_static_cache, left_padding, padding_inside, packed_sequences]
# Of these sliding windows change the cache and the mask; what they do to a mask they do to every mask.
WITH_WINDOWS = [own_cache, static_cache, left_padding]
CASES = [("llama", forward) for forward in FORWARDS] + [("gemma3", forward) for forward in WITH_WINDOWS]


@pytest.mark.parametrize("family, forward", CASES)
def test_compiled_in_the_exact_setting_equals_unpatched(family, forward):
    model = build(family)
    with torch.no_grad():
        expected = forward(model)
        with hf_infeco.patched(model, EXACT["s2o"]):
            got = forward(torch.compile(model, backend="eager"))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("forward, fullgraph", [(own_cache, True), (left_padding, False)])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_compiled_prefill_is_as_sparse_as_an_eager_one(family, forward, fullgraph):
    model = hf_infeco.patch(build(family), LOSSY["s2o"])
    with torch.no_grad():
        expected = forward(model)
        density = hf_infeco.report(model).s2o.density
        hf_infeco.patch(model, LOSSY["s2o"])  # counts from zero again
        got = forward(torch.compile(model, backend="aot_eager", fullgraph=fullgraph))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert hf_infeco.report(model).s2o.density == density < 1


def test_without_cache_and_mask_a_compiled_prefill_runs_dense_and_says_so():
    """In a graph transformers cannot look whether the positions are those of packed sequences, and writes a mask."""
    model = build("llama")
    with torch.no_grad():
        expected = model(prompt(2, LENGTH), use_cache=False).logits
        hf_infeco.patch(model, LOSSY["s2o"])
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        got = compiled(prompt(2, LENGTH), use_cache=False).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert hf_infeco.report(model).s2o.density == 1


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_generation_with_compiled_steps_equals_unpatched(family):
    settings = CompileConfig(backend="eager")
    settings._compile_all_devices = True  # not only on a GPU
    kwargs = dict(cache_implementation="static", compile_config=settings)
    model = build(family)
    expected = run(model, prompt(2, LENGTH))
    with hf_infeco.patched(model, EXACT["s2o"]):
        got = run(model, prompt(2, LENGTH), **kwargs)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_compiled_training_step_is_that_of_the_dense_model(family):
    gradients = []
    for config in (None, LOSSY["s2o"]):
        model = build(family).train()
        step = model if config is None else torch.compile(hf_infeco.patch(model, config), backend="aot_eager")
        step(prompt(2, LENGTH), labels=prompt(2, LENGTH)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
