import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ssfnas_cli.artifacts.tensors import load_metadata, load_tensors, save_tensors
from ssfnas_cli.errors import InputError

TENSORS = {
    "weights": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4),
    "step": torch.tensor(7.0),
    "labels": torch.tensor([1, 2, 3]),
    "mask": torch.tensor([True, False]),
    "half": torch.tensor([0.5, -0.0, float("inf")], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
}


def raw(path, header, data=b""):
    """A safetensors file with whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_what_is_saved_is_loaded_bit_for_bit_whatever_its_type(tmp_path):
    save_tensors(tmp_path / "t", TENSORS, {"note": "é"})
    found = load_tensors(tmp_path / "t")
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)
    assert load_metadata(tmp_path / "t") == {"note": "é"}


def test_tied_weights_are_saved_twice_and_loaded_equal(tmp_path):
    save_tensors(tmp_path / "t", {"a": TENSORS["weights"], "b": TENSORS["weights"], "c": TENSORS["weights"][0]})
    found = load_tensors(tmp_path / "t")
    assert torch.equal(found["a"], found["b"]) and torch.equal(found["a"][0], found["c"])


def test_the_bytes_depend_on_the_content_alone(tmp_path):
    images = torch.arange(48.0).reshape(2, 2, 3, 4)
    save_tensors(tmp_path / "a", {"x": images, "y": images[0]}, {"b": 1, "a": 2})
    save_tensors(tmp_path / "b", {"x": images.to(memory_format=torch.channels_last), "y": images[0]}, {"b": 1, "a": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(bit=st.integers(0, 8 * 400 - 1))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_flipped_bit_loads_as_something_else(tmp_path_factory, bit):
    path = tmp_path_factory.getbasetemp() / "flipped"
    save_tensors(path, {"x": torch.linspace(0, 1, 40)}, {"seed": 1})
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)
    try:
        assert torch.equal(load_tensors(path)["x"], torch.linspace(0, 1, 40))  # a blank of the padding
    except InputError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 12),  # trailing bytes
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 4),  # too few
        (
            {
                "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "y": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            b"\0" * 12,
        ),  # overlapping
        ({"x": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 8]}}, b"\0" * 8),  # overflowing
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}, b"\0" * 8),
        (b"not json", b""),
        (b"[" * 100_000, b""),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, data):
    path = raw(tmp_path / "t.safetensors", header, data)
    for load in (load_tensors, load_metadata):
        with pytest.raises(InputError, match=r"t\.safetensors"):
            load(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 10**9, 0])
def test_a_huge_header_length_is_refused_without_the_memory(tmp_path, length):
    (tmp_path / "t").write_bytes(struct.pack("<Q", length) + b"{}" + b"\0" * 20)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_tensors(tmp_path / "t")


def test_a_pickle_by_another_name_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for payload in (b"cos\nsystem\n(S'touch ran'\ntR.", b"\x80\x04cos\nsystem\n\x8c\x09touch ran\x85R."):
        (tmp_path / "t.safetensors").write_bytes(payload)
        with pytest.raises(InputError):
            load_tensors(tmp_path / "t.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_file_without_a_checksum_is_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign")
    save_file({"x": torch.zeros(2)}, tmp_path / "odd", metadata={"ssfnas": "[1, 2]"})
    for name in ("foreign", "odd"):
        with pytest.raises(InputError, match="states no sha256"):
            load_tensors(tmp_path / name)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            load_tensors(path)
