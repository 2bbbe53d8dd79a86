import json
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssfnas_cli.artifacts import files
from ssfnas_cli.errors import DiskError, InputError, OutputExistsError, UsageError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def shared_umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@given(value=json_values)
def test_what_is_dumped_is_parsed_again(value):
    try:
        data = files.dump_json(value)
    except InputError:  # half a character cannot be written
        return
    assert files.parse_json(data, "here") == value


@given(data=st.binary(max_size=60))
def test_any_bytes_parse_or_give_one_line_that_says_where(data):
    try:
        files.parse_json(data, "here")
    except InputError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"[1e999]", "1e999"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff\xfe", "not UTF-8"),
        (b'["\\ud800"]', "half a character"),
        (b'{"\\uDC00": 1}', "half a character"),
        (b" \n", "is empty"),
        (b"[1, 2", "line 1, column"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "holds a number of 5,000 digits"),
        (b"[" + b"9" * 400 + b"]", "holds a number of 400 digits"),
    ],
)
def test_what_the_standard_parser_lets_through_is_refused(data, words):
    with pytest.raises(InputError, match=r"^here: .*" + words):
        files.parse_json(data, "here")


def test_a_byte_order_mark_and_whole_surrogate_pairs_are_no_fault():
    assert files.parse_json(b'\xef\xbb\xbf["\\ud83d\\ude00"]', "here") == ["\U0001f600"]


def test_files_get_the_permissions_of_the_umask(tmp_path, shared_umask):
    files.write_bytes(tmp_path / "a", b"1")
    (tmp_path / "a").chmod(0o600)
    files.write_bytes(tmp_path / "a", b"2")
    with files.atomic_folder(tmp_path / "f") as folder:
        (folder / "b").write_bytes(b"")
        (folder / "b").chmod(0o600)
    assert [mode(tmp_path / name) for name in ("a", "f", "f/b")] == [0o640, 0o750, 0o640]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    files.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(DiskError, match=r"a: cannot be written: No space"), files.atomic_path(tmp_path / "a") as new:
        new.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(tmp_path / "f") as folder:
        (folder / "b").write_bytes(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_file_is_not_read_beyond_its_cap_even_where_it_has_no_size(tmp_path):
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(2**30)
    zero = os.open("/dev/zero", os.O_RDONLY)
    for path in (tmp_path / "sparse", Path(f"/dev/fd/{zero}")):
        with pytest.raises(InputError, match="more than such a file can have"):
            files.read_bytes(path, 1000)
    os.close(zero)
    (tmp_path / "fits").write_bytes(b"x" * 1000)
    assert len(files.read_bytes(tmp_path / "fits", 1000)) == 1000


def test_a_seal_fits_its_content_whatever_the_layout(tmp_path):
    value = {"b": [1.5, None], "a": {"é": 1e-300}, "t": (1, 2)}
    files.write_sealed_json(tmp_path / "s", value)
    found = files.read_sealed_json(tmp_path / "s")
    assert found == {**value, "t": [1, 2]}
    (tmp_path / "s").write_text(json.dumps({**found, "sha256": files.seal(found)}, indent=7, sort_keys=True))
    assert files.read_sealed_json(tmp_path / "s") == found


@pytest.mark.parametrize("change", [{"a": 2}, {"sha256": "0" * 64}, {"sha256": None}, {"more": 1}])
def test_a_seal_that_does_not_fit_is_damage(tmp_path, change):
    files.write_sealed_json(tmp_path / "s", {"a": 1})
    value = json.loads((tmp_path / "s").read_text()) | change
    (tmp_path / "s").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"s: is damaged or was edited"):
        files.read_sealed_json(tmp_path / "s")


def test_setting_aside_never_overwrites(tmp_path):
    names = []
    for _ in range(3):
        (tmp_path / "run").mkdir()
        names.append(files.set_aside(tmp_path / "run").name)
    (tmp_path / "run.old-4").symlink_to("nowhere")
    (tmp_path / "run").write_text("")
    names.append(files.set_aside(tmp_path / "run").name)
    assert names == ["run.old-1", "run.old-2", "run.old-3", "run.old-5"]
    assert all(files.is_set_aside(tmp_path / name) for name in names)
    assert not files.is_set_aside(tmp_path / "run.older")


def test_a_folder_without_a_name_is_not_set_aside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", "..", "/"):
        with pytest.raises((UsageError, DiskError), match="moved aside"):
            files.set_aside(type(tmp_path)(name))


def test_sweeping_takes_our_temporary_folders_only(tmp_path):
    with pytest.raises(ZeroDivisionError), files.atomic_folder(tmp_path / "x") as folder:
        ours = folder.name
        raise ZeroDivisionError
    (tmp_path / ours).mkdir()
    (tmp_path / ours / "half").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("")
    (tmp_path / ours.replace("x", "link")).symlink_to("elsewhere")
    (tmp_path / ours.replace("x", "file")).write_text("")
    for name in ("x", ".hidden", "z.tmp", ".y.2.tmp", ".backup.tmp"):
        (tmp_path / name).mkdir()
    left = {path.name for path in tmp_path.iterdir()} - {ours}
    files.delete_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == left
    assert (tmp_path / "elsewhere" / "mine").exists()


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_nothing_is_written_over_what_is_no_file(tmp_path, kind):
    path = tmp_path / "a"
    (tmp_path / "other").write_text("mine")
    {
        "link": lambda: path.symlink_to("other"),
        "dangling": lambda: path.symlink_to("nowhere"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    before = path.lstat()
    with pytest.raises(OutputExistsError, match="a: is"):
        files.write_bytes(path, b"ours")
    assert path.lstat().st_ino == before.st_ino and (tmp_path / "other").read_text() == "mine"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a", "other"]


def test_a_pipe_or_a_device_is_not_read_and_not_moved_aside(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="is a pipe, a socket or a device"):
            files.read_bytes(path)
        with pytest.raises(UsageError, match="is a pipe or a device"):
            files.set_aside(path)


def test_a_stream_that_this_process_was_given_is_read_to_its_end():
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(writing, b"1" * 1000), os.close(writing)))
    writer.start()
    assert files.read_bytes(Path(f"/dev/fd/{reading}")) == b"1" * 1000
    writer.join()
    os.close(reading)


def test_a_huge_file_with_nothing_in_it_is_refused_and_one_with_something_is_not(tmp_path, monkeypatch):
    with (tmp_path / "sparse").open("wb") as stream:
        stream.write(b"head")
        stream.truncate(2**40)
    with pytest.raises(InputError, match=r"sparse: is damaged: of its 1,099,511,627,776 bytes only"):
        files.sha256_file(tmp_path / "sparse")
    monkeypatch.setattr(files, "SPARSE_BYTES", 1000)
    (tmp_path / "whole").write_bytes(b"x" * 100_000)
    assert files.sha256_file(tmp_path / "whole") == files.sha256_bytes(b"x" * 100_000)


def test_a_file_with_another_name_gets_a_content_of_its_own(tmp_path):
    (tmp_path / "log").write_text("old\n")
    os.link(tmp_path / "log", tmp_path / "other")
    files.break_hard_links(tmp_path / "log")
    (tmp_path / "log").open("a").write("new\n")
    assert (tmp_path / "other").read_text() == "old\n" and (tmp_path / "log").read_text() == "old\nnew\n"
    inode = (tmp_path / "log").stat().st_ino
    files.break_hard_links(tmp_path / "log")
    files.break_hard_links(tmp_path / "nowhere")
    assert (tmp_path / "log").stat().st_ino == inode
