"""verify on the command line: several files, and the digests that sites list."""

from __future__ import annotations

from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, refused, sds


@pytest.fixture(scope="module")
def known(models: Path) -> dict[str, str]:
    return sdsurgery.inspect(models / "a.safetensors", hashes=True).hashes


@pytest.mark.parametrize(
    "spelled",
    ["{sha256}", "0x{sha256}", "0X{body_sha256}", "{autov1}", "{autov2}", "{autov3}", "{crc32}", "AutoV2:{autov2}",
     "crc-32={crc32}", "CRC32: {crc32}", "SHA-256 of the tensor data:{body_sha256}"],
)  # fmt: skip
def test_a_digest_is_known_by_its_name_or_length_in_any_case(models: Path, known: dict[str, str], spelled: str) -> None:
    for text in (spelled.format(**known), spelled.format(**{name: digits.upper() for name, digits in known.items()})):
        found = sdsurgery.verify(models / "a.safetensors", expect=text)
        assert found.ok and list(found.matches) == [text]


def test_a_digest_of_another_file_differs(models: Path, known: dict[str, str]) -> None:
    path = models / "a.safetensors"
    result = sds("verify", path, "--expect", "0x" + "1" * 8, "--expect", known["autov2"])
    assert result.rc == 4
    assert known["autov1"] in result.err and known["crc32"] in result.err
    assert f"AutoV2 is the expected {known['autov2']}" in result.out
    for wrong in ("12345", "g" * 64, "autov2:" + "1" * 12, "md5:" + "1" * 32):
        refused(sds("verify", path, "--expect", wrong), 2)
    refused(sds("verify", path, "--expect", "1" * 8, "--no-hash"), 2, "--expect")


def test_blake3_by_name_needs_its_package(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdsurgery.file_hashes.has_blake3", lambda: False)
    with pytest.raises(sdsurgery.UsageError, match="pip install"):
        sdsurgery.verify(models / "a.safetensors", expect="BLAKE3:" + "1" * 64)
    assert sdsurgery.verify(models / "a.safetensors").hashes.blake3 is None


def test_a_stored_hash_may_begin_with_0x_or_not(models: Path, tmp_path: Path, known: dict[str, str]) -> None:
    for number, text in enumerate((known["body_sha256"].upper(), "0x" + known["body_sha256"])):
        out = tmp_path / f"{number}.safetensors"
        given = {"modelspec.hash_sha256": text, "sshs_model_hash": text}
        sdsurgery.testing.write_checkpoint(out, size="tiny", metadata=given)
        own = sdsurgery.verify(out)
        assert len(own.differs) == 2  # another file's
        given = dict.fromkeys(given, ("0X" if number else "") + own.hashes.body_sha256.upper())
        sdsurgery.testing.write_checkpoint(out, size="tiny", metadata=given, overwrite=True)
        assert sdsurgery.verify(out).ok


def test_several_files_are_each_verified(models: Path, tmp_path: Path) -> None:
    a, b = models / "a.safetensors", tmp_path / "b.safetensors"
    sdsurgery.cast(a, dtype="bf16", out=b)
    b.write_bytes(b.read_bytes()[:-1] + b"?")
    both = done(sds("verify", a, a)).out
    assert both.count("structure intact") == 2
    result = sds("verify", a, b, tmp_path / "none", "--json")
    refused_rows = {row["path"]: row["error"] and row["error"]["code"] for row in result.json()["files"]}
    assert refused_rows == {str(a): None, str(b): "differs", str(tmp_path / "none"): "not_found"}
    assert result.rc == 3
    assert sds("verify", a, b, "-q").rc == 4
