"""The InnerQ cache as transformers sees it: windows, growth, the layer protocol, and nothing quantized twice."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, PhiConfig, PhiForCausalLM

import hf_infeco
from hf_infeco import CACHE_NAME, InnerQCache, InnerQConfig, cache_nbytes, compat
from hf_infeco.innerq.layer import InnerQLayer
from hf_infeco.kernels.innerq.reference import GROUP
from hf_infeco.kv import KVHandle

SINK, RECENT = 4, 40
CONFIG = InnerQConfig(sink=SINK, recent=RECENT)


def states(tokens: int, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, 2, tokens, 64, generator=generator) for _ in range(2))


def filled(tokens: int, config: InnerQConfig = CONFIG, step: int | None = None) -> InnerQLayer:
    """A layer that was given `tokens` tokens, all at once or `step` at a time."""
    layer = InnerQLayer(config)
    key, value = states(tokens)
    for start in range(0, tokens, step or tokens):
        layer.update(key[:, :, start : start + (step or tokens)], value[:, :, start : start + (step or tokens)])
    return layer


def cache_bytes(layer: InnerQLayer) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in layer.tensors())


def remove(layer: InnerQLayer, tokens: int) -> None:
    layer.crop(-tokens)


def test_the_first_call_returns_what_it_was_given():
    key, value = states(500)
    got = InnerQLayer(CONFIG).update(key, value)
    assert torch.equal(got[0], key) and torch.equal(got[1], value)
    assert not isinstance(got[0], KVHandle)


def test_windows_are_exact_and_the_recent_one_never_falls_below_its_size():
    key, _ = states(600)
    layer = InnerQLayer(CONFIG)
    for start in range(0, 600, 7):
        layer.update(*(tensor[:, :, start : start + 7] for tensor in states(600)))
        end = min(start + 7, 600)
        held = layer.keys
        assert held.shape[2] == layer.get_seq_length() == end
        exact = min(end, RECENT)
        assert torch.equal(held[:, :, -exact:], key[:, :, end - exact : end])
        assert torch.equal(held[:, :, :SINK], key[:, :, : min(SINK, end)])
    assert not torch.equal(held[:, :, SINK:-RECENT], key[:, :, SINK:-RECENT])
    torch.testing.assert_close(held, key, atol=0.9, rtol=0)


def test_a_call_attends_its_own_tokens_exactly():
    layer = filled(300)
    key, value = states(200, seed=1)
    handle, _ = layer.update(key, value)
    assert isinstance(handle, KVHandle) and handle.shape == (2, 2, 500, 64)
    assert torch.equal((handle + 0)[:, :, -200:], key)


def test_nothing_is_quantized_twice():
    layer = filled(300)
    before = layer._store.view()
    words, scale = before.key.words.clone(), before.value.scale.clone()
    for seed in range(200):
        layer.update(*states(3, seed=seed))
    after = layer._store.view()
    assert after.num_slots > before.num_slots
    assert torch.equal(after.key.words[:, :, : words.shape[2]], words)
    assert torch.equal(after.value.scale[:, :, : scale.shape[2]], scale)


def test_codes_are_as_written_after_thousands_of_steps():
    layer = InnerQLayer(CONFIG)
    key, value = (torch.randn(1, 1, 4096, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    written: list[dict[str, torch.Tensor]] = []  # every tile at the step that packed it
    for step in range(4096):
        layer.update(key[:, :, step : step + 1], value[:, :, step : step + 1])
        if layer._store is not None and layer._store.num_slots > len(written) * GROUP:
            written.append({name: tensor[:, :, -1].clone() for name, tensor in packed_state(layer).items()})
    assert len(written) == (4096 - SINK - RECENT) // GROUP
    for name, tensor in packed_state(layer).items():
        assert torch.equal(tensor, torch.stack([tile[name] for tile in written], 2)), name


def packed_state(layer: InnerQLayer) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in layer.state().items() if name.startswith(("key.", "value."))}


def test_one_at_a_time_equals_all_at_once_where_nothing_is_taken_from_the_first_tokens():
    config = InnerQConfig(sink=SINK, recent=RECENT, normalize_keys=False, center_keys=False)
    at_once, one_by_one = filled(301, config), filled(301, config, step=1)
    assert torch.equal(at_once._store.view().value.words, one_by_one._store.view().value.words)
    assert torch.equal(at_once.keys, one_by_one.keys)


def test_later_tokens_are_stored_with_the_means_and_norms_of_the_first():
    layer = filled(300)
    mean, norm = layer._store.key_mean.clone(), layer._store.key_norm.clone()
    layer.update(*(100 + tensor for tensor in states(200, seed=1)))
    assert torch.equal(layer._store.key_mean, mean) and torch.equal(layer._store.key_norm, norm)


def test_a_short_first_call_waits_for_enough_tokens_to_measure():
    layer = filled(SINK + RECENT + GROUP - 1)
    assert layer._store is None
    layer.update(*states(1, seed=1))
    assert layer._store.num_tokens == GROUP and (layer._store.key_norm >= 1e-3).all()


@pytest.mark.gpu
def test_a_decode_step_never_waits_for_the_gpu():
    layer = InnerQLayer(CONFIG)
    layer.update(*(tensor.cuda().half() for tensor in states(300)))
    query = torch.randn(2, 4, 1, 64, device="cuda", dtype=torch.float16)
    new = [tensor.cuda().half() for tensor in states(1, seed=1)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2 * GROUP):  # packs twice on the way
            handle, _ = layer.update(*new)
            handle.view_of.attend(query, 0.1, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_appending_copies_little():
    """Amortised growth: the buffer is rebuilt a few dozen times in 4096 appended tokens, not at each of 128 tiles."""
    layer = filled(2048)
    seen = set()
    for seed in range(4096 // GROUP):
        layer.update(*states(GROUP, seed=seed))
        seen.add(layer._store._buffers["key.words"].data_ptr())
    assert 1 < len(seen) < 64


@pytest.mark.parametrize("tokens", [1, 30, RECENT, 60, 100, 133, 250, 290, 299, 300])
def test_crop_forgets_the_newest_tokens_and_keeps_the_codes_of_the_rest(tokens):
    layer = filled(300)
    before = layer.keys, layer.values
    remove(layer, tokens)
    assert layer.get_seq_length() == 300 - tokens
    if tokens < 300:
        assert torch.equal(layer.keys, before[0][:, :, : 300 - tokens])
        assert torch.equal(layer.values, before[1][:, :, : 300 - tokens])
    key, value = states(150, seed=2)
    handle, _ = layer.update(key, value)
    assert torch.equal((handle + 0)[:, :, -150:], key)
    assert layer.keys.shape[2] == 450 - tokens
    if tokens <= 260:
        kept = slice(SINK, 300 - tokens - RECENT)  # packed before, packed still
        assert torch.equal(layer.values[:, :, kept], before[1][:, :, kept])


def test_cropping_twice_inside_one_tile():
    layer = filled(300)
    before = layer.values
    remove(layer, 60)
    remove(layer, 5)
    assert torch.equal(layer.values, before[:, :, :235])
    layer.update(*states(200, seed=4))
    remove(layer, 205)
    assert layer.get_seq_length() == 230
    assert torch.equal(layer.values, before[:, :, :230])


@pytest.mark.skipif(not compat.CROP_REFUSES_A_LENGTH, reason="crop took a length before transformers 5.18")
def test_crop_with_a_length_is_refused_with_the_right_call():
    with pytest.raises(ValueError, match=r"crop\(-200\)"):
        filled(300).crop(100)


@pytest.mark.parametrize("tokens", [20, 300])
def test_batch_operations_move_codes(tokens):
    layer = filled(tokens)
    key, value = layer.keys, layer.values
    order = torch.tensor([1, 0])
    layer.reorder_cache(order)
    assert torch.equal(layer.keys, key[order])
    layer.batch_repeat_interleave(3)
    assert torch.equal(layer.values, value[order].repeat_interleave(3, 0))
    layer.batch_select_indices(torch.tensor([0, 5]))
    assert torch.equal(layer.keys, key[order][[0, 1]])
    layer.batch_select_indices(torch.tensor([True, False]))
    assert torch.equal(layer.keys, key[[1]])
    handle, _ = layer.update(*states(1, batch=1))
    assert handle.shape == (1, 2, tokens + 1, 64)


def test_reset_leaves_an_empty_layer_that_can_be_filled_again():
    layer = filled(300)
    layer.reset()
    assert layer.get_seq_length() == 0 and layer.keys is None and cache_bytes(layer) == 0
    layer.update(*states(300))
    assert torch.equal(layer.keys, filled(300).keys)


def test_offload_and_prefetch_keep_every_token():
    layer = filled(300)
    before = layer.keys
    layer.offload()
    layer.prefetch()
    assert torch.equal(layer.keys, before)


def test_a_deepcopy_is_independent():
    layer = filled(300)
    twin = copy.deepcopy(layer)
    twin.update(*states(64, seed=1))
    assert layer.get_seq_length() == 300 and twin.get_seq_length() == 364
    assert torch.equal(layer.keys, filled(300).keys)


def test_gradients_pass_through_a_later_call():
    layer = filled(300)
    key, value = states(5, seed=1)
    key.requires_grad_()
    got, _ = layer.update(key, value)
    got.square().sum().backward()
    torch.testing.assert_close(key.grad, 2 * key.detach())


@pytest.mark.parametrize("head_dim", [8, 40, 80])
@pytest.mark.parametrize("settings", [{}, {"normalize_keys": False, "center_keys": False}])
def test_a_head_dim_without_whole_groups_is_filled_up(head_dim, settings):
    layer = InnerQLayer(replace(CONFIG, **settings))
    key, value = (tensor[..., :1].repeat(1, 1, 1, head_dim) + torch.randn(head_dim) for tensor in states(300))
    layer.update(key, value)
    assert layer.keys.shape == key.shape and layer.values.shape == value.shape
    torch.testing.assert_close(layer.keys, key, rtol=0, atol=0.8)
    handle, _ = layer.update(key[:, :, :3], value[:, :, :3])
    query = torch.randn(2, 4, 3, head_dim, generator=torch.Generator().manual_seed(1))
    causal = torch.ones(3, 303, dtype=torch.bool).tril(300)
    expected = F.scaled_dot_product_attention(
        query, layer.keys, layer.values, attn_mask=causal, scale=0.2, enable_gqa=True
    )
    torch.testing.assert_close(handle.view_of.attend(query, 0.2, None), expected, rtol=1e-4, atol=1e-4)


def test_only_full_attention_layers_are_packed():
    config = LlamaConfig(num_hidden_layers=3, hidden_size=128, num_attention_heads=2)
    assert all(isinstance(layer, InnerQLayer) for layer in InnerQCache(config).layers)
    with pytest.raises(ValueError, match=r"full-attention.*DynamicCache"):
        InnerQCache(MistralConfig(num_hidden_layers=2, sliding_window=8))


def test_bytes_are_those_of_the_storages():
    config = LlamaConfig(num_hidden_layers=1, hidden_size=128, num_attention_heads=2)
    plain = InnerQConfig(normalize_keys=False, center_keys=False)
    cache, dense = InnerQCache(config, plain), DynamicCache(config=config)
    for each in (cache, dense):
        each.update(*(tensor.bfloat16() for tensor in states(4096, batch=1)), 0)
    assert cache_nbytes(dense) == 2 * 2 * 4096 * 64 * 2
    packed = 4096 - 32 - 96  # a multiple of 32
    numbers, spare = 2 * 2 * packed * 64, 1 + 1 / 16
    exact = 2 * 2 * (32 + 96) * 64 * 2
    packed = numbers * plain.bits_per_number / 8
    assert packed + exact <= cache.nbytes <= packed * spare + exact + 1024


@pytest.mark.parametrize("beam", [False, True])
def test_a_handle_is_a_tensor_for_whoever_looks_inside(beam):
    layer = filled(300)
    if beam:
        layer.reorder_cache(torch.tensor([1, 1]))
    handle, _ = layer.update(*states(2, seed=1))
    expected = layer.keys
    assert handle.dtype == expected.dtype and handle.device == expected.device
    assert torch.equal(handle.transpose(1, 2), expected.transpose(1, 2))
    assert torch.equal(handle[:, 0], expected[:, 0])
    assert torch.equal(torch.cat([handle, handle], 1), torch.cat([expected, expected], 1))
    assert torch.equal(handle @ expected.transpose(-1, -2), expected @ expected.transpose(-1, -2))
    assert type(handle * 2) is torch.Tensor
    assert "KVHandle" in repr(handle)


@pytest.mark.parametrize("name", ["key_bits", "value_bits"])
@pytest.mark.parametrize("bits", [0, 1, 5, 16])
def test_bits_out_of_range_are_refused_with_the_range(name, bits):
    with pytest.raises(ValueError, match=rf"InnerQConfig\.{name}={bits} .*\(2, 3, 4\).*innerq=False"):
        InnerQConfig(**{name: bits})


def test_a_model_with_heads_of_80_channels_generates_the_same_packed_and_dequantized():
    config = PhiConfig(
        vocab_size=97, hidden_size=160, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, partial_rotary_factor=0.4, initializer_range=0.1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = PhiForCausalLM(config).eval()
    ids = torch.randint(3, 97, (2, 300), generator=torch.Generator().manual_seed(0))
    settings = dict(max_new_tokens=20, do_sample=False, return_dict_in_generate=True, output_logits=True)
    expected = torch.stack(model.generate(ids, **{CACHE_NAME: InnerQCache(config, CONFIG)}, **settings).logits)
    hf_infeco.patch(model, s2o=False, innerq=CONFIG)
    got = model.generate(ids, **settings)
    assert isinstance(got[CACHE_NAME], InnerQCache) and hf_infeco.report(model).status("innerq") == {"enabled"}
    torch.testing.assert_close(torch.stack(got.logits), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("patched", [False, True])
def test_a_compiled_model_computes_the_same(patched):
    config = LlamaConfig(
        vocab_size=97, num_hidden_layers=1, hidden_size=64, intermediate_size=64, num_attention_heads=1
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    if patched:
        hf_infeco.patch(model, s2o=False)
    ids = torch.randint(0, 97, (2, 88), generator=torch.Generator().manual_seed(0))

    def run(forward) -> torch.Tensor:
        cache = InnerQCache(config, CONFIG)
        pieces = [ids[:, :80], *ids[:, 80:].split(1, dim=1)]
        return torch.cat([forward(piece, **{CACHE_NAME: cache}).logits for piece in pieces], 1)

    try:
        with torch.no_grad():
            torch.testing.assert_close(run(torch.compile(model, backend="eager")), run(model))
    finally:
        torch.compiler.reset()


def test_the_cache_takes_presets_and_refuses_to_be_off():
    config = LlamaConfig(num_hidden_layers=1, hidden_size=128, num_attention_heads=2)
    assert InnerQCache(config, "small").innerq == InnerQConfig.small()
    with pytest.raises(ValueError, match="DynamicCache"):
        InnerQCache(config, False)


def test_little_lies_idle():
    for tokens in (200, 1000, 4000):
        store = filled(tokens)._store
        rows = store._buffers["value.words"].shape[2]
        assert rows - store.num_slots // GROUP <= max(1, store.num_slots // GROUP // 16)
