"""Coverage-guided fuzzing of everything that parses a file of a stranger.

    pip install atheris
    python tests/fuzz/fuzz.py TARGET -max_total_time=60     # header, zip, pickle or scan
    python tests/fuzz/fuzz.py seeds                         # writes the seed corpora again

Each run begins with the seeds kept in ``seeds/TARGET``; what it finds new goes to ``$SDS_FUZZ_CORPUS/TARGET`` where
that is set. What stops it: an uncaught exception, an audit event of the kinds that ``Watch`` forbids, a read outside
the file, a call that ``scan`` has not seen.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "helpers"))
FIRST = 20_000  # bytes of a seed at most


def run_header(data: bytes) -> None:
    """A safetensors header; what is accepted has its tensors within the file."""
    from pickle_builder import Memory
    from sdsurgery.errors import InputRefused
    from sdsurgery.formats.kinds import safetensors

    try:
        found = safetensors.read(Memory(data))
    except InputRefused as error:
        assert "\n" not in str(error) and str(error).isprintable()
        return
    for info in found.tensors:
        assert 0 <= info.offset <= info.offset + info.nbytes <= len(data)


def run_zip(data: bytes) -> None:
    """A whole file, read as a checkpoint; most seeds are zip archives."""
    from attacks import answer

    answer(data, allow_suspicious=True)


def run_pickle(data: bytes) -> None:
    """The first byte chooses what lies around the pickle: a zip archive, a legacy stream, or nothing."""
    from attacks import RECORD, answer
    from pickle_builder import legacy, torch_zip

    kind, body = data[:1], data[1:]
    if kind == b"z":
        body = torch_zip(body, {"0": RECORD})
    elif kind == b"l":
        body = legacy(body, {"0": (6, RECORD)})
    answer(body, allow_suspicious=True)


def run_scan(data: bytes) -> None:
    """Any file; what CPython's unpicklers call is named."""
    from attacks import Watch
    from pickle_builder import Memory
    from sdsurgery.formats.pickle_follow import Pickle
    from sdsurgery.formats.scan import scan_source
    from unpickler_oracle import calls

    with Watch():
        found = scan_source("x", Memory(data))
    text = "\n".join(found.lines(None))
    assert all(line.isprintable() for line in text.split("\n"))
    followed = Pickle(Memory(data))
    assert followed.exhausted or followed.odd or all(names & followed.calls.keys() for names in calls(data))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "header": run_header, "zip": run_zip, "pickle": run_pickle, "scan": run_scan,
}  # fmt: skip


def seeds() -> dict[str, list[bytes]]:
    """A few small files of each kind for each target."""
    from attacks import GOOD_TENSOR, RECORD, attacks
    from pickle_builder import dict_of, legacy, pickled, torch_zip
    from scan_corpus import hostile

    bodies = [dict_of({"state_dict": dict_of({"w": GOOD_TENSOR})}), *attacks("/canary").values()]
    texts = [
        b"{}", b'{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}',
        b'{"__metadata__":{"a":"b"},"x":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}} ',
    ]  # fmt: skip
    whole = [torch_zip(pickled(bodies[0]), {"0": RECORD}), legacy(pickled(bodies[0]), {"0": (6, RECORD)})]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickled(bodies[0]))
    found = {
        "header": [len(text).to_bytes(8, "little") + text + bytes(24) for text in texts],
        "zip": [*whole, packed.getvalue()],
        "pickle": [kind + pickled(body) for body in bodies[:12] for kind in (b"z", b"l", b"p")],
        "scan": [data for _, data in hostile("/canary").values()],
    }
    return {target: [data for data in files if len(data) <= FIRST] for target, files in found.items()}


def write_seeds() -> None:
    """Write the kept corpora."""
    for target, files in seeds().items():
        folder = HERE / "seeds" / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(files):
            (folder / f"{number:03}").write_bytes(data)


def main(words: list[str]) -> None:
    target, *options = words
    if target == "seeds":
        write_seeds()
        return
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["sdsurgery.formats"]):
        import attacks  # noqa: F401
        from sdsurgery.formats import scan  # noqa: F401

    folders = [str(HERE / "seeds" / target)]
    if kept := os.environ.get("SDS_FUZZ_CORPUS"):
        os.makedirs(os.path.join(kept, target), exist_ok=True)
        folders.insert(0, os.path.join(kept, target))
    atheris.Setup([words[0], *folders, *options], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
