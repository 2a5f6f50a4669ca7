"""SHA-256 of what every writing verb writes, to show that a change of the code changes no output.

    python bench/output_digests.py --python OLD/bin/python --out old.json
    python bench/output_digests.py --python NEW/bin/python --out new.json --compare old.json

Runs the command line of the given Python on synthetic checkpoints that it generates itself: tiny ones of every family,
or with ``--full`` SD 1.5 and SDXL at full size (below 15 GB of disk at a time). Each file is hashed twice: whole, and
without its metadata. Where only the first differs, only the recipe or another text has changed. A command that is
refused is listed by its exit code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Files that the cases read; each is generated when first needed.
# "twins" has EMA twins where the family can have them, "gaps" lacks about every seventh tensor, and "ids" has wrong
# position_ids.
INPUTS: dict[str, dict[str, Any]] = {
    "a": {"seed": 0},
    "b": {"seed": 1},
    "c": {"seed": 2},
    "a32": {"seed": 3, "dtype": "fp32"},
    "b16": {"seed": 4, "dtype": "bf16"},
    "a8": {"seed": 5, "dtype": "fp8_e4m3"},
    "b8": {"seed": 6, "dtype": "fp8_e4m3"},
    "c8": {"seed": 7, "dtype": "fp8_e4m3"},
    "twins": {"seed": 8, "ema": True},
    "gaps": {"seed": 9},
    "ids": {"seed": 10},
}
GENERATE = """
import json, sys, zlib
from sdsurgery.testing import write_checkpoint
path, family, size, options = sys.argv[1:]
def keep(tensor):
    if family.endswith("-diffusers") and tensor.component != ("vae" if family.startswith("vae") else "unet"):
        return False  # components are separate files there, with names that clash
    return not path.startswith("gaps") or zlib.crc32(tensor.key.encode()) % 7 != 0
options = json.loads(options)
try:
    write_checkpoint(path, family, size=size, keep=keep, **options)
except ValueError:
    if not options.pop("ema", False):
        raise
    write_checkpoint(path, family, size=size, keep=keep, **options)
"""
DTYPES = ("fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2")
RULES = "attn = 0.25\nbias$ = 0.75\nfirst_stage_model|decoder = 0.1\n"


@dataclass(frozen=True)
class Case:
    """One command line; ``{a}`` stands for the input a, or for the output of an earlier case with that name."""

    name: str
    command: str
    suffix: str = ".safetensors"
    extra: tuple[str, ...] = field(default=())  # arguments with spaces or braces

    def needs(self) -> list[str]:
        return [part[1:-1] for part in self.command.split() if part.startswith("{")]


def _tiny() -> Iterator[Case]:
    merge = "merge --method weighted-sum"
    yield Case("merge-weighted-sum", f"{merge} {{a}} {{b}} --alpha 0.3")
    yield Case("merge-weights", f"{merge} {{a}} {{b}} {{c}} --weights 0.5,0.3,0.2")
    yield Case("merge-add-diff", "merge --method add-diff {a} {b} {c} --alpha 0.7")
    yield Case("merge-add-diff-blocks", "merge --method add-diff {a} {b} {c} --blocks GRAD_A,BASE=0.2")
    yield Case("merge-preset", f"{merge} {{a}} {{b}} --blocks GRAD_V,BASE=0.5")
    yield Case("merge-blocks", f"{merge} {{a}} {{b}} --blocks IN04=0.3,OUT05-OUT08=0.8,BASE=0.5")
    yield Case("merge-rules", f"{merge} {{a}} {{b}} --rules rules.txt")
    yield Case("merge-blocks-rules", f"{merge} {{a}} {{b}} --alpha 0.4 --blocks IN01=0,M00=1 --rules rules.txt")
    yield Case("merge-use-ema", f"{merge} {{twins}} {{b}} --use-ema A")
    yield Case("merge-ema-left-out", f"{merge} {{twins}} {{b}}")
    yield Case("merge-add-missing", f"{merge} {{gaps}} {{b}} --add-missing")
    yield Case("merge-missing", f"{merge} {{b}} {{gaps}}")
    yield Case("merge-mixed-dtypes", f"{merge} {{a32}} {{b16}}")
    yield Case("merge-fp8", f"{merge} {{a8}} {{b}}")
    yield Case("merge-to-bf16", f"{merge} {{a}} {{b16}} --dtype bf16")
    yield Case("merge-fp64", "merge --method add-diff {a} {b} {a32} --compute fp64 --dtype fp32")
    yield Case("merge-to-ckpt", f"{merge} {{a}} {{b}}", suffix=".ckpt")
    yield Case("merge-of-a-merge", f"{merge} {{merge-add-diff}} {{merge-blocks}}")
    for dtype in DTYPES:
        yield Case(f"cast-{dtype}", f"cast {{a32}} --dtype {dtype}")
    yield Case("cast-from-bf16", "cast {b16} --dtype fp16 --overflow saturate")
    yield Case("cast-from-fp8", "cast {a8} --dtype fp16")
    yield Case("cast-keep", "cast {twins}")
    yield Case("cast-without-hash", "cast {a} --dtype bf16 --no-hash")
    yield Case("ema", "ema {twins}")
    yield Case("ema-keep-counters", "ema {twins} --keep-counters --dtype fp32")
    yield Case("ema-to-ema", "ema {a} --to-ema")
    for preset in ("full", "no-ema", "ema-only", "inference"):
        yield Case(f"prune-{preset}", f"prune {{twins}} --preset {preset}")
    yield Case("prune-drop", "prune {twins} --drop ema,vae")
    yield Case("prune-drop-keys", "prune {a} --drop-keys bias$ --dtype bf16")
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        yield Case(f"extract-{component}", f"extract {{a}} --component {component}")
    yield Case("extract-strip-prefix", "extract {a32} --component vae --strip-prefix --dtype fp16")
    yield Case("replace", "replace {a} --component vae --with {b16}")
    yield Case("replace-by-extracted", "replace {b} --component vae --with {extract-vae}")
    yield Case("fix-clip", "fix-clip {ids}")
    yield Case("merge-fix-clip", f"{merge} {{ids}} {{b}} --fix-clip")
    yield Case("convert-to-ckpt", "convert {twins}", suffix=".ckpt")
    yield Case("convert-back", "convert {convert-to-ckpt}")
    yield Case("cast-of-ckpt", "cast {convert-to-ckpt} --dtype bf16", suffix=".pt")


def _full() -> Iterator[Case]:
    """In an order that needs few files at a time; the fp8 inputs are for SDXL, to stay below 15 GB."""
    merge = "merge --method weighted-sum"
    yield Case("merge-fp8", f"{merge} {{a8}} {{b8}} --alpha 0.3")
    yield Case("merge-add-diff-fp8", "merge --method add-diff {a8} {b8} {c8} --alpha 0.7")
    yield Case("cast-from-fp8", "cast {a8} --dtype fp16")
    yield Case("merge-blocks", f"{merge} {{a8}} {{a}} --blocks GRAD_V,BASE=0.5")
    yield Case("cast-fp8_e4m3", "cast {a} --dtype fp8_e4m3")
    yield Case("extract-vae", "extract {a} --component vae")
    yield Case("replace", "replace {a} --component vae --with {extract-vae}")
    yield Case("convert-to-ckpt", "convert {a}", suffix=".ckpt")
    yield Case("prune-inference", "prune {a} --preset inference --dtype bf16")


def _full_sd1() -> Iterator[Case]:
    merge = "merge --method weighted-sum"
    yield from _full()
    yield Case("merge-weighted-sum", f"{merge} {{a}} {{b}} --alpha 0.3")
    yield Case("merge-add-diff", "merge --method add-diff {a} {b} {c} --alpha 0.7")
    yield Case("merge-rules", f"{merge} {{a}} {{b}} --rules rules.txt")
    yield Case("cast-fp32", "cast {a} --dtype fp32")
    yield Case("cast-fp16", "cast {a32} --dtype fp16")
    yield Case("ema", "ema {twins}")
    yield Case("merge-use-ema", f"{merge} {{twins}} {{b}} --use-ema A")


class Run:
    """The cases of one family, in a folder of its own, so that all names in the outputs' recipes are relative."""

    def __init__(self, python: str, family: str, size: str, cases: Sequence[Case], folder: Path) -> None:
        self.python, self.family, self.size, self.cases = python, family, size, cases
        self.folder = folder / family
        self.files = {case.name: case.name + case.suffix for case in cases}
        self.files |= {name: f"{name}.safetensors" for name in INPUTS}

    def all(self) -> dict[str, Any]:
        """Digests by the name of the file; empty for a family that cannot be generated."""
        self.folder.mkdir()
        (self.folder / "rules.txt").write_text(RULES)
        found: dict[str, Any] = {}
        for index, case in enumerate(self.cases):
            for name in case.needs():
                if name in INPUTS and name not in found:
                    self._generate(name)
                    found[name] = self._digest(name)
            if "file" not in next(iter(found.values())):  # the first input
                return {}
            found[case.name] = self._run(case)
            wanted = {name for later in self.cases[index + 1 :] for name in later.needs()}
            for name, file in self.files.items():
                if name not in wanted:
                    (self.folder / file).unlink(missing_ok=True)
        return found

    def _generate(self, name: str) -> None:
        options = json.dumps(INPUTS[name])
        arguments = [self.files[name], self.family, self.size, options]
        self._python("-c", GENERATE, *arguments)
        if name == "ids" and (self.folder / self.files[name]).exists():
            _spoil_position_ids(self.folder / self.files[name])

    def _run(self, case: Case) -> dict[str, Any]:
        words = [self.files[part[1:-1]] if part.startswith("{") else part for part in case.command.split()]
        code = self._python("-m", "sdsurgery", *words, "-o", self.files[case.name], "-q", "--no-sync")
        return self._digest(case.name) if code == 0 else {"exit": code}

    def _python(self, *arguments: str) -> int:
        environment = {**os.environ, "PYTHONUTF8": "1", "SDS_CACHE": str(self.folder / "cache")}
        command = [self.python, *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, check=False).returncode

    def _digest(self, name: str) -> dict[str, Any]:
        path = self.folder / self.files[name]
        if not path.exists():
            return {"exit": None}
        found = {"bytes": path.stat().st_size, "file": _sha256(path)}
        if path.suffix == ".safetensors":
            found["tensors"] = _sha256(path, with_metadata=False)
        return found


def _sha256(path: Path, *, with_metadata: bool = True) -> str:
    """Of the whole file, or of the header's entries (as JSON, without the metadata) and the tensors' data."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if not with_metadata:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            header.pop("__metadata__", None)
            digest.update(json.dumps(header).encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _spoil_position_ids(path: Path) -> None:
    """Make the first of every ``position_ids`` 5 in place of 0."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        for name, entry in json.loads(file.read(length)).items():
            if name.endswith("position_ids"):
                file.seek(8 + length + entry["data_offsets"][0])
                file.write(b"\x05")


def _one_line_each(found: dict[str, Any]) -> str:
    """The JSON text with one line for each file, so that a diff of two results can be read."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(digests)}" for name, digests in found["files"].items())
    rest = json.dumps({key: value for key, value in found.items() if key != "files"})
    return f'{rest[:-1]}, "files": {{\n{rows}\n}}}}\n'


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each file of both whose digest, or exit code, is another."""
    lines = []
    for name in old["files"]:
        before, after = old["files"][name], new["files"].get(name)
        if after is None or before == after:
            continue
        if "file" not in before or "file" not in after:
            lines.append(f"{name}: {_outcome(before)} before, {_outcome(after)} now")
        elif before.get("tensors") is not None and before["tensors"] == after.get("tensors"):
            lines.append(f"{name}: the metadata differs, the tensors don't")
        else:
            other = "tensors" if "tensors" in after else "bytes"
            lines.append(f"{name}: {before['bytes']} bytes before, {after['bytes']} now, and other {other}")
    lines += [f"{name}: only before" for name in old["files"] if name not in new["files"]]
    lines += [f"{name}: only now" for name in new["files"] if name not in old["files"]]
    return lines


def _outcome(found: dict[str, Any]) -> str:
    return "written" if "file" in found else f"exit code {found['exit']}"


def record(python: str, *, full: bool, families: Sequence[str], folder: Path, jobs: int) -> dict[str, Any]:
    """Run every case of every family and return the digests."""
    known = json.loads(subprocess.check_output([python, "-m", "sdsurgery", "layouts", "--json"], text=True))["layouts"]
    wanted = list(families) or (["sd1", "sdxl-base"] if full else [layout["name"] for layout in known])
    files: dict[str, Any] = {}
    with ThreadPoolExecutor(1 if full else jobs) as pool:
        runs = []
        for family in wanted:
            cases = list((_full_sd1() if family == "sd1" else _full()) if full else _tiny())
            runs.append(Run(python, family, "full" if full else "tiny", cases, folder))
        for run, found in zip(runs, pool.map(Run.all, runs), strict=True):
            files.update({f"{run.family}/{name}": digests for name, digests in found.items()})
            print(f"{run.family}: {len(found)} files", file=sys.stderr)
    version = subprocess.check_output([python, "-m", "sdsurgery", "--version"], text=True).strip()
    return {"version": version, "size": "full" if full else "tiny", "files": files}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--python", default=sys.executable, help="the Python whose sdsurgery runs (default: this one)")
    add("--full", action="store_true", help="SD 1.5 and SDXL at full size in place of all families, tiny")
    add("--families", type=lambda text: text.split(","), default=[], metavar="NAME,…", help="these families only")
    add("--folder", help="where to work (default: the system's temporary folder)")
    add("--jobs", type=int, default=1, help="families at a time")
    add("--out", help="write the digests to this JSON file")
    add("--compare", metavar="OLD.json", help="list what differs from this file; exit code 4 if anything does")
    args = parser.parse_args(argv)
    python = args.python if os.sep not in args.python else os.path.abspath(args.python)
    with tempfile.TemporaryDirectory(prefix="sds-digests-", dir=args.folder) as folder:
        found = record(python, full=args.full, families=args.families, folder=Path(folder), jobs=args.jobs)
    if args.out:
        Path(args.out).write_text(_one_line_each(found), encoding="utf-8")
    if args.compare is None:
        return 0
    old = json.loads(Path(args.compare).read_text(encoding="utf-8"))
    if args.families:
        old["files"] = {name: value for name, value in old["files"].items() if name.split("/")[0] in args.families}
    lines = differences(old, found)
    print("\n".join(lines) if lines else f"{len(found['files'])} files, no difference")
    return 4 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
