"""SHA-256 natively: every implementation that runs here, against NIST's vectors and hashlib, one stream or several."""

from __future__ import annotations

import hashlib
import random

import pytest
from sdsurgery import _native

TARGETS = [name for name, runs_here in _native.hash_targets() if runs_here]

# FIPS 180-2, appendix B, and the first short messages of NIST's SHA256ShortMsg.rsp.
NIST = [
    (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
        b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
    ),
    (b"a" * 1_000_000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
    (bytes.fromhex("d3"), "28969cdfa74a12c82f3bad960b0b000aca2ac329deea5c2328ebc6f2ba9802c1"),
    (bytes.fromhex("5738c929c4f4ccb6"), "963bb88f27f512777aab6c8b1a02c70ec0ad651d428f870036e1917120fb48bf"),
]


def random_bytes(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_portable_one_is_always_there() -> None:
    assert "scalar" in TARGETS
    with pytest.raises(_native.Error, match="cannot be computed by 'md5'"):
        _native.sha256([b""], "md5")


@pytest.mark.parametrize("target", TARGETS)
def test_nists_vectors(target: str) -> None:
    for message, digest in NIST:
        assert _native.sha256([message], target) == [digest]
    assert _native.sha256([message for message, _ in NIST], target) == [digest for _, digest in NIST]


@pytest.mark.parametrize("target", TARGETS)
def test_every_length_around_the_blocks(target: str) -> None:
    data = random_bytes(400)
    for size in range(400):
        assert _native.sha256([memoryview(data)[400 - size :]], target) == [sha256(data[400 - size :])]


@pytest.mark.parametrize("step", [0, 1, 63, 64, 65, 1000, 4096])
@pytest.mark.parametrize("target", TARGETS)
def test_many_streams_of_odd_lengths_in_pieces(target: str, step: int) -> None:
    rng = random.Random(step)
    for count in range(8):
        streams = [random_bytes(rng.choice((0, 1, 55, 64, rng.randrange(5000))), rng.random()) for _ in range(count)]
        assert _native.sha256(streams, target, step) == [sha256(data) for data in streams]


@pytest.mark.parametrize("target", TARGETS)
def test_long_streams_together(target: str) -> None:
    streams = [random_bytes(700_000 + 77 * number, number) for number in range(4)]
    assert _native.sha256(streams, target) == [sha256(data) for data in streams]
