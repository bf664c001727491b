"""Packaging. Three of the four import packages live in top-level folders of other names, hence the mapping below."""

from setuptools import find_packages, setup

# A top-level import name `kernels` belongs to Hugging Face's own library, so the folder is installed under ours.
FOLDERS = {
    "hf_infeco": "hf_infeco",
    "hf_infeco.kernels": "kernels",
    "hf_infeco.training": "training",
    "hf_infeco.benchmarks": "benchmarks",
}


def packages() -> list[str]:
    """Every import package, named as users import it."""
    found = []
    for name, folder in FOLDERS.items():
        found.append(name)
        found += [f"{name}.{sub}" for sub in find_packages(folder)]
    return found


setup(package_dir=FOLDERS, packages=packages())
