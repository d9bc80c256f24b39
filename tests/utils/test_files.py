"""Where files can be written: asked before the work whose result they hold."""

import os

import pytest

from dynzoo.utils.files import check_place, write_atomically

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("name", ["new.json", "old.json", "a/b/new.json"])
def test_a_place_that_is_there_or_can_be_made(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").touch()
    before = sorted(tmp_path.rglob("*"))
    check_place(name)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is made
    write_atomically(name, b"{}")
    check_place(tmp_path / "a", folder=True)
    check_place(tmp_path / "new" / "folder", folder=True)


@pytest.mark.parametrize(
    ("name", "folder", "error", "message"),
    [
        ("folder", False, IsADirectoryError, "folder is a folder: choose"),
        ("file", True, NotADirectoryError, "file is a file: choose another folder"),
        ("file/new.json", False, NotADirectoryError, "cannot be written: .*file is not a folder"),
        ("file/new/er", True, NotADirectoryError, "cannot be written: .*file is not a folder"),
        ("gone/new.json", False, NotADirectoryError, "gone is not a folder"),
    ],
)
def test_what_is_in_the_way_is_named(name, folder, error, message, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(error, match=message):
        check_place(tmp_path / name, folder)


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may always
    with pytest.raises(PermissionError, match="may not be written to"):
        check_place(tmp_path / "new.json")
