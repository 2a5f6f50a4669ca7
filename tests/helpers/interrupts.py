"""Interrupt a script's ``sdsurgery.merge`` at random moments, and see how it ends.

    python tests/helpers/interrupts.py [--count 300] [--middle]

Every time a new interpreter imports the package and merges; SIGINT comes somewhere in that second. The script must end
by a KeyboardInterrupt (or have finished), without an abort of the process, and leave the output whole or not there,
and nothing else. ``--middle``: files of 37 MB instead of tiny ones.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = """
import signal, sys
# What a shell starts in the background ignores the signal, and so would this.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    print("ready", flush=True)
    import sdsurgery
    sdsurgery.merge("weighted-sum", ["a.safetensors", "b.safetensors"], out="out.safetensors", overwrite=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
else:
    print("finished", flush=True)
"""


def one(folder: Path, delay: float) -> tuple[str, float]:
    """``interrupted``, ``finished`` or ``late`` (after the merge), and the seconds that the script took; AssertionError
    for any other end."""
    before = sorted(os.listdir(folder))
    environment = {**os.environ, "SDS_CACHE": str(folder / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    took = time.monotonic() - started
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    found = out.strip()
    if found == "":  # outside the script's own try: Python's start or end
        assert process.returncode in (-signal.SIGINT, 1) and "KeyboardInterrupt" in err, (process.returncode, err)
        found = "late"
    elif found == "finished" and "KeyboardInterrupt" in err:
        found = "late"
    else:
        # Python itself ends by the signal where one came in the middle of exec("…"), as dataclasses use it, even when
        # the KeyboardInterrupt was caught.
        assert process.returncode in (0, -signal.SIGINT) and err == "", (process.returncode, out, err)
    left = set(os.listdir(folder)) - {*before, "cache", "out.safetensors"}
    assert not left, left
    cache = folder / "cache"
    assert not cache.exists() or set(os.listdir(cache)) <= {"hashes.json"}, os.listdir(cache)
    return found, took


def many(folder: Path, count: int, seed: int = 0) -> collections.Counter[str]:
    """``count`` interruptions, spread over the time that an undisturbed run takes."""
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, check=True, capture_output=True)
    whole = (folder / "out.safetensors").read_bytes()
    _, length = one(folder, 60)
    rng, ends = random.Random(seed), collections.Counter[str]()
    for _ in range(count):
        for path in (folder / "out.safetensors", folder / "cache" / "hashes.json"):
            path.unlink(missing_ok=True)
        delay = rng.uniform(0, 1.1 * length)
        end, took = one(folder, delay)
        ends[end] += 1
        if took < delay:  # it was over: the machine is faster than when that was measured
            length = min(length, took)
        if (folder / "out.safetensors").exists():
            assert (folder / "out.safetensors").read_bytes() == whole
    return ends


def make_inputs(folder: Path, *, middle: bool) -> None:
    from sdsurgery.testing import write_checkpoint

    for seed, name in enumerate("ab"):
        family = "sdxl-base" if middle else "sd1"
        write_checkpoint(folder / f"{name}.safetensors", family, size="tiny", seed=seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--middle", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name), middle=arguments.middle)
        print(dict(many(Path(name), arguments.count)))
