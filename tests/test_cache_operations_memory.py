"""Operations on caches: what they free and share, that packed stays packed, and what they refuse."""

import pytest
import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache, LlamaConfig, MistralConfig, StaticCache

from hf_infeco import InnerQCache, cache_nbytes, fork_cache, join_heads, keep_tokens, select_heads
from hf_infeco.attention import infeco_attention
from hf_infeco.kernels.innerq.reference import GROUP
from hf_infeco.kv import HandleLayer

from .test_cache_operations import CONFIG, DIM, EXACT, HEADS, MODULE, PACKED, SIZES


def filled(kind: str, tokens: int = 1000, batch: int = 1, layers: int = 1) -> Cache:
    config = LlamaConfig(num_hidden_layers=layers, num_key_value_heads=HEADS, **SIZES)
    cache = DynamicCache(config=config) if kind == "dynamic" else InnerQCache(config, PACKED)
    generator = torch.Generator().manual_seed(0)
    for layer in range(layers):
        cache.update(*(torch.randn(batch, HEADS, tokens, DIM, generator=generator) for _ in range(2)), layer)
    return cache


def dropping(begin: int, end: int, tokens: int = 1000, batch: int = 1) -> torch.Tensor:
    mask = torch.ones(batch, tokens, dtype=torch.bool)
    mask[:, begin:end] = False
    return mask


def storages(*caches: Cache) -> dict[int, int]:
    """Bytes of every storage of these caches, by its address."""
    layers = [layer for cache in caches for layer in cache.layers]
    held = [
        t for layer in layers for t in (layer.tensors() if isinstance(layer, HandleLayer) else vars(layer).values())
    ]
    found = [tensor.untyped_storage() for tensor in held if isinstance(tensor, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def test_a_dense_cache_frees_what_no_row_holds():
    cache = filled("dynamic", batch=2)
    mask = dropping(100, 900, batch=2)
    mask[1] = dropping(0, 700)[0]  # other tokens, and 100 fewer of them
    keep_tokens(cache, mask)
    numbers, positions = 2 * 2 * HEADS * 300 * DIM, 2 * 300
    assert cache_nbytes(cache) == 4 * (numbers + positions)


def test_whole_tiles_are_freed_row_by_row():
    """Rows drop other tiles: each row's are moved together."""
    cache, alike = filled("innerq", batch=2), filled("innerq", batch=2)
    before = cache.nbytes
    mask = dropping(200, 520, batch=2)
    keep_tokens(alike, mask)
    mask[1] = dropping(600, 920)[0]
    keep_tokens(cache, mask)
    tiles = cache.layers[0]._store.num_slots // GROUP
    assert tiles == alike.layers[0]._store.num_slots // GROUP == 31 - 9
    assert cache.nbytes < before * 23 / 31 + 2 * 8 * 1000  # and the positions


def test_a_tile_of_which_a_token_is_left_stays_and_the_others_of_it_are_masked():
    cache = filled("innerq")
    shown = cache.layers[0].keys
    mask = torch.zeros(1, 1000, dtype=torch.bool)
    mask[:, [0, 100, 500, 501, 999]] = True
    keep_tokens(cache, mask)
    assert cache.layers[0]._store.num_slots == 2 * GROUP
    assert torch.equal(cache.layers[0].keys, shown[:, :, mask[0]])


@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_keeping_everything_changes_nothing_at_all(kind):
    cache = filled(kind)
    kinds, before = [type(layer) for layer in cache.layers], storages(cache)
    keep_tokens(cache, torch.ones(1, 1000, dtype=torch.bool))
    assert storages(cache) == before and [type(layer) for layer in cache.layers] == kinds
    assert cache.layers[0].get_mask_sizes(1) == (1001, 0)


@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_a_cache_of_which_nothing_is_kept_counts_on(kind):
    cache = filled(kind)
    keep_tokens(cache, torch.zeros(1, 1000, dtype=torch.bool))
    assert cache_nbytes(cache) < 1000 and cache.get_seq_length() == 1000
    assert cache.layers[0].get_mask_sizes(3) == (3, 1000)
    key, value = (torch.randn(1, HEADS, 300, DIM) for _ in range(2))
    cache.update(key, value, 0)
    assert torch.equal(cache.layers[0].keys[:, :, -5:], key[:, :, -5:]) and cache.get_seq_length() == 1300


def test_layers_hold_one_tensor_of_positions():
    cache = filled("innerq", layers=3)
    keep_tokens(cache, dropping(100, 150))
    assert len({layer.kept.position.data_ptr() for layer in cache.layers}) == 1


@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_a_fork_takes_no_memory_until_it_goes_on(kind):
    cache = filled(kind, 4000)
    alone = storages(cache)
    fork = fork_cache(cache)
    assert storages(cache, fork) == alone


def test_a_fork_of_packed_tokens_shares_them_for_a_sixteenth_of_their_number():
    cache = filled("innerq", 4000)
    packed = {t.data_ptr() for t in cache.layers[0]._store._buffers.values()}
    fork = fork_cache(cache)

    def shared() -> set[int]:
        return packed & {t.data_ptr() for t in fork.layers[0]._store._buffers.values()}

    for tokens in (1, 63, 64, 100):
        fork.update(*(torch.randn(1, HEADS, tokens, DIM) for _ in range(2)), 0)
    assert shared() == packed
    fork.update(*(torch.randn(1, HEADS, 64, DIM) for _ in range(2)), 0)
    assert not shared() and fork.layers[0]._recent[0].shape[2] < GROUP + PACKED.recent


@pytest.mark.parametrize("first", ["fork", "origin"])
def test_neither_a_fork_nor_its_origin_notices_what_the_other_packs(first):
    cache = filled("innerq", 200)
    caches = {"origin": cache, "fork": fork_cache(cache)}
    shown = cache.layers[0].keys
    order = ["fork", "origin"] if first == "fork" else ["origin", "fork"]
    for name in order * 2:  # each packs into what would be the same tiles, and crops back behind the fork
        key = torch.full((1, HEADS, 100, DIM), 1.0 if name == "fork" else -1.0)
        caches[name].update(key, key, 0)
        caches[name].crop(-130 if name == order[0] else -90)
    for name, each in caches.items():
        length = each.get_seq_length()
        kept = min(140, length)
        assert torch.equal(each.layers[0].keys[:, :, :kept], shown[:, :, :kept]), name
        sign = 1.0 if name == "fork" else -1.0
        each.update(*(torch.full((1, HEADS, 40, DIM), sign) for _ in range(2)), 0)
        torch.testing.assert_close(
            each.layers[0].values[:, :, length:], torch.full((1, HEADS, 40, DIM), sign), rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_heads_are_cut_and_joined_bit_by_bit(kind, drop):
    cache = filled(kind, batch=2)
    if drop:
        keep_tokens(cache, dropping(100, 810, batch=2))
    parts = [select_heads(cache, slice(head, head + 1)) for head in range(HEADS)]
    whole = join_heads(parts)
    new = [torch.randn(2, HEADS, 70, DIM) for _ in range(2)]
    query = torch.randn(2, 2 * HEADS, 1, DIM)
    for part in parts:
        assert cache_nbytes(part) < 0.6 * cache_nbytes(cache) and not storages(part).keys() & storages(cache).keys()
    outs = []
    for head, part in enumerate(parts):
        part.update(*(tensor[:, head : head + 1] for tensor in new), 0)
        shown = part.update(*(tensor[:, head : head + 1, :1] for tensor in new), 0)
        outs.append(infeco_attention(MODULE, query[:, 2 * head : 2 * head + 2], *shown, None)[0])
    for each in (cache, whole):
        each.update(*new, 0)
        out, _ = infeco_attention(MODULE, query, *each.update(*(tensor[:, :, :1] for tensor in new), 0), None)
        torch.testing.assert_close(out, torch.cat(outs, 2), rtol=1e-5, atol=1e-6)
    joined = join_heads(parts).layers[0]
    for name, tensor in (joined.state() if kind == "innerq" or drop else {}).items():
        assert torch.equal(tensor, cache.layers[0].state()[name]), name
    assert torch.equal(joined.keys, cache.layers[0].keys)


@pytest.mark.parametrize("ragged", [False, True])
def test_a_kept_cache_is_saved_and_loaded(ragged, tmp_path):
    cache = filled("innerq", batch=2, layers=2)
    mask = dropping(100, 810, batch=2)
    mask[1, 20 : 50 if ragged else 20] = False
    keep_tokens(cache, mask)
    cache.save(tmp_path / "cache")
    loaded = InnerQCache.load(tmp_path / "cache", LlamaConfig(num_hidden_layers=2, num_key_value_heads=HEADS, **SIZES))
    assert loaded.get_seq_length() == 1000
    new = [torch.randn(2, HEADS, 70, DIM) for _ in range(2)]
    for each in (cache, loaded):
        each.update(*new, 1)
    for one, other in zip(cache.layers, loaded.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and one.state().keys() == other.state().keys()
        assert all(torch.equal(tensor, other.state()[name]) for name, tensor in one.state().items())


def test_holes_take_no_part_in_what_is_packed_after_them():
    """A row's dropped tokens are packed where another row's are kept, and may be any number."""

    def packed(other: float) -> Cache:
        cache = InnerQCache(CONFIG, PACKED)
        generator = torch.Generator().manual_seed(0)
        key, value = (torch.randn(2, HEADS, 100, DIM, generator=generator) for _ in range(2))
        key[1, :, 10:80], value[1, :, 10:80] = other, other
        short = InnerQCache(CONFIG, EXACT)
        short.update(key, value, 0)
        mask = dropping(0, 0, 100, 2)
        mask[1, 10:80] = False
        keep_tokens(short, mask)
        cache.layers[0].load_state(short.layers[0].state())
        cache.update(key[:1, :, :40].repeat(2, 1, 1, 1), value[:1, :, :40].repeat(2, 1, 1, 1), 0)
        return cache

    one, other = packed(0.5), packed(1e4)
    assert one.layers[0]._store is not None
    for name in ("key.words", "value.words", "value.scale", "key_norm", "key_mean"):
        assert torch.equal(one.layers[0].state()[name], other.layers[0].state()[name]), name


@pytest.mark.parametrize(
    "mask", [torch.ones(1, 1000), torch.ones(1, 999, dtype=torch.bool), torch.ones(2, 1000, dtype=torch.bool)]
)
@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_a_mask_of_another_kind_is_refused_with_the_right_one(kind, mask):
    with pytest.raises(ValueError, match=r"mask is torch\.\w+ \[.*has to be torch\.bool \[1, 1000\]"):
        keep_tokens(filled(kind), mask)


def test_caches_that_cannot_forget_single_tokens_are_refused_by_name():
    static = StaticCache(config=CONFIG, max_cache_len=8)
    with pytest.raises(ValueError, match=r"Layer 0 .* StaticLayer.*no single tokens"):
        keep_tokens(static, torch.ones(1, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"Layer 0 .* StaticLayer.*heads"):
        select_heads(static, slice(0, 1))
    windows = DynamicCache(config=MistralConfig(num_hidden_layers=1, sliding_window=8))
    with pytest.raises(ValueError, match="sliding windows"):
        keep_tokens(windows, torch.ones(1, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match="self_attention_cache"):
        fork_cache(EncoderDecoderCache(filled("dynamic"), DynamicCache()))


@pytest.mark.parametrize("kind", ["dynamic", "innerq"])
def test_heads_of_other_tokens_are_not_joined(kind):
    cache = filled(kind)
    longer = fork_cache(cache)
    longer.update(*(torch.randn(1, HEADS, 3, DIM) for _ in range(2)), 0)
    with pytest.raises(ValueError, match="same tokens"):
        join_heads([cache, longer])
    with pytest.raises(ValueError, match="2 kinds"):
        join_heads([cache, filled("dynamic" if kind == "innerq" else "innerq")])
    with pytest.raises(ValueError, match=r"slice\(2, 4.*2 KV heads"):
        select_heads(cache, slice(2, 4))
