"""docs/reliability.md names a test for every fault, and every test that it names is there."""

import re
from pathlib import Path

HERE = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in (HERE.parents[1] / "docs" / "reliability.md").read_text().splitlines()
    if line.startswith("|")
]
FAULTS = [row for row in ROWS[2:] if not row[0].startswith("**")]


def test_the_table_has_a_fault_what_happens_and_a_test_in_every_row():
    assert ROWS[0] == ["fault", "what happens", "test"]
    assert len(FAULTS) > 50
    for row in FAULTS:
        assert len(row) == 3 and all(row), row


def test_every_test_that_the_table_names_is_there():
    for fault, _, cell in FAULTS:
        file, _, name = cell.strip("`").partition("::")
        source = (HERE / file).resolve().read_text()
        assert f"\ndef {name}(" in source, f"{fault}: {cell}"


def test_every_test_of_killing_stopping_locks_and_disks_is_in_the_table():
    named = {row[2].strip("`") for row in FAULTS}
    elsewhere = {  # said in a row of the table by another test of the same thing
        "test_kill.py::test_the_elapsed_time_goes_on_counting",
        "test_signals.py::test_a_run_is_listed_as_running_again_as_soon_as_it_goes_on",
        "test_locks.py::test_a_process_that_diverges_after_it_was_taken_over_does_not_say_so_in_the_others_folder",
        "test_disk.py::test_a_run_that_may_not_be_written_is_found_before_training",
        "test_disk.py::test_the_installed_script_reports_a_full_output_device",
    }
    for file in ("test_kill.py", "test_signals.py", "test_locks.py", "test_disk.py", "test_damaged_checkpoints.py"):
        for name in re.findall(r"^def (test_\w+)\(", (HERE / file).read_text(), re.MULTILINE):
            assert f"{file}::{name}" in named | elsewhere, name
