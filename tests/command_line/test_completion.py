"""A script for the shell, by the package shtab."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from cli_support import done, refused, sds, started
from sdsurgery.commands import NAMES


def test_without_shtab_one_line_says_so() -> None:
    program = "import sys; sys.modules['shtab'] = None; from sdsurgery.cli import run; sys.exit(run(sys.argv[1:]))"
    refused(started("completion", "bash", python=("-c", program)), 2, "shtab", "pip install")
    refused(sds("completion", "fsh"), 2, "'fsh'", "bash")


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_script_names_every_command_and_option(shell: str) -> None:
    pytest.importorskip("shtab")
    script = done(sds("completion", shell)).out
    assert [name for name in NAMES if name not in script] == []
    words = ("--blocks", "weighted-sum", "fp8_e4m3") if shell != "tcsh" else ()  # which completes positions only
    assert [word for word in words if word not in script] == []


def test_bash_completes_commands_methods_and_dtypes() -> None:
    pytest.importorskip("shtab")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    script = done(sds("completion", "bash")).out
    for words, wanted in ((["inspe"], "inspect"), (["merge", "--method", "weighted-s"], "weighted-sum"),
                          (["cast", "--dtype", "bf"], "bf16"), (["verify", "--exp"], "--expect")):  # fmt: skip
        line = " ".join(f"'{word}'" for word in ("sdsurgery", *words))
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_sdsurgery; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        found = subprocess.run([bash, "--norc"], input=f"{script}\n{ask}\n", capture_output=True, text=True, check=True)
        assert wanted in found.stdout.split(), (words, found.stdout, found.stderr)
