"""A saved cache: the same tokens after loading, and no half-read, foreign or damaged one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

import hf_infeco
from hf_infeco import CACHE_NAME, InnerQCache, InnerQConfig
from hf_infeco.innerq import saving

SETTINGS = InnerQConfig(sink=4, recent=40, value_bits=2, hybrid_values=True, rotate_keys=True)
SIZES = dict(num_hidden_layers=2, hidden_size=128, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
CONFIG = LlamaConfig(vocab_size=97, head_dim=64, **SIZES)
FILES = Path(__file__).parent / "files"  # written by earlier versions


def ids(tokens: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def filled(tokens: int = 300, batch: int = 1, settings: InnerQConfig = SETTINGS) -> InnerQCache:
    cache = InnerQCache(CONFIG, settings)
    generator = torch.Generator().manual_seed(tokens)
    for layer in range(2):
        cache.update(*(torch.randn(batch, 2, tokens, 64, generator=generator).bfloat16() for _ in range(2)), layer)
    return cache


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.safetensors"


def rewrite_header(path, **changes) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[saving.HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={saving.HEADER: json.dumps({**header, **changes})})


@pytest.mark.parametrize("patched", [False, True])
def test_generation_goes_on_with_the_same_tokens(path, patched):
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    if patched:
        hf_infeco.patch(model, s2o=False)
    prompt, batch = ids(200, batch=2), torch.ones(2, 200, dtype=torch.long)
    batch[1, :9] = 0
    cache = InnerQCache(CONFIG, SETTINGS)
    with torch.no_grad():
        model(prompt[:, :-1], attention_mask=batch[:, :-1], **{CACHE_NAME: cache})
    cache.save(path)
    settings = dict(attention_mask=batch, max_new_tokens=50, do_sample=False, pad_token_id=0)
    loaded = InnerQCache.load(path, CONFIG)
    expected = model.generate(prompt, **{CACHE_NAME: cache}, **settings)
    assert torch.equal(model.generate(prompt, **{CACHE_NAME: loaded}, **settings), expected)


@pytest.mark.parametrize("tokens", [0, 1, 60, 300])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_loaded_is_what_was_saved(path, tokens, batch):
    cache = filled(tokens, batch) if tokens else InnerQCache(CONFIG, SETTINGS)
    cache.save(path)
    loaded = InnerQCache.load(path, CONFIG)
    assert loaded.innerq == SETTINGS and loaded.get_seq_length() == tokens
    for one, other in zip(loaded.layers, cache.layers, strict=True):
        assert one.state().keys() == other.state().keys()
        assert all(torch.equal(tensor, other.state()[name]) for name, tensor in one.state().items())
        if tokens:
            assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


def test_a_cropped_cache_keeps_its_dead_slots_dead(path):
    cache = filled()
    for layer in cache.layers:
        layer.crop(-60)
    before = cache.layers[1].values
    cache.save(path)
    loaded = InnerQCache.load(path, CONFIG)
    assert torch.equal(loaded.layers[1].values, before)
    loaded.layers[1].update(*(torch.ones(1, 2, 100, 64, dtype=torch.bfloat16) for _ in range(2)))
    assert torch.equal(loaded.layers[1].values[:, :, :200], before[:, :, :200])


def test_spare_room_is_not_saved(path):
    cache = filled(4000)
    cache.save(path)
    assert path.stat().st_size < cache.nbytes


def test_a_failing_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    filled(60).save(path)
    before = path.read_bytes()

    def fail(tensors, unfinished, **_):
        unfinished.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(saving, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        filled(300).save(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
def test_a_file_cut_short_is_refused(path, kept):
    filled().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"cache\.safetensors.*(damaged|cut short).*save it anew"):
        InnerQCache.load(path, CONFIG)


def test_a_flipped_bit_is_noticed(path):
    filled().save(path)
    damaged = bytearray(path.read_bytes())
    damaged[-1000] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged.*checksum"):
        InnerQCache.load(path, CONFIG)


def test_the_cache_of_another_model_is_refused_and_told_apart(path):
    filled().save(path)
    other = LlamaConfig(vocab_size=97, head_dim=64, **{**SIZES, "hidden_size": 256})
    with pytest.raises(ValueError, match=r"another model: hidden_size=128 there and 256 here"):
        InnerQCache.load(path, other)


def test_another_format_version_is_refused(path):
    filled().save(path)
    rewrite_header(path, format_version=6)
    with pytest.raises(ValueError, match=r"format version 6.*reads \(1, 2, 3, 4, 5\)"):
        InnerQCache.load(path, CONFIG)


def test_the_first_format_version_is_still_read(path):
    cache = filled(settings=replace(SETTINGS, normalize_values=False))
    cache.save(path)
    with safe_open(path, framework="pt") as file:  # it had no norms of values
        header = json.loads(file.metadata()[saving.HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys() if "value.norm" not in name}  # noqa: SIM118
    del header["innerq"]["normalize_values"]
    header |= {"format_version": 1, "checksum": saving._checksum(tensors)}
    save_file(tensors, path, metadata={saving.HEADER: json.dumps(header)})
    loaded = InnerQCache.load(path, CONFIG)
    for each in (cache, loaded):
        each.update(*(torch.ones(1, 2, 100, 64, dtype=torch.bfloat16) for _ in range(2)), 1)
    assert torch.equal(loaded.layers[1].keys, cache.layers[1].keys)
    assert torch.equal(loaded.layers[1].values, cache.layers[1].values)


def test_a_file_of_the_fourth_format_version_has_keys_that_are_not_rotated(path):
    cache = filled(settings=replace(SETTINGS, rotate_keys=False))
    cache.save(path)
    with safe_open(path, framework="pt") as file:
        settings = json.loads(file.metadata()[saving.HEADER])["innerq"]
    del settings["rotate_keys"]  # there was no such setting
    rewrite_header(path, format_version=4, innerq=settings)
    loaded = InnerQCache.load(path, CONFIG)
    assert not loaded.innerq.rotate_keys
    assert torch.equal(loaded.layers[1].keys, cache.layers[1].keys)


def test_a_header_that_counts_other_tokens_is_refused(path):
    filled().save(path)
    rewrite_header(path, num_tokens=301)
    with pytest.raises(ValueError, match=r"holds 300 tokens.*301"):
        InnerQCache.load(path, CONFIG)


def test_other_safetensors_files_are_no_caches(path):
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"no cache saved with InnerQCache\.save"):
        InnerQCache.load(path, CONFIG)


def test_a_missing_file_is_said_to_be_missing(path):
    with pytest.raises(FileNotFoundError):
        InnerQCache.load(path, CONFIG)


def test_a_cache_with_sliding_layers_is_refused_aloud(path):
    config = Gemma3TextConfig(
        vocab_size=97, head_dim=64, layer_types=["sliding_attention", "full_attention"], sliding_window=16, **SIZES
    )
    assert not isinstance(DynamicCache(config=config).layers[0], type(InnerQCache(config).layers[1]))
    with pytest.raises(ValueError, match=r"Layer 0 .*Sliding.*only InnerQ layers can be saved"):
        InnerQCache(config).save(path)
    assert not path.exists()


def test_a_file_of_the_second_format_version_is_still_read():
    """Written when dead slots had a mask of their own: two rows, one of them padded, cropped into a packed tile."""
    config = LlamaConfig(
        vocab_size=97, num_hidden_layers=1, hidden_size=32, num_attention_heads=1, head_dim=32, intermediate_size=32
    )
    layer = InnerQCache.load(FILES / "format_2.safetensors", config).layers[0]
    assert layer.get_seq_length() == 90
    for name, sums in load_file(FILES / "format_2_sums.safetensors").items():
        torch.testing.assert_close(getattr(layer, name).float().abs().sum((1, 3)), sums, rtol=1e-3, atol=1e-3)
