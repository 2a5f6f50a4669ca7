"""``python -m sdsurgery`` and the command ``sdsurgery``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; returns the exit code (see cli.py)."""
    import gc

    # Headers make tens of thousands of small objects and hardly a cycle: look for cycles less often.
    gc.set_threshold(100_000, 50, 50)
    from .cli import ignore_signals, run

    code = run(sys.argv[1:])
    ignore_signals()
    if "triton" not in sys.modules:  # which reports frozen objects as leaked
        gc.freeze()  # the interpreter looks for cycles once more at its end: among these objects that takes 10 ms
    return code


def command() -> None:
    """The process: ``main``, and its exit code."""
    sys.exit(main())


if __name__ == "__main__":
    command()
