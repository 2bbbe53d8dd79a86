"""What the machine lacks: one line that says what, and exit code 5."""


def test_memory_that_runs_out_is_one_line_and_no_bug(ssfnas, world, tmp_path):
    """A convolution of 51 GB, under a limit of 12."""
    flags = " ".join([*ssfnas.tiny, *ssfnas.ops])
    command = f"ssfnas search --data {world / 'data'} {flags} --channels 65536 -q -o run"
    result = ssfnas.shell(f"ulimit -v 12000000; {command}", tmp_path)
    (line,) = result.err.splitlines()
    assert result.code == 5 and result.out == b""
    assert line.startswith("ssfnas: memory has run out (") and "MiB more were asked for" in line
    assert all(flag in line for flag in ("--batch-size", "--channels", "--layers", "--precision"))
    assert list(tmp_path.iterdir()) == []


def test_memory_that_does_not_even_hold_torch(ssfnas, world, tmp_path):
    result = ssfnas.shell(f"ulimit -v 400000; ssfnas derive {world / 'search'}", tmp_path)
    assert result.code == 5 and result.err.startswith("ssfnas: memory has run out"), result.err
    assert len(result.err.splitlines()) == 1
