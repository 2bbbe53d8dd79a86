"""What strangers, and the stages beside this one, may send."""

import json
import shutil
import struct
import subprocess
import zlib

import pytest
from faults_support import SEARCH
from PIL import Image

NASTY = {
    "duplicate keys": b'{"schema": "ssfnas.genotype/1", "schema": "ssfnas.genotype/1"}',
    "NaN": b'{"schema": "ssfnas.genotype/1", "name": NaN}',
    "1e999": b'{"schema": "ssfnas.genotype/1", "name": 1e999}',
    "deep nesting": b"[" * 100_000,
    "half a character": b'{"schema": "ssfnas.genotype/1", "name": "\\ud800"}',
    "not UTF-8": b'{"schema": "\xff"}',
    "a number of 5,000 digits": b'{"schema": ' + b"1" * 5000 + b"}",
    "a pickle": b"cos\nsystem\n(S'touch payload-ran'\ntR.",
    "nothing": b"",
}


@pytest.mark.parametrize("what", NASTY)
def test_a_nasty_genotype_is_one_line_and_exit_3(zygote, place, what):
    (place / "bad.json").write_bytes(NASTY[what])
    for command in (["describe", "bad.json"], ["retrain", "bad.json", "-o", "run"]):
        result = zygote.run(command, place)
        assert result.code == 3, result
        assert len(result.err.splitlines()) == 1 and "bad.json" in result.err and result.out == ""
    assert not (place / "payload-ran").exists() and not (place / "run").exists()


def test_a_byte_order_mark_is_no_fault(zygote, place):
    data = (place / "genotype.json").read_bytes()
    (place / "bom.json").write_bytes(b"\xef\xbb\xbf" + data)
    results = [zygote.run(["describe", name], place) for name in ("bom.json", "genotype.json")]
    assert results[0].code == 0 and results[0].out == results[1].out


def test_a_genotype_of_a_gigabyte_is_refused_unread(zygote, place):
    with (place / "huge.json").open("wb") as stream:
        stream.truncate(2**30)
    result = zygote.run(["describe", "huge.json"], place, {"memory_limit_mb": 200})
    assert result.code == 3 and "more than such a file can have" in result.err


def test_a_device_without_an_end_is_refused(zygote, place):
    result = zygote.run(["describe", "/dev/zero"], place, {"memory_limit_mb": 200})
    assert result.code == 3 and "/dev/zero" in result.err and len(result.err.splitlines()) == 1


def png_claiming(width, height):
    """A PNG whose header names a size that its data does not have."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png_claiming(30_000, 30_000), "pixels, more than is safe"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(payload-ran) (w) file\n", "no image of a known format"),
    ],
    ids=["bomb", "postscript"],
)
def test_image_bombs_and_formats_that_run_code_are_refused(zygote, place, data, words):
    for split in ("train", "test"):
        for name in "ab":
            folder = place / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("L", (9, 9), number).save(folder / f"{number}.png")
    (place / "images" / "train" / "a" / "evil.png").write_bytes(data)
    argv = ["make-dataset", "--source", "folder", "--root", "images", "--dist", "natural", "-o", "made"]
    result = zygote.run(argv, place, {"memory_limit_mb": 300})
    assert result.code == 3 and "train/a/evil.png" in result.err and words in result.err
    assert not (place / "made").exists() and not (place / "payload-ran").exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", "link.safetensors"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(zygote, world, place, name):
    (place / "data").unlink()
    shutil.copytree(world / "data", place / "data")
    manifest = json.loads((place / "data" / "manifest.json").read_text())
    shard = manifest["splits"]["train"]["shards"][0]
    shutil.copy(place / "data" / shard["file"], place / "secret")
    (place / "data" / "link.safetensors").symlink_to(place / "secret")
    shard["file"] = name
    (place / "data" / "manifest.json").write_text(json.dumps(manifest))
    result = zygote.run([*SEARCH, "-o", "run"], place)
    assert result.code == 3 and "leads out of" in result.err and len(result.err.splitlines()) == 1
    assert not (place / "run").exists()


def test_a_reader_that_wants_nothing_ends_quietly(place, stand_in):
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {stand_in} describe genotype.json | head -0; {stand_in} runs . | head -0"],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failed_stage_upstream_is_said_by_every_stage_in_one_line(place, stand_in):
    pipe = f"{stand_in} derive nowhere | {stand_in} retrain - -o run | {stand_in} evaluate -"
    done = subprocess.run(["bash", "-c", pipe], cwd=place, capture_output=True, text=True)
    assert done.returncode == 3 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and sum("the stage before it failed" in line for line in lines) == 2
    assert not (place / "run").exists()


def test_a_search_whose_reader_has_gone_is_done_all_the_same(place, stand_in):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([stand_in, *SEARCH, "--epochs", "1", "-o", "run"], cwd=place, **streams)
    process.stdout.close()
    assert process.wait() == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert json.loads((place / "run" / "status.json").read_text())["state"] == "done"
