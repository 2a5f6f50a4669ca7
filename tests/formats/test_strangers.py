"""Files that are not checkpoints: the refusal says what they are and what to do."""

from __future__ import annotations

import gzip
import pickle
import zipfile

import pytest
import sdsurgery
from sdsurgery.errors import InputRefused
from torch_support import saved, torch

PICKLE_0 = "a pickle of protocol 0 or 1"
STRANGERS = {
    "protocol 0": (pickle.dumps({"a": 1}, protocol=0), f"{PICKLE_0} with the opcodes INT, UNICODE, DICT, PUT, which"),
    "protocol 1": (pickle.dumps({"a": 1}, protocol=1), f"{PICKLE_0}, which"),
    "instance": (b"(S'x'\nia.b\nC\n.", f"{PICKLE_0} with the opcodes STRING, INST, which"),
    "object": (b"(ca.b\nC\nS'x'\no.", f"{PICKLE_0} with the opcodes STRING, OBJ, which"),
    "extension": (b"\x82\x01)R0N0N.", f"{PICKLE_0} with the opcode EXT1, which"),
    "persistent id": (b"Pthe key\n.", f"{PICKLE_0} with the opcode PERSID, which"),
    "legacy stream of protocol 0": (
        saved({"a": torch.ones(2)}, "legacy", 1),
        f"{PICKLE_0} with the opcodes INT, LONG, which",
    ),
    "harmful": (
        b"cos\nsystem\n(S'true'\ntR.",
        "suspicious: loading it could have run os.system. Nothing was run here; it",
    ),
    "large": (b"(lp1\n" + b"I1\na" * 800_000 + b".", PICKLE_0),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "web page": (b"\n<!DOCTYPE HTML>\n<html>", "a web page"),
    "gzip": (gzip.compress(b"x" * 100), "compressed by gzip; unpack it first"),
    "GGUF": (b"GGUF\x03\0\0\0".ljust(100, b"\1"), "GGUF"),
    "prose": (b"I like it.\nSo do you.\n", "a short text in place of a checkpoint, as a failed download leaves it"),
    "error in JSON": (b'{"error":"Unauthorized","message":"log in to download"}', "failed download"),
    "error in XML": (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "failed download"),
    "error as text": (b"Entry not found", "failed download"),
    "settings": (b'{\n  "_class_name": "UNet2DConditionModel"\n}\n', "a model's settings"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(300), "a PNG picture"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(300), "a JPEG picture"),
    "zeros": (bytes(5000), "only zeros"),
    "few zeros": (bytes(20), "only zeros"),
    "number": (b"12345678901.", "not a checkpoint of a known format"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_files_of_other_formats_are_identified_in_the_refusal(case, tmp_path):
    data, words = STRANGERS[case]
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(InputRefused) as caught:
        sdsurgery.open(tmp_path / "x.ckpt")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_with_a_model_inside_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("folder/model.safetensors", b"x" * 100)
    with pytest.raises(InputRefused, match=r"model\.safetensors'\); unpack it first"):
        sdsurgery.open(tmp_path / "model.zip")


def test_folders_are_named_with_the_file_to_give(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(InputRefused, match="a diffusers folder"):
        sdsurgery.open(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputRefused, match=r"in shards; give its index, .*model\.safetensors\.index\.json"):
        sdsurgery.open(tmp_path)
