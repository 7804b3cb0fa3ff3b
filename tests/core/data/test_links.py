import pytest
from wan_train.core.data.links import files_below, is_file, is_folder, leads_within
from wan_train.core.data.scan import scan_folder
from wan_train.core.errors import DatasetError
from wan_train.core.settings.dataset import DatasetOptions

OPTIONS = DatasetOptions(width=64, height=48, num_frames=9)


@pytest.fixture
def link():
    def make(place, target):
        try:
            place.symlink_to(target, target_is_directory=target.is_dir())
        except OSError:
            pytest.skip("links are not permitted here")

    return make


def test_files_in_linked_folders_are_found_once(tmp_path, link):
    own, other = tmp_path / "own", tmp_path / "other"
    (own / "sub").mkdir(parents=True)
    other.mkdir()
    for path in (own / "a", own / "sub" / "b", other / "c"):
        path.write_text("x")
    link(own / "linked", other)
    link(own / "twice", other)
    link(own / "sub" / "loop", own)
    link(own / "gone", tmp_path / "absent")
    assert [path.relative_to(own).as_posix() for path in files_below(own)] == ["a", "linked/c", "sub/b"]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "absent"])
def test_a_name_that_no_file_can_have_is_no_file(tmp_path, name):
    assert not is_file(tmp_path / name)
    assert not is_folder(tmp_path / name)


def test_where_a_link_leads(tmp_path, link):
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    link(own / "out", other)
    link(own / "loop", own / "loop")
    assert leads_within(own / "anything", [own])
    assert not leads_within(own / "out", [own])
    assert leads_within(own / "out", [own, other])
    assert not leads_within(own / "loop", [own])
    assert not leads_within(own / ".." / "other", [own])


def test_a_link_in_a_dataset_reads_nothing_from_elsewhere(folder, make, tmp_path, link):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    make.image(elsewhere / "far.png")
    for name in ("own", "other"):
        make.image(folder / f"{name}.png")
    (folder / "other.txt").write_text("mine")
    link(folder / "own.txt", secret)
    link(folder / "linked", elsewhere)
    (elsewhere / "far.txt").write_text("far")
    found = scan_folder(folder, OPTIONS, within=[])
    assert found.captions == ("mine",)
    skipped = {note.name: note.reason for note in found.notes if note.action == "skipped"}
    assert set(skipped) == {"own.txt", "linked/far.png", "linked/far.txt"}
    assert all("leads outside the dataset folders" in reason for reason in skipped.values())
    allowed = scan_folder(folder, OPTIONS, within=[elsewhere])
    assert allowed.captions == ("far", "mine")
    assert set(scan_folder(folder, OPTIONS).captions) == {"far", "mine", "a secret"}  # the command line: the user's own


def test_a_folder_of_nothing_but_such_links_says_why(folder, make, tmp_path, link):
    make.image(tmp_path / "far.png")
    link(folder / "far.png", tmp_path / "far.png")
    with pytest.raises(DatasetError, match=r"no images or clips \(far.png: skipped: a link that leads outside"):
        scan_folder(folder, OPTIONS, within=[])
