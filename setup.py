"""Packages and the CMake source folder; everything else is in pyproject.toml and CMakeLists.txt."""

import os
import shutil
import sys
from glob import glob

from setuptools import find_packages, setup

ROOT = os.path.dirname(os.path.abspath(__file__))

# What an earlier build copied: a module that was deleted since would come back from there.
for folder in glob(os.path.join(ROOT, "build", "lib*")):
    shutil.rmtree(folder, ignore_errors=True)


def require_compiler() -> None:
    """Say in one line what is missing; CMake would need 268 for it."""
    named = os.environ.get("CMAKE_ARGS", "")
    if os.name == "nt" or "COMPILER" in named or "TOOLCHAIN" in named or "CMAKE_TOOLCHAIN_FILE" in os.environ:
        return  # found, or named, where only CMake looks
    asked = os.environ.get("CXX", "")
    names = [asked, asked.split()[0]] if asked.strip() else ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        which = f"CXX is '{asked}', which is not there" if asked else "no C++ compiler was found"
        sys.exit(
            f"sdsurgery: {which}; install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
            "macOS: xcode-select --install) and try again"
        )


if not {"egg_info", "dist_info", "sdist", "--version", "clean"}.intersection(sys.argv):
    require_compiler()

setup(
    cmake_source_dir=".",
    package_dir={"": "python", "sdsurgery.kernels": "kernels"},
    packages=[*find_packages("python"), "sdsurgery.kernels"],
    package_data={"sdsurgery": ["py.typed", "*.pyi"]},
)
