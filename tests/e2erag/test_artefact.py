import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from e2erag import artefact
from e2erag.artefact import ManifestError, check_folder, check_place, check_target, sha256, write_file, write_folder

SEED = 20


def save(target: Path, text: str, **options: bool) -> None:
    with write_folder(target, **options) as folder:
        (folder / "deep").mkdir()
        (folder / "a.txt").write_text(text)
        (folder / "deep" / "b.txt").write_text(text * 1000)


def content(target: Path) -> str:
    text = (target / "a.txt").read_text()
    assert (target / "deep" / "b.txt").read_text() == text * 1000
    return text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_folder_lists_each_file_with_its_hash_and_size(tmp_path: Path) -> None:
    """sha256("abc") is the standard's own example, so the number can be looked up."""
    with write_folder(tmp_path / "new" / "model") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "abc").write_bytes(b"abc")
    manifest = check_folder(tmp_path / "new" / "model")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert manifest["files"] == {"deep/abc": {"sha256": digest, "size": 3}}
    assert manifest["format_version"] == 1
    assert names(tmp_path / "new") == ["model"]


def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    """A file in the path's way, for a folder and for a file; what is only not there yet is no hindrance."""
    (tmp_path / "file.py").write_text("mine")
    below = tmp_path / "file.py" / "x" / "y"
    for write in (check_target, check_place, lambda path: write_file(path, "x"), lambda path: save(path, "x")):
        with pytest.raises(NotADirectoryError, match=r"file\.py is a file, and .* was to be written below it"):
            write(below)
    with pytest.raises(NotADirectoryError, match=r"file\.py is a file, and a folder was to be written there"):
        check_place(tmp_path / "file.py")
    with pytest.raises(FileExistsError, match="is a file, and a folder was to be written there"):
        check_target(tmp_path / "file.py")
    check_target(tmp_path / "new" / "deep")
    assert names(tmp_path) == ["file.py"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_told(tmp_path: Path) -> None:
    """By the nearest folder that is there."""
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=rf"{tmp_path} may not be written to\. Choose another place"):
        check_place(tmp_path / "a" / "b")


def test_a_file_name_that_is_not_utf_8_is_listed(tmp_path: Path) -> None:
    """Linux takes any bytes for a name."""
    try:
        with write_folder(tmp_path / "model") as folder:
            (folder / os.fsdecode(b"caf\xe9")).write_bytes(b"abc")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert list(check_folder(tmp_path / "model")["files"]) == [os.fsdecode(b"caf\xe9")]


def test_a_hash_in_blocks_is_the_hash_of_the_whole(tmp_path: Path) -> None:
    """A file of two and a bit blocks hashes like its bytes in one piece."""
    import hashlib

    content = random.Random(SEED).randbytes((2 << 20) + 7)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_saving_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    """A file of the old folder that the new one lacks is gone, and no sibling is left."""
    save(tmp_path / "model", "old")
    with write_folder(tmp_path / "model") as folder:
        (folder / "c.txt").write_text("new")
    assert sorted(check_folder(tmp_path / "model")["files"]) == ["c.txt"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_a_failed_block_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    """Ctrl-C counts as a failure too."""
    save(tmp_path / "model", "old")
    with pytest.raises(error), write_folder(tmp_path / "model") as folder:  # noqa: PT012 - the block is the subject
        (folder / "a.txt").write_text("half")
        raise error
    assert check_folder(tmp_path / "model")
    assert content(tmp_path / "model") == "old"
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_between_the_two_renames_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """The rename that gives the new folder its name fails; the one that gives the old its name back doesn't."""
    save(tmp_path / "model", "old")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if ".partial-" in source.name:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(type(error)):
        save(tmp_path / "model", "new")
    assert content(tmp_path / "model") == "old"
    assert names(tmp_path) == ["model"]


def test_a_strangers_folder_is_not_replaced(tmp_path: Path) -> None:
    """The refusal comes before the block, names the folder and says what to do."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis is not empty and not a folder that e2erag saved.*Choose"):
        save(tmp_path / "thesis", "new")
    (tmp_path / "thesis" / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(FileExistsError, match="written_by must be 'e2erag'"):
        save(tmp_path / "thesis", "new")
    assert names(tmp_path / "thesis") == ["chapter.tex", "manifest.json"]


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    """The refusal says what is there and what was to be written."""
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="notes is a file, and a folder was to be written there"):
        save(tmp_path / "notes", "new")


def test_a_file_put_into_a_saved_folder_is_not_lost_by_saving_again(tmp_path: Path) -> None:
    """The manifest lets us replace what we wrote, not what somebody added."""
    save(tmp_path / "model", "old")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which e2erag didn't save there and would lose"):
        save(tmp_path / "model", "new")
    assert content(tmp_path / "model") == "old"


def test_an_empty_folder_may_be_written_to(tmp_path: Path) -> None:
    """There's nothing in it to lose."""
    (tmp_path / "model").mkdir()
    save(tmp_path / "model", "new")
    assert check_folder(tmp_path / "model")
    assert names(tmp_path) == ["model"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    """What the link points to is replaced."""
    save(tmp_path / "v1", "old")
    (tmp_path / "latest").symlink_to("v1")
    save(tmp_path / "latest", "new")
    assert (tmp_path / "latest").is_symlink()
    assert content(tmp_path / "v1") == "new"


def test_with_first_wins_the_folder_that_is_there_stays(tmp_path: Path) -> None:
    """The second of two processes that fill a cache drops its own copy."""
    save(tmp_path / "model", "first", first_wins=True)
    save(tmp_path / "model", "second", first_wins=True)
    assert content(tmp_path / "model") == "first"
    assert names(tmp_path) == ["model"]


def test_writers_at_the_same_time_all_end_well(tmp_path: Path) -> None:
    """Four threads replace one folder ten times each; a whole folder stands at the end and nothing else."""
    failures: list[BaseException] = []

    def write(text: str) -> None:
        try:
            for _ in range(10):
                save(tmp_path / "model", text)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    check_folder(tmp_path / "model")
    assert content(tmp_path / "model") in "abcd"
    assert names(tmp_path) == ["model"]


# A process that kills itself just before its n-th file operation (each open, mkdir, rename, rmdir and unlink raises
# an audit event), or prints how many there are.
KILLED = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("artefact", sys.argv[1])
artefact = importlib.util.module_from_spec(spec)
spec.loader.exec_module(artefact)
target, last, count, armed = Path(sys.argv[2]), int(sys.argv[3]), 0, False
def hook(event, arguments):
    global count
    if armed and (event == "open" or event.startswith(("os.", "shutil."))):
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
armed = True
with artefact.write_folder(target) as folder:
    (folder / "deep").mkdir()
    (folder / "a.txt").write_text("new")
    (folder / "deep" / "b.txt").write_text("new" * 1000)
armed = False
print(count)
"""


def run_killed(target: Path, last: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-c", KILLED, artefact.__file__, str(target), str(last)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_process_killed_at_any_point_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    """Whichever file operation it dies before, the folder reads whole and the next save leaves nothing else behind."""
    target = tmp_path / "model"
    save(target, "old")
    total = int(run_killed(target, 0).stdout)
    points = sorted(random.Random(SEED).sample(range(1, total + 1), min(total, 24)))
    seen = set()
    for point in points:
        save(target, "old")
        assert run_killed(target, point).returncode == -signal.SIGKILL
        missing = not target.exists()
        check_folder(target)
        text = content(target)
        assert text in ("old", "new")
        seen.add((missing, text))
        save(target, "next")
        assert names(tmp_path) == ["model"], point
        assert content(target) == "next"
    assert {(False, "old"), (False, "new")} <= seen


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_process_killed_between_the_two_renames_is_repaired_by_reading(tmp_path: Path) -> None:
    """At that point, and no other, the name is missing; reading the folder gives the old one its name back."""
    target = tmp_path / "model"
    save(target, "old")
    total = int(run_killed(target, 0).stdout)
    gone = 0
    for point in range(total, 0, -1):
        save(target, "old")
        run_killed(target, point)
        if not target.exists():
            gone += 1
            check_folder(target)
            assert content(target) == "old"
        elif gone:
            break
    assert gone == 1


def test_a_reader_beside_a_writer_always_finds_a_whole_folder(tmp_path: Path) -> None:
    """It reads while the folder is replaced thirty times, as often as a reader needs to get a word in."""
    save(tmp_path / "model", "a")

    def write() -> None:
        for _ in range(30):
            save(tmp_path / "model", "b")
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(check_folder(tmp_path / "model")["files"])
    writer.join()
    assert seen
    assert all(files.keys() == seen[0].keys() for files in seen)


def test_leftovers_of_the_living_and_of_other_machines_are_kept(tmp_path: Path) -> None:
    """Only what belonged to a dead process of this machine goes at once; another machine's goes after a day."""
    living = tmp_path / f".model.partial-{os.getpid()}-{artefact._HOST}00000000"
    dead = tmp_path / f".model.partial-{2**22 + 1}-{artefact._HOST}00000000"  # above any Linux process id
    elsewhere = tmp_path / f".model.partial-{2**22 + 1}-abcdef00000000"
    forgotten = tmp_path / f".model.partial-{2**22 + 1}-abcdef00000001"
    another = tmp_path / f".model.partial.partial-{2**22 + 1}-{artefact._HOST}00000000"
    for folder in (living, dead, elsewhere, forgotten, another):
        folder.mkdir()
    os.utime(forgotten, (0, 0))
    save(tmp_path / "model", "new")
    assert names(tmp_path) == sorted([living.name, elsewhere.name, another.name, "model"])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """So is the way out."""
    with pytest.raises(ManifestError, match=r"nowhere is not a folder.*Check the path"):
        check_folder(tmp_path / "nowhere")


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    """It may be a partial copy, or another program's."""
    with pytest.raises(ManifestError, match=r"manifest\.json is missing.*save it again or fetch it afresh"):
        check_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 10])
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    """The error says that it's the manifest, and what to do."""
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ManifestError, match=r"manifest\.json can't be read as JSON.*Save it again or fetch it afresh"):
        check_folder(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """It's listed, so the folder isn't whole."""
    save(tmp_path / "model", "x")
    (tmp_path / "model" / "deep" / "b.txt").unlink()
    with pytest.raises(ManifestError, match=r"b\.txt is missing, and manifest\.json lists it\. Save it again"):
        check_folder(tmp_path / "model")


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    """A change of one byte shows in the hash, and one of length in the size alone."""
    save(tmp_path / "model", "x")
    (tmp_path / "model" / "a.txt").write_text("y")
    check_folder(tmp_path / "model", hashes=False)
    with pytest.raises(ManifestError, match=r"a\.txt has changed: its sha256 isn't the one.*Save it again"):
        check_folder(tmp_path / "model")
    (tmp_path / "model" / "a.txt").write_text("yy")
    with pytest.raises(ManifestError, match=r"a\.txt has 2 bytes, and manifest\.json says 1\. Save it again"):
        check_folder(tmp_path / "model", hashes=False)


def test_an_unlisted_file_is_named(tmp_path: Path) -> None:
    """What a file manager drops into each folder is the exception."""
    save(tmp_path / "model", "x")
    (tmp_path / "model" / ".DS_Store").write_text("icons")
    check_folder(tmp_path / "model")
    (tmp_path / "model" / "deep" / "adapter.py").write_text("surprise")
    with pytest.raises(ManifestError, match=r"adapter\.py is not listed in manifest\.json.*Move it elsewhere"):
        check_folder(tmp_path / "model")


def test_a_newer_format_asks_for_a_newer_library(tmp_path: Path) -> None:
    """The manifest knows which version wrote it."""
    save(tmp_path / "model", "x")
    edit_manifest(tmp_path / "model", format_version=2, e2erag_version="9.1")
    with pytest.raises(ManifestError, match=r"format version 2, and this e2erag reads up to 1\. Install e2erag 9\.1"):
        check_folder(tmp_path / "model")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "deep/../../x", "..\\x", "C:\\x", "C:x", "\\\\host\\x", ""])
def test_a_listed_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Windows' ways of leaving are refused everywhere, for a folder travels."""
    save(tmp_path / "model", "x")
    edit_manifest(tmp_path / "model", files={name: {"sha256": "0", "size": 1}})
    with pytest.raises(ManifestError, match="a listed path must stay inside the folder"):
        check_folder(tmp_path / "model")


@pytest.mark.parametrize("files", [None, [], {"a.txt": "0"}, {"a.txt": {"sha256": 1, "size": 1}}])
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, files: object) -> None:
    """The error says which shape it must have."""
    save(tmp_path / "model", "x")
    edit_manifest(tmp_path / "model", files=files)
    with pytest.raises(ManifestError, match="must hold a format_version and, for each file, sha256 and size"):
        check_folder(tmp_path / "model")


def test_a_link_inside_a_folder_is_refused_by_writing_and_by_reading(tmp_path: Path) -> None:
    """What it points to could change without the folder changing."""
    with pytest.raises(ManifestError, match=r"weights is a symbolic link.*Put a copy of the file there"):  # noqa: SIM117 - the block is the subject
        with write_folder(tmp_path / "model") as folder:
            (folder / "weights").symlink_to("/etc/hostname")
    assert names(tmp_path) == []
    save(tmp_path / "model", "x")
    (tmp_path / "model" / "link").symlink_to("deep")
    with pytest.raises(ManifestError, match="link is a symbolic link"):
        check_folder(tmp_path / "model")


@pytest.mark.skipif(os.name == "nt", reason="named pipes")
def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """Hashing it would wait for ever."""
    save(tmp_path / "model", "x")
    os.mkfifo(tmp_path / "model" / "pipe")
    with pytest.raises(ManifestError, match="pipe is neither a file nor a folder"):
        check_folder(tmp_path / "model")


def test_a_file_named_like_the_manifest_is_refused(tmp_path: Path) -> None:
    """Ours would overwrite it."""
    with pytest.raises(ManifestError, match="give the file written there another name"):  # noqa: SIM117 - the block is the subject
        with write_folder(tmp_path / "model") as folder:
            (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(("content", "stored"), [("Größe\n", b"Gr\xc3\xb6\xc3\x9fe\n"), (b"\x00\xff", b"\x00\xff")])
def test_a_single_file_is_written_as_given(tmp_path: Path, content: str | bytes, stored: bytes) -> None:
    """Text becomes UTF-8 with its line ends kept, bytes stay, and no sibling is left."""
    write_file(tmp_path / "new" / "file", content)
    write_file(tmp_path / "new" / "file", content)
    assert (tmp_path / "new" / "file").read_bytes() == stored
    assert names(tmp_path / "new") == ["file"]


def test_a_single_file_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full just before the last step."""
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_a_private_file_stays_private(tmp_path: Path) -> None:
    """A new file would get the usual mode, readable by all."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o600)
    write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """The error says so."""
    with pytest.raises(IsADirectoryError, match="is a folder, and a file was to be written there"):
        write_file(tmp_path, "x")
