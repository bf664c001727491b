"""The native model and the checkpoints it reads."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

import hf_infeco
from hf_infeco.remix import MaskedDiffusionConfig, MaskedDiffusionLM, RemixConfig, generate, load_diffusion_lm
from tests.remix.models import MASK, prompts, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

LLADA = dict(
    model_type="llada",
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    n_layers=2,
    mlp_hidden_size=48,
    mlp_ratio=4,
    block_type="llama",
    layer_norm_type="rms",
    activation_type="silu",
    rope=True,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    max_sequence_length=64,
    vocab_size=50,
    embedding_size=64,
    weight_tying=False,
    include_bias=False,
    include_qkv_bias=False,
    mask_token_id=49,
    pad_token_id=1,
    eos_token_id=2,
)
DREAM = dict(
    model_type="Dream",
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    intermediate_size=48,
    hidden_act="silu",
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    max_position_embeddings=64,
    vocab_size=64,
    mask_token_id=49,
    pad_token_id=1,
)


def llada_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LLaDA checkpoint, as its modeling code defines them."""
    block = {
        "q_proj": (32, 32),
        "k_proj": (16, 32),
        "v_proj": (16, 32),
        "attn_out": (32, 32),
        "ff_proj": (48, 32),
        "up_proj": (48, 32),
        "ff_out": (32, 48),
        "attn_norm": (32,),
        "ff_norm": (32,),
    }
    blocks = {f"blocks.{n}.{name}": shape for n in range(2) for name, shape in block.items()}
    parts = {"wte": (64, 32), "ln_f": (32,), "ff_out": (64, 32), **blocks}
    return {f"model.transformer.{name}.weight": shape for name, shape in parts.items()}


def dream_shapes() -> dict[str, tuple[int, ...]]:
    """Dream's names are Qwen2's: biases on queries, keys and values, none on the output."""
    attention = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
    layer = {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
    layer |= {f"self_attn.{name}.bias": attention[name][:1] for name in ("q_proj", "k_proj", "v_proj")}
    layer |= {"mlp.gate_proj.weight": (48, 32), "mlp.up_proj.weight": (48, 32), "mlp.down_proj.weight": (32, 48)}
    layer |= {"input_layernorm.weight": (32,), "post_attention_layernorm.weight": (32,)}
    layers = {f"model.layers.{n}.{name}": shape for n in range(2) for name, shape in layer.items()}
    outside = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,), "lm_head.weight": (64, 32)}
    return outside | layers


def write_checkpoint(folder, config, shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def test_llada_s_weights_are_where_llama_s_layers_expect_them(tmp_path):
    weights = write_checkpoint(tmp_path, LLADA, llada_shapes())
    model = load_diffusion_lm(tmp_path, dtype=torch.float32)
    block, layer = "model.transformer.blocks.1.", model.model.layers[1]
    pairs = {
        "model.transformer.wte": model.model.embed_tokens,
        "model.transformer.ln_f": model.model.norm,
        "model.transformer.ff_out": model.lm_head,
        block + "q_proj": layer.self_attn.q_proj,
        block + "k_proj": layer.self_attn.k_proj,
        block + "v_proj": layer.self_attn.v_proj,
        block + "attn_out": layer.self_attn.o_proj,
        block + "ff_proj": layer.mlp.gate_proj,
        block + "up_proj": layer.mlp.up_proj,
        block + "ff_out": layer.mlp.down_proj,
        block + "attn_norm": layer.input_layernorm,
        block + "ff_norm": layer.post_attention_layernorm,
    }
    assert all(torch.equal(module.weight, weights[f"{name}.weight"]) for name, module in pairs.items())
    assert sum(map(torch.numel, weights.values())) == model.num_parameters()
    config = model.config
    assert (config.mask_token_id, config.shifted_logits, config.rope_parameters["rope_theta"]) == (49, False, 500000.0)


def test_dream_s_weights_are_taken_with_biases_and_shift(tmp_path):
    weights = write_checkpoint(tmp_path, DREAM, dream_shapes())
    model = load_diffusion_lm(tmp_path, dtype=torch.float32)
    state = model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    assert all((state[name] == 0).all() for name in state.keys() - weights.keys())
    assert {name for name in state.keys() - weights.keys()} == {
        f"model.layers.{n}.self_attn.o_proj.bias" for n in (0, 1)
    }
    assert model.config.shifted_logits


@pytest.mark.parametrize(
    ("config", "shapes"), [(LLADA, llada_shapes()), (DREAM, dream_shapes())], ids=["llada", "dream"]
)
def test_a_loaded_model_answers_and_is_saved_like_any_other(config, shapes, tmp_path):
    write_checkpoint(tmp_path, config, shapes)
    model = load_diffusion_lm(tmp_path, dtype=torch.float32)
    model.save_pretrained(tmp_path / "native")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "native", dtype=torch.float32)
    settings = RemixConfig(max_new_tokens=8, block_length=4, tau_conf=0.2)
    first, second = (generate(one, prompts(2, 5), settings).sequences for one in (model, again))
    assert torch.equal(first, second) and not (first == 49).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_type": "sequential"}, "block_type='sequential', which Llama's layers cannot do"),
        ({"model_type": "gpt2"}, "model of type 'gpt2': load_diffusion_lm reads llada and dream"),
        ({"d_model": 64}, "does not fit its config in 21 parameters"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_refused(values, message, tmp_path):
    write_checkpoint(tmp_path, {**LLADA, **values}, llada_shapes())
    with pytest.raises(ValueError, match=message):
        load_diffusion_lm(tmp_path)


def test_the_auto_classes_know_a_saved_model(tmp_path):
    model = tiny_model(block_length=8, shifted_logits=True)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, MaskedDiffusionConfig)
    assert (config.mask_token_id, config.block_length, config.shifted_logits) == (MASK, 8, True)
    for auto in (AutoModel, AutoModelForMaskedLM, MaskedDiffusionLM):
        again = auto.from_pretrained(tmp_path, dtype=torch.float64)
        assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())
        # Weights that lie elsewhere in memory may be multiplied in another order.
        torch.testing.assert_close(again(prompts(2, 9)).logits, model(prompts(2, 9)).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_token_sees_every_other(attention):
    model = tiny_model()
    model.set_attn_implementation(attention)
    ids, changed = prompts(1, 9), prompts(1, 9)
    changed[0, 8] = 4 if ids[0, 8] != 4 else 5
    assert ((model(ids).logits - model(changed).logits).abs().amax(2) > 1e-6).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_token_sees_a_later_block_where_attention_is_block_causal(attention):
    model = tiny_model(block_length=4)
    model.set_attn_implementation(attention)
    ids, changed = prompts(1, 10), prompts(1, 10)
    changed[0, 6] = 4 if ids[0, 6] != 4 else 5
    moved = (model(ids).logits - model(changed).logits).abs().amax(2)[0] > 1e-6
    assert moved.tolist() == [False] * 4 + [True] * 6


def test_padding_changes_no_logits():
    model = tiny_model(block_length=4)
    ids = prompts(1, 9)
    padded, mask = torch.cat([ids.new_zeros(1, 5), ids], 1), torch.tensor([[0] * 5 + [1] * 9])
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 5:], model(ids).logits)


def test_a_patch_reports_that_it_does_not_apply():
    report = str(hf_infeco.explain(tiny_model()))
    assert "enabled" not in report and "causal" in report
