"""Packages and the CMake source folder; everything else is in pyproject.toml and CMakeLists.txt."""

from setuptools import find_packages, setup

setup(
    cmake_source_dir=".",
    package_dir={"": "python", "sdsurgery.kernels": "kernels"},
    packages=[*find_packages("python"), "sdsurgery.kernels"],
    package_data={"sdsurgery": ["py.typed", "*.pyi"]},
)
