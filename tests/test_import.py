"""Importing hf_infeco is cheap and touches nothing that others own; the suite hears transformers' deprecations."""

import json
import logging
import subprocess
import sys
import warnings

import pytest
import transformers

RUNS = 3
LIMIT_S = 0.5

# Whoever generates text has paid for torch and these pieces of transformers already. Processor time, not wall time: a
# busy machine must not fail this.
TIME_IMPORT = """
import time
import torch
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel
start = time.process_time()
import hf_infeco
[getattr(hf_infeco, name) for name in hf_infeco.__all__]
print(time.process_time() - start)
"""
COMPARE_REGISTRIES = """
import json
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

def snapshot():
    registries = [ALL_ATTENTION_FUNCTIONS, AttentionInterface()]
    registries += [ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface()]
    owners = [PreTrainedModel, GenerationMixin, Cache, DynamicCache, DynamicLayer, modeling_llama]
    owners.append(modeling_llama.LlamaAttention)
    return [dict(r.items()) for r in registries] + [dict(vars(owner)) for owner in owners]

before = snapshot()
import hf_infeco
[getattr(hf_infeco, name) for name in hf_infeco.__all__]
after = snapshot()
changed = sorted({
    key for old, new in zip(before, after) for key in old.keys() | new.keys() if old.get(key) is not new.get(key)
})
print(json.dumps(changed))
"""


def python(code: str) -> str:
    """Runs `code` in a fresh interpreter; -P keeps the current folder off its sys.path."""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_import_costs_less_than_half_a_second_beyond_transformers():
    cost = float("inf")
    for _ in range(RUNS):
        cost = min(cost, float(python(TIME_IMPORT)))
        if cost < LIMIT_S:
            break
    assert cost < LIMIT_S, f"import hf_infeco took {cost:.2f} s on top of torch and transformers"


def test_import_changes_no_entry_that_another_library_owns():
    assert set(json.loads(python(COMPARE_REGISTRIES))) <= {"infeco"}


def test_every_public_name_is_there():
    import hf_infeco

    assert all(hasattr(hf_infeco, name) for name in hf_infeco.__all__)


def test_a_deprecation_warning_of_transformers_fails_a_test():
    """Issued with stacklevel=2, it points at the caller, which no module filter would match."""
    namespace = {"__name__": "transformers.some_module", "warnings": warnings}
    exec("def old():\n    warnings.warn('`old` is deprecated', FutureWarning, stacklevel=2)", namespace)
    with pytest.raises(FutureWarning, match="`old` is deprecated"):
        namespace["old"]()


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_deprecation_that_transformers_only_logs_fails_every_test_that_meets_it(attempt):
    with pytest.raises(DeprecationWarning, match="use `dtype`"):
        transformers.logging.get_logger("transformers.some_module").warning_once("`x` is deprecated, use `dtype`")


def test_a_deprecation_of_another_library_is_no_error(recwarn):
    warnings.warn("`other` is deprecated", FutureWarning, stacklevel=1)
    logging.getLogger("other").warning("`other` is deprecated")
    assert [str(entry.message) for entry in recwarn] == ["`other` is deprecated"]
