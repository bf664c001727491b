"""The layout rules of docs/architecture.md, read off the sources: who may import whom, and how long a file may get."""

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {".git", ".venv", ".compat", ".out", "build", "dist", "site", "__pycache__"}
FOLDERS = ("hf_infeco", "kernels", "training", "benchmarks", "examples", "tests")
LINKED = ("kernels", "training", "benchmarks")  # hf_infeco has a link to each
PUBLIC_FOLDERS = ("training", "remix", "sidequest", "flying", "servesim")  # imported by their own names
ON_TOP = (
    "patching",
    "reporting",
    "warming",
    "serving",
    "cli",
)  # everything else beside the systems is what these build on
SYSTEMS = sorted(
    path.parent.name
    for path in (ROOT / "hf_infeco").glob("*/__init__.py")
    if path.parent.name not in ON_TOP and not path.parent.is_symlink()
)


def module_name(path: Path) -> str:
    """The import name of a file, which is that of its path through the links of `hf_infeco`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join((["hf_infeco"] if parts[0] in LINKED else []) + parts)


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
        below = {"benchmarks", "training", "kernels", "prefill", "scheduling", *SYSTEMS, *public_names()}
        return [".".join(name) for name in names if name and name[0] not in below]
    elif part in ("training", "examples"):
        public = ours(attributes_of_package(source)) + names
        return [".".join(name) for name in public if name and not is_public(name)]
    else:  # config, compat, kv, patch_report and whatever else lies beside them
        return [".".join(name) for name in names if name and name[0] in (*SYSTEMS, *ON_TOP, "training", "benchmarks")]
    return [".".join(name) for name in names if not name or name[0] not in allowed]


def is_public(name: list[str]) -> bool:
    """
    A name of `hf_infeco.__all__`, anything in a folder that is a public name itself, the base of configs, or a dunder
    (`__version__`).
    """
    known = {*PUBLIC_FOLDERS, *public_names()}
    return name == ["config", "Config"] or name[0] in known or name[0].startswith("__")


def public_names() -> list[str]:
    import hf_infeco

    return list(hf_infeco.__all__)


def python_files(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py") if not SKIPPED & set(p.parts))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def found_in(paths: list[Path], search: Callable[[Path], list]) -> dict[str, list]:
    """What `search` finds, by file."""
    return {relative(path): found for path in paths if (found := search(path))}


def test_imports_keep_their_direction():
    def search(path: Path) -> list[str]:
        return violations(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py")

    assert not found_in(python_files(*FOLDERS[:-1]), search)


def test_nothing_imports_the_linked_folders_by_their_folder_name():
    """`kernels` on sys.path is Hugging Face's library; `training` and `benchmarks` may be anybody's."""

    def search(path: Path) -> list[str]:
        names = imported(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py")
        return [name for name in names if name.split(".")[0] in LINKED]

    assert not found_in(python_files(*FOLDERS), search)


@pytest.mark.parametrize("folder", LINKED)
def test_the_path_of_a_linked_folder_is_its_import_path(folder):
    link = ROOT / "hf_infeco" / folder
    assert link.is_symlink() and os.readlink(link) == f"../{folder}"  # relative: a clone lies elsewhere


def test_kernels_leaves_its_name_to_the_library_called_kernels():
    """Python prefers a package with an __init__.py anywhere on its path to a folder without one."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


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
        ("hf_infeco.training.testbed.recall.rows", "from hf_infeco.kernels.s2o import reference"),
        ("hf_infeco.benchmarks.foundation", "from hf_infeco.compat import version"),
        ("hf_infeco.training.testbed.recall.rows", "import hf_infeco\nhf_infeco.compat.version()"),
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
        ("hf_infeco.training.testbed.recall.rows", "from hf_infeco.training.testbed.recall import text"),
        ("hf_infeco.benchmarks.s2o.tasks", "import hf_infeco\nfrom hf_infeco.kernels.s2o import reference"),
        ("examples.quickstart", "import hf_infeco\nfrom hf_infeco import patch\nhf_infeco.explain"),
    ],
)
def test_an_allowed_import_is_let_through(module, source):
    assert not violations(source, module)


def test_files_stay_short():
    """400 lines, a kernel's 600: one idea a file."""

    def search(path: Path) -> list[str]:
        length = len(path.read_text(encoding="utf-8").splitlines())
        return [f"{length} lines"] if length > (600 if relative(path).startswith("kernels/") else 400) else []

    assert not found_in(python_files(*FOLDERS), search)


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


def test_allocations_name_their_dtype_and_device():
    files = python_files("hf_infeco", "kernels")
    assert not found_in(files, lambda path: unnamed_allocations(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("call", ["torch.empty(3)", "torch.tensor(1.0, device=d)", "torch.zeros(2, dtype=t)"])
def test_an_allocation_by_default_is_found(call):
    assert unnamed_allocations(f"def f():\n    return g({call})")


HOOKS = {"register_forward_pre_hook", "register_forward_hook"}
CHANGES_A_MODULE = {"setattr", "delattr", "set_attn_implementation"} | HOOKS


def changes_to_modules(source: str) -> list[str]:
    """Calls that change a module, and attributes set or deleted on anything but `self`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in CHANGES_A_MODULE:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
        found += [
            f"line {node.lineno}: {ast.unparse(node)}"
            for target in targets
            if isinstance(target, ast.Attribute) and target.attr == "forward"
        ]
    return found


def test_only_edits_change_a_model():
    files = [path for path in python_files("hf_infeco") if path.name != "edits.py"]
    assert not found_in(files, lambda path: changes_to_modules(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("line", ["setattr(m, 'a', 1)", "m.set_attn_implementation('x')", "del m.forward"])
def test_a_change_to_a_model_is_found(line):
    assert changes_to_modules(line)


def foreign_privates(source: str, own: set[str]) -> list[str]:
    """Names with a leading underscore, read from anything but `self` and torch, that are none of `own`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = ast.unparse(node).split(".")[0]
            if root not in ("self", "cls", "torch") and node.attr not in own:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def defined_names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


OF_NAMED_TUPLES = {"_fields", "_asdict", "_replace"}
OF_MODULES = {"_parameters", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"}  # of torch's nn.Module


def test_only_compat_knows_private_names_of_transformers():
    sources = {path: path.read_text(encoding="utf-8") for path in python_files("hf_infeco")}
    own = {name for source in sources.values() for name in defined_names(source)} | OF_NAMED_TUPLES | OF_MODULES
    found = {
        relative(path): privates
        for path, source in sources.items()
        if path.name != "compat.py" and (privates := foreign_privates(source, own))
    }
    assert not found


def test_a_private_name_is_found():
    assert foreign_privates("model._prefill(ids)", {"_own"}) and not foreign_privates("cache._own", {"_own"})
