"""Coverage-guided fuzzing of the torch readers, for a longer run than the seeded one in test_hostile_pickles.py.

    pip install atheris
    python tests/helpers/fuzz_pickle.py corpus/ -max_total_time=3600

The first byte chooses the container (a zip around the bytes as data.pkl, a legacy stream around them, or none). An
uncaught exception, an audit event of the kinds that ``Watch`` forbids, or a read outside the file stops the run.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["sdsurgery.formats"]):
    from attacks import RECORD, answer
    from pickle_builder import legacy, torch_zip


def one_input(data: bytes) -> None:
    """What atheris calls with each input."""
    kind, body = data[:1], data[1:]
    if kind == b"z":
        answer(torch_zip(body, {"0": RECORD}), allow_suspicious=True)
    elif kind == b"l":
        answer(legacy(body, {"0": (6, RECORD)}), allow_suspicious=True)
    else:
        answer(body, allow_suspicious=True)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
