"""The report gives the hashes that model sites and web UIs know the output by."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import sdsurgery
from cli_support import done, refused, sds
from sdsurgery.errors import UsageError
from sdsurgery.testing import write_checkpoint


def test_the_report_gives_the_hashes_of_the_output(tmp_path: Path) -> None:
    path, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    write_checkpoint(path, "sd1", size="tiny")
    printed = done(sds("cast", path, "--dtype", "bf16", "-o", out)).err
    content = out.read_bytes()
    body = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    assert printed.splitlines()[0].endswith(f"→ out.safetensors (AutoV3 {body[:12]})")
    assert "AutoV2" not in printed
    printed = done(sds("cast", path, "--dtype", "bf16", "-o", out, "--force", "--hash", "full")).err
    whole = hashlib.sha256(content).hexdigest()
    assert f"\nSHA-256 {whole} (AutoV2 {whole[:10]})\n" in printed
    assert out.read_bytes() == content
    refused(sds("cast", path, "--dtype", "bf16", "-o", out, "--force", "--hash", "ful"), 2, "full")
    report = sdsurgery.cast(path, dtype="bf16", out=out, overwrite=True, hash="full")
    assert (report.output_sha256, report.body_sha256) == (whole, body)
    with pytest.raises(UsageError, match="known: full"):
        sdsurgery.cast(path, dtype="bf16", out=out, overwrite=True, hash="all")
