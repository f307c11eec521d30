"""Doors to the disk."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from export3d import files
from export3d.errors import BadImage, CheckpointError, OutputError

as_root = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        (b"avif mif1", "AVIF"),
        (b"avis msf1", "AVIF"),
        (b"mif1 mif1avif", "AVIF"),
        (b"heic mif1heic", "HEIC"),
        (b"heix mif1", "HEIC"),
        (b"hevc msf1", "HEIC"),
        (b"mif1 mif1heic", "HEIC"),
        (b"mif1 ", "HEIC"),
        (b"isom avif", None),
        (b"qt   qt  ", None),
        (b"M4V  heic", None),
    ],
)
def test_brands_tell_images_from_videos(brands: bytes, kind: str | None) -> None:
    """The table is shared by the readers of images and of videos. Brands beyond the box's end do not count."""
    major, compatible = brands[:4], brands[5:]
    box = b"ftyp" + major + bytes(4) + compatible
    head = (len(box) + 4).to_bytes(4, "big") + box + b"avifavif"
    assert files.still_kind(head) == kind
    named = {"AVIF": "an AVIF image", "HEIC": "a HEIC image", None: "a video"}[kind]
    assert files.foreign_kind(head) == named


def test_reasons_are_short_and_of_one_line() -> None:
    assert files.reason(OSError(28, "written here", "a.png")) == "no space left on device"
    assert files.reason(ValueError("\nbad header\nat byte 3")) == "bad header"
    assert files.reason(TypeError()) == "TypeError"
    assert files.reason(ValueError("x" * 5000)) == "x" * 120 + "…"


def test_a_file_appears_whole_under_its_name(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "out.bin", b"new")
    assert (tmp_path / "out.bin").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")

    def half() -> None:
        with files.replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_the_temporary_file_lies_beside_the_target_and_keeps_its_suffix(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "clip.mp4") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".mp4"
        assert temporary.name.startswith(".")


def test_a_new_file_has_the_rights_that_any_new_file_has(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"x")
    files.write_bytes(tmp_path / "ours", b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_output_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"there is no folder .*no; create it"):
        files.write_bytes(tmp_path / "no" / "out.bin", b"x")


def test_an_output_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; add a file name"):
        files.write_bytes(tmp_path, b"x")


@pytest.mark.skipif(as_root, reason="the superuser may write everywhere")
def test_an_output_in_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="permission denied"):
            files.write_bytes(tmp_path / "out.bin", b"x")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder where nobody may create files")
def test_an_unwritable_output_is_refused_even_for_the_superuser() -> None:
    with pytest.raises(OutputError, match=r"cannot write /proc/self/out\.bin"):
        files.write_bytes("/proc/self/out.bin", b"x")


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on file sizes stands for the full disk: the same call fails, at the same place."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from export3d import files, errors\n"
        "try: files.write_bytes(sys.argv[1], bytes(5000))\n"
        "except errors.OutputError as error: print(error); sys.exit(2)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out.bin")], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert str(tmp_path / "out.bin") in done.stdout
    assert "choose another folder" in done.stdout
    assert os.listdir(tmp_path) == []


def test_the_remedy_for_no_space_is_space() -> None:
    sentence = str(files.write_failure(Path("out.mp4"), OSError(28, "No space left on device")))
    assert sentence == "cannot write out.mp4: no space left on device; free some space or choose another folder"


@pytest.mark.parametrize("name", ["missing.png", "no/such/folder.png", "nul\0character.png"])
def test_an_input_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadImage, match=r"(does not exist|cannot be opened)"):
        files.check_input(tmp_path / name, BadImage, "an image")


def test_a_folder_and_an_empty_file_are_no_input(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="is a folder, not an image"):
        files.check_input(tmp_path, BadImage, "an image")
    (tmp_path / "empty.png").touch()
    with pytest.raises(BadImage, match=r"empty\.png is empty"):
        files.check_input(tmp_path / "empty.png", BadImage, "an image")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="not a regular file"):
        files.check_input(tmp_path / "pipe.png", BadImage, "an image")


@pytest.mark.skipif(as_root or sys.platform == "win32", reason="the superuser may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(BadImage, match="permission denied"):
        files.check_input(tmp_path / "secret.png", BadImage, "an image")


def test_a_link_stays_and_the_file_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "kept.bin"
    (tmp_path / "link.bin").symlink_to(target)
    for data in (b"created", b"replaced"):  # the link points to nothing at first
        files.write_bytes(tmp_path / "link.bin", data)
        assert target.read_bytes() == data
    assert (tmp_path / "link.bin").is_symlink()
    assert os.listdir(target.parent) == ["kept.bin"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no other file system")
def test_a_file_is_delivered_to_another_file_system(tmp_path: Path) -> None:
    made = tmp_path / "made.mp4"
    made.write_bytes(b"whole")
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if Path(elsewhere).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("no other file system")
        files.deliver(made, Path(elsewhere) / "clip.mp4")
        assert [(path.name, path.read_bytes()) for path in Path(elsewhere).iterdir()] == [("clip.mp4", b"whole")]
        with pytest.raises(OutputError, match="there is no folder"):
            files.deliver(made, Path(elsewhere) / "nowhere" / "clip.mp4")


def test_a_replaced_file_passes_on_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(b"old")
    (tmp_path / "private").chmod(0o600)
    files.write_bytes(tmp_path / "private", b"new")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


@pytest.mark.skipif(as_root, reason="the superuser may write everything")
def test_a_write_protected_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"old")
    (tmp_path / "precious").chmod(0o400)
    with pytest.raises(OutputError, match="write-protected"):
        files.write_bytes(tmp_path / "precious", b"new")
    assert (tmp_path / "precious").read_bytes() == b"old"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_pipes_and_devices_are_not_replaced_by_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(OutputError, match="a pipe or a device"):
            files.write_bytes(path, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()


def test_what_lies_at_a_path_is_told_or_a_sentence_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert files.kind_at(tmp_path) == "folder"
    assert files.kind_at(tmp_path / "file") == "file"
    assert files.kind_at(os.devnull) == "other"
    assert files.kind_at(tmp_path / "missing") is files.kind_at(tmp_path / "file" / "inside") is None
    for name in ("n" * 300, "nul\0character", "loop"):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            files.kind_at(tmp_path / name, CheckpointError)


def test_a_url_is_not_taken_for_a_folder() -> None:
    with pytest.raises(OutputError, match=r"s3:.bucket.out is the address of a store, .*; give a folder"):
        files.make_folder("s3://bucket/out")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are text")
def test_a_folder_whose_name_is_no_text_gets_no_outputs(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not UTF-8"):
        files.make_folder(tmp_path / os.fsdecode(b"\xff"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows other permissions")
def test_a_private_file_is_private_whatever_was_there(tmp_path: Path) -> None:
    target = tmp_path / "secret.json"
    target.write_text("old")
    target.chmod(0o644)
    with files.replacing(target, 0o600) as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_text() == "new"


def test_a_lock_is_free_again_after_its_block_and_after_a_failure(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), files.locked(tmp_path / "list.json"):
            raise KeyError


def test_a_lock_keeps_others_out(tmp_path: Path) -> None:
    code = "import sys; from export3d import files\nwith files.locked(sys.argv[1]): print('in', flush=True); input()"
    target = tmp_path / "list.json"
    command = [sys.executable, "-c", code, str(target)]
    with files.locked(target):
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.3)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    other.kill()
    other.communicate()
    with files.locked(target):  # freed by the end of the process
        pass


def test_a_lock_that_stays_taken_is_told_after_a_while(tmp_path: Path) -> None:
    """As by a process that is stopped."""
    late = pytest.raises(OutputError, match=r"list\.json: another program has kept it locked for 0\.1 s; end that")
    with files.locked(tmp_path / "list.json"), late, files.locked(tmp_path / "list.json", timeout_s=0.1):
        pass


def test_a_lock_without_a_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"), files.locked(tmp_path / "none" / "list.json"):
        pass
