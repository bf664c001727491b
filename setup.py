"""Packaging. hf_infeco/kernels, training and benchmarks are links to the folders on top, which setuptools follows."""

from setuptools import find_namespace_packages, setup

setup(
    # find_packages would pass over `kernels`, which has no __init__.py: on top, the name is that of another library.
    packages=find_namespace_packages(
        include=["hf_infeco", "hf_infeco.*"], exclude=["*.__pycache__", "*.results", "*.data", "*.data.*"]
    ),
    package_data={"hf_infeco": ["py.typed", "servesim/devices.yaml", "serving/status.html"]},
)
