"""The wheel holds the whole package, the folders behind hf_infeco's links too, and runs without the checkout."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("kernels", "training", "benchmarks")
SOURCES = ("hf_infeco", *LINKED, "setup.py", "pyproject.toml", "README.md", "LICENSE")
BUILD_SDIST = "import sys, setuptools.build_meta as backend\nbackend.build_sdist(sys.argv[1])"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy with its links, so that no `build` folder is left in the real one or leaks from it."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-c", BUILD_SDIST, target], cwd=checkout)
    return next(target.glob("hf_infeco-*.tar.gz"))


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def wheel(request, checkout, sdist, tmp_path_factory) -> Path:
    """Built from the checkout, where the links are, and from the sdist, where folders lie in their place."""
    source, target = checkout, tmp_path_factory.mktemp("wheel")
    if request.param == "sdist":
        unpacked = tmp_path_factory.mktemp("unpacked")
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        source = next(unpacked.iterdir())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run([*command, "--wheel-dir", target, source], cwd=target)
    return next(target.glob("hf_infeco-*.whl"))


def run(command: list, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def module_files() -> set[str]:
    """Every source file, as the wheel must name it."""
    places = {"hf_infeco": "hf_infeco", **{folder: f"hf_infeco/{folder}" for folder in LINKED}}
    return {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def test_the_wheel_holds_every_module_once_and_nothing_else(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    data = {"hf_infeco/py.typed", "hf_infeco/servesim/devices.yaml", "hf_infeco/serving/status.html"}
    assert sorted(names) == sorted({*module_files(), *data})


def test_the_sdist_holds_every_module_once(sdist):
    with tarfile.open(sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    modules = [name for name in names if name.endswith(".py")]
    assert sorted(modules) == sorted({*module_files(), "setup.py"})


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
