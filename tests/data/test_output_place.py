"""Where a data set may be made: not in place of its source, beside class folders it is no class, and by two at once."""

import pytest

from ssfnas_cli.data.build import build_dataset
from ssfnas_cli.errors import UsageError
from ssfnas_cli.settings import MakeDatasetSettings


def plan_of(root, **settings):
    return MakeDatasetSettings(root=str(root), **settings)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("place", ["", "a", "..", "a/../../train"])
def test_an_output_that_is_the_source_or_a_part_of_it_is_refused(make_folder, lines, place, force):
    root = make_folder({"a": 4, "b": 4}, {}) / "train"
    before = sorted(root.rglob("*"))
    with pytest.raises(UsageError, match=r"-o: .* --root .*: give another folder with -o"):
        build_dataset(plan_of(root, source="folder"), root / place, lines.append, force)
    assert sorted(root.rglob("*")) == before and lines == []


def test_a_class_folder_with_a_manifest_of_somebody_else_is_a_class(make_folder, tmp_path, lines):
    root = make_folder({"a": 4, "b": 4}, {}) / "train"
    (root / "a" / "manifest.json").write_text('{"name": "a", "files": 4}')
    (root / "b" / "manifest.json").write_text("[")
    assert build_dataset(plan_of(root, source="folder"), tmp_path / "out", lines.append).class_names == ["a", "b"]


def test_a_data_set_that_was_made_beside_the_classes_is_none_of_them(make_folder, lines):
    root = make_folder({"a": 4, "b": 4}, {}) / "train"
    plan = plan_of(root, source="folder")
    first = build_dataset(plan, root / "data-natural-seed0", lines.append)
    again = build_dataset(plan, root / "data-natural-seed0", lines.append)
    assert again.sha256 == first.sha256 and again.class_names == ["a", "b"]


def test_the_same_data_set_that_is_made_meanwhile_is_taken(make_folder, tmp_path):
    plan = plan_of(make_folder({"a": 4, "b": 4}, {"a": 2, "b": 2}), source="folder")
    output, told = tmp_path / "out", []

    def somebody_else(line):
        told.append(line)
        if not output.exists():
            build_dataset(plan, output, lambda line: None)

    assert build_dataset(plan, output, somebody_else).path == output
    assert f"{output}: another process has just made it" in told and "with the same contents" in told[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]
