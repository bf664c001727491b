"""Importing hf_infeco is cheap and touches nothing that others own; the suite hears transformers' deprecations."""

import ast
import inspect
import json
import logging
import pickle
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import transformers

import hf_infeco

ROOT = Path(__file__).resolve().parents[1]
RUNS = 5  # of which the fastest counts: other processes only add to a time
LIMIT_S = 0.8
LIGHT_LIMIT_S = 0.4  # of all the interpreter does, for what needs no torch

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
TIME_LIGHT_IMPORT = """
import sys, time
import hf_infeco.cli
hf_infeco.__version__, dir(hf_infeco), hf_infeco.cli.app
heavy = {"torch", "transformers", "numba", "numpy"} & set(sys.modules)
assert not heavy, heavy
print(time.process_time())
"""
IMPORT_ALL = """
import importlib, json, os, sys
from transformers.integrations import hub_kernels  # asks for the library `kernels`
for name in {modules}:
    importlib.import_module(name)
paths = [(str(getattr(module, "__file__", None)), name) for name, module in sys.modules.items()]
files = [(os.path.realpath(path), name) for path, name in paths if os.path.isabs(path) and "site-packages" not in path]
print(json.dumps([(file, name) for file, name in files if file.startswith({root!r})]))
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


def python(code: str, cwd: Path | None = None) -> str:
    """Runs `code` in a fresh interpreter, whose sys.path begins with the folder that it runs in."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(("code", "limit"), [(TIME_IMPORT, LIMIT_S), (TIME_LIGHT_IMPORT, LIGHT_LIMIT_S)])
def test_importing_costs_little(code, limit, tmp_path):
    """All names beyond torch and transformers; the package and its command line alone, without either."""
    cost = float("inf")
    for _ in range(RUNS):
        cost = min(cost, float(python(code, tmp_path)))
        if cost < limit:
            break
    assert cost < limit, f"importing took {cost:.2f} s of processor time"


@pytest.mark.parametrize("folder", ["root", "elsewhere"])
def test_no_module_is_imported_under_two_names(folder, tmp_path):
    """At the root the folders behind hf_infeco's links are on Python's path too."""
    found = pkgutil.walk_packages(hf_infeco.__path__, "hf_infeco.")
    modules = [module.name for module in found if not module.name.endswith(("triton", "plots"))]
    cwd = ROOT if folder == "root" else tmp_path
    files = json.loads(python(IMPORT_ALL.format(modules=modules, root=str(ROOT)), cwd))
    assert len(files) > 100 and all(name.split(".")[0] == "hf_infeco" for _, name in files)
    assert len({file for file, _ in files}) == len(files)


def test_import_changes_no_entry_that_another_library_owns():
    assert set(json.loads(python(COMPARE_REGISTRIES))) <= {"infeco"}


def test_every_public_name_is_there():
    assert all(hasattr(hf_infeco, name) for name in hf_infeco.__all__)
    assert set(hf_infeco.__all__) <= set(dir(hf_infeco))


def test_types_and_python_find_each_name_in_the_same_module():
    typed = {}
    for node in ast.walk(ast.parse(inspect.getsource(hf_infeco))):
        if isinstance(node, ast.ImportFrom) and node.level:
            typed |= {alias.name: node.module for alias in node.names}
    assert typed == hf_infeco.ORIGIN_OF
    assert sorted(typed) == sorted(hf_infeco.__all__)


def test_no_module_takes_the_place_of_a_public_name():
    assert not {module.name for module in pkgutil.iter_modules(hf_infeco.__path__)} & set(hf_infeco.__all__)


@pytest.mark.parametrize(
    "code",
    [
        "import hf_infeco; print(hf_infeco.static.StaticIndex)",
        "from hf_infeco import *; print(patch)",
        "from hf_infeco.config import InfecoConfig; print(InfecoConfig().s2o.tau)",
        "from hf_infeco.patching import report; import hf_infeco; assert hf_infeco.report is report; print()",
    ],
)
def test_nothing_has_to_be_imported_first(code, tmp_path):
    python(code + "; print('fine')", tmp_path)


def test_a_pickled_config_can_be_read_where_nothing_was_imported(tmp_path):
    config = hf_infeco.InfecoConfig(innerq="small")
    code = f"import pickle; print(pickle.loads({pickle.dumps(config)!r}).to_json_string().encode())"
    assert python(code, tmp_path) == str(config.to_json_string().encode())


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'pach'"):
        _ = hf_infeco.pach


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
