"""The layout rules of docs/architecture.md, read off the sources: who may import whom, and how long a file may get."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {".git", ".venv", ".compat", ".out", "build", "dist", "site", "__pycache__"}
FOLDERS = ("hf_infeco", "kernels", "training", "benchmarks", "examples", "tests")
MAPPED = ("kernels", "training", "benchmarks")  # installed under hf_infeco
ON_TOP = ("patching", "reporting", "warming", "cli")  # everything else beside the systems is what these build on
SYSTEMS = sorted(p.parent.name for p in (ROOT / "hf_infeco").glob("*/__init__.py") if p.parent.name not in ON_TOP)

# Split so that this file does not name what it forbids.
MACHINE_PATH = re.compile(
    r"(?<![\w.}])/(?:wor" + r"k|tm" + r"p/bash|roo" + r"t|home/\w+|opt/(?:py" + r"pi|whee" + r"ls))\b"
)
REGISTRY_HOST = re.compile("pypi" + r"\.org|python" + r"hosted\.org|download\.py" + r"torch\.org")


def module_name(path: Path) -> str:
    """The import name of a file: setup.py installs `kernels`, `training` and `benchmarks` under `hf_infeco`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join((["hf_infeco"] if parts[0] in MAPPED else []) + parts)


def imported(source: str, module: str, is_package: bool = False) -> Iterator[str]:
    """Every module or name that `source` imports, absolute, wherever in the file the import stands."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join(base + ([node.module] if node.module else []))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def attributes_of_package(source: str) -> Iterator[str]:
    """`hf_infeco.x` for every attribute read from a plain `import hf_infeco`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hf_infeco":
            yield f"hf_infeco.{node.attr}"


def ours(names: Iterator[str]) -> list[list[str]]:
    """Those names that are ours, split, without the leading `hf_infeco`."""
    return [name.split(".")[1:] for name in names if name.split(".")[0] == "hf_infeco"]


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What `module` imports of ours and must not, by the part of the project it belongs to."""
    _, *inside = module.split(".") if module.startswith("hf_infeco") else ("", module.split(".")[0])
    part = inside[0] if inside else ""
    names = ours(imported(source, module, is_package))
    if part == "kernels":
        allowed = {"kernels"}
    elif part in SYSTEMS:
        above = {*SYSTEMS, *ON_TOP, "training", "benchmarks"} - {part}
        tops = [name for name in names if len(name) < 2 and (not name or name[0] in public_names())]
        return [".".join(name) for name in [*tops, *(name for name in names if name and name[0] in above)]]
    elif part in ("", *ON_TOP):
        return []
    elif part == "benchmarks":  # measures what lies below the public names too
        below = {"benchmarks", "training", "kernels", "prefill", *SYSTEMS, *public_names()}
        return [".".join(name) for name in names if name and name[0] not in below]
    elif part in ("training", "examples"):
        public = ours(attributes_of_package(source)) + names
        return [".".join(name) for name in public if name and not is_public(name)]
    else:  # config, compat, kv, report and whatever else lies beside them
        return [".".join(name) for name in names if name and name[0] in (*SYSTEMS, *ON_TOP, "training", "benchmarks")]
    return [".".join(name) for name in names if not name or name[0] not in allowed]


def is_public(name: list[str]) -> bool:
    """A name of `hf_infeco.__all__`, anything in `hf_infeco.training`, or a dunder such as `__version__`."""
    return name[0] == "training" or name[0] in public_names() or name[0].startswith("__")


def public_names() -> list[str]:
    import hf_infeco

    return list(hf_infeco.__all__)


def python_files(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py") if not SKIPPED & set(p.parts))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", python_files(*FOLDERS[:-1]), ids=relative)
def test_imports_keep_their_direction(path):
    found = violations(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py")
    assert not found, f"{relative(path)} must not import {found} from hf_infeco"


@pytest.mark.parametrize("path", python_files(*FOLDERS), ids=relative)
def test_nothing_imports_the_mapped_folders_by_their_folder_name(path):
    """`kernels` on sys.path is Hugging Face's library; `training` and `benchmarks` may be anybody's."""
    names = list(imported(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py"))
    assert not [name for name in names if name.split(".")[0] in MAPPED]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hf_infeco.kernels.s2o.reference", "from hf_infeco.config import S2OConfig"),
        ("hf_infeco.kernels.s2o.reference", "from hf_infeco import compat"),
        ("hf_infeco.kernels.dispatch", "import hf_infeco"),
        ("hf_infeco.s2o.core", "from hf_infeco.innerq import InnerQConfig"),
        ("hf_infeco.s2o.core", "from ..innerq.cache import InnerQCache"),
        ("hf_infeco.s2o.core", "def f():\n    from hf_infeco.patching import patch"),
        ("hf_infeco.innerq.cache", "import hf_infeco.reporting"),
        ("hf_infeco.innerq.cache", "from hf_infeco import patch"),
        ("hf_infeco.compat", "from .s2o import S2OConfig"),
        ("hf_infeco.config", "from hf_infeco.innerq.config import InnerQConfig"),
        ("hf_infeco.training.testbed.rows", "from hf_infeco.kernels.s2o import reference"),
        ("hf_infeco.benchmarks.foundation", "from hf_infeco.compat import version"),
        ("hf_infeco.training.testbed.rows", "import hf_infeco\nhf_infeco.compat.version()"),
        ("hf_infeco.kv", "from hf_infeco.benchmarks.measuring import timed"),
        ("examples.quickstart", "from hf_infeco.patching import patch"),
    ],
)
def test_a_forbidden_import_is_found(module, source):
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hf_infeco.kernels.s2o.reference", "from ..dispatch import choose\nimport torch"),
        ("hf_infeco.s2o.core", "from hf_infeco.kernels.s2o import reference\nfrom .config import S2OConfig"),
        ("hf_infeco.innerq.cache", "from hf_infeco import compat\nfrom ..kv import KVHandle"),
        ("hf_infeco.patching", "from hf_infeco.innerq import InnerQCache"),
        ("hf_infeco.training.testbed.rows", "from hf_infeco.training.testbed import text"),
        ("hf_infeco.benchmarks.s2o.tasks", "import hf_infeco\nfrom hf_infeco.kernels.s2o import reference"),
        ("examples.quickstart", "import hf_infeco\nfrom hf_infeco import patch\nhf_infeco.explain"),
    ],
)
def test_an_allowed_import_is_let_through(module, source):
    assert not violations(source, module)


@pytest.mark.parametrize("path", python_files(*FOLDERS), ids=relative)
def test_files_stay_short(path):
    limit = 600 if relative(path).startswith("kernels/") else 400
    length = len(path.read_text(encoding="utf-8").splitlines())
    assert length <= limit, f"{relative(path)} has {length} lines, the limit is {limit}: one idea a file"


# What torch takes from its defaults where a call does not name it. Whole numbers have one dtype, whatever the default.
FLOATS = {"empty", "zeros", "ones", "full", "tensor", "rand", "randn", "linspace", "eye", "empty_strided"}
FOLLOWING_DATA = {"arange", "as_tensor", "asarray", "randint", "randperm"}


def unnamed_allocations(source: str) -> list[str]:
    """Calls such as `torch.empty(3)` that leave the dtype or the device to torch's defaults, which are the user's."""
    wanted = {name: {"dtype", "device"} for name in FLOATS} | {name: {"device"} for name in FOLLOWING_DATA}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            module, _, name = ast.unparse(node.func).rpartition(".")
            named = {keyword.arg for keyword in node.keywords}
            if module == "torch" and wanted.get(name, set()) - named:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", python_files("hf_infeco", "kernels"), ids=relative)
def test_allocations_name_their_dtype_and_device(path):
    assert not unnamed_allocations(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("call", ["torch.empty(3)", "torch.tensor(1.0, device=d)", "torch.zeros(2, dtype=t)"])
def test_an_allocation_by_default_is_found(call):
    assert unnamed_allocations(f"def f():\n    return g({call})")


def text_files() -> list[Path]:
    suffixes = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".cfg"}
    named = [ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / ".gitignore"]
    outside_skipped = (p for p in ROOT.rglob("*") if not SKIPPED & set(p.relative_to(ROOT).parts))
    return sorted({*named, *(p for p in outside_skipped if p.suffix in suffixes and p.is_file())})


def test_no_file_names_a_machine_path_or_a_registry():
    found = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line) or REGISTRY_HOST.search(line):
                found.append(f"{relative(path)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text", ["cd /" + "work/main", "'/" + "root/x'", "see pypi" + ".org/simple", "/ho" + "me/ann/m"]
)
def test_a_machine_path_is_found(text):
    assert MACHINE_PATH.search(text) or REGISTRY_HOST.search(text)


@pytest.mark.parametrize("text", ["prefill work/s", "frame/work", "tokens/root", "https://arxiv.org/abs/2602.22575"])
def test_plain_text_is_no_machine_path(text):
    assert not (MACHINE_PATH.search(text) or REGISTRY_HOST.search(text))
