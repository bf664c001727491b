"""The wheel holds the whole package, also the folders that setup.py maps, and runs without the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("hf_infeco", "kernels", "training", "benchmarks", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no `build` folder is left in the checkout or leaks from it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", target, source], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return next(target.glob("hf_infeco-*.whl"))


def module_files() -> set[str]:
    """Every source file, as the wheel must name it."""
    mapped = ("kernels", "training", "benchmarks")
    places = {"hf_infeco": "hf_infeco", **{folder: f"hf_infeco/{folder}" for folder in mapped}}
    return {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def test_the_wheel_holds_every_module(wheel):
    missing = module_files() - set(zipfile.ZipFile(wheel).namelist())
    assert not missing, f"not in the wheel (is an __init__.py missing?): {sorted(missing)}"


def test_the_wheel_holds_nothing_but_the_package(wheel):
    roots = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert roots - {"hf_infeco"} == {name for name in roots if name.endswith(".dist-info")}


def test_the_wheel_declares_the_command(wheel):
    archive = zipfile.ZipFile(wheel)
    entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "hf-infeco = hf_infeco.cli:app" in archive.read(entry_points).decode()


def test_the_unpacked_wheel_works_from_another_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in module_files()
        # triton and matplotlib are not installed everywhere
        if not name.endswith(("__main__.py", "triton.py", "plots.py"))
    )
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    file = importlib.import_module(name).__file__\n"
        f"    assert file.startswith({str(site)!r}), file\n"
    )
    environment = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
