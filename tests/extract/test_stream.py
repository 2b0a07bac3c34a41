"""Reading many files: in their order, in processes with limits, with a report."""

import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pdf_files import drawn, huge, outcome, slow, some_files
from reportlab.pdfgen.canvas import Canvas

from e2erag.extract import Box, Document, Page, ReadError, Report, Unit, read, read_many, read_report, stream
from e2erag.extract import worker as of_worker
from e2erag.extract.pack import unpack
from e2erag.extract.read import attempt
from e2erag.extract.stream import MEMORY
from e2erag.extract.worker import Worker

STREAM = sys.modules["e2erag.extract.stream"]  # the package has the function under that name
NTSB = sorted((Path(__file__).parents[2] / "examples" / "ntsb").glob("*.pdf"))
linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")


def children() -> set[int]:
    """Processes that this one has started, zombies too."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return some_files(tmp_path / "in")


# Order, and how much is under way


def test_processes_give_what_one_process_gives_in_the_same_order(folder: Path) -> None:
    """Documents and errors, in the place of their files."""
    alone = [outcome(item) for item in stream(folder, workers=0)]
    assert [outcome(item) for item in stream(folder, workers=2)] == alone
    assert [Path(item.file).name for item in stream(folder, workers=2)] == sorted(os.listdir(folder))
    documents, errors = read_many(folder, workers=2)
    assert (len(documents), len(errors)) == (10, 2)
    assert documents[0] == read(folder / "0.pdf")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_only_a_few_files_are_ahead(folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two workers no more than nine are begun when the first one is taken."""
    begun = []
    begin = STREAM._Job.begin
    monkeypatch.setattr(STREAM._Job, "begin", lambda self, path: begun.append(path) or begin(self, path))
    with stream([drawn(folder / f"x{n}.pdf", "x") for n in range(30)], workers=workers) as found:
        for taken in range(1, 4):
            next(found)
            assert len(begun) == taken + STREAM.AHEAD * workers


def test_a_single_small_file_is_read_in_a_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes can ask for any time and memory. As many processes as files and cores; 0 asks for none."""
    started = []
    start = Worker._start
    monkeypatch.setattr(Worker, "_start", lambda self: started.append(self) or start(self))
    monkeypatch.setattr(STREAM, "_cores", lambda: 2)
    files = [drawn(folder / f"x{n}.pdf", "x") for n in range(3)]
    for count in (1, 2, 3):
        del started[:]
        assert len(read_many(files[:count])[0]) == count
        assert len(started) == min(count, 2)
    del started[:]
    read_many(files, workers=0)
    assert not started


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers is 0 or more, seconds .* got workers=-1"),
        ({"seconds": 0.0}, "are positive"),
        ({"memory": 0}, "are positive"),
        ({"workers": 0, "seconds": 9.0}, "with workers=0 there are none: leave them out"),
        ({"engine": "acrobat"}, "engine is one of"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(options: dict[str, object], message: str) -> None:
    """At the call, not with the first file."""
    with pytest.raises(ValueError, match=message):
        stream("none.pdf", **options)  # type: ignore[arg-type]


# Limits


def test_file_over_its_time_costs_only_itself(folder: Path) -> None:
    """The file after it is read by a new process, by the same worker."""
    files = [folder / "0.pdf", slow(folder / "s.pdf"), folder / "1.pdf"]
    begin = time.monotonic()
    first, error, last = stream(files, workers=1, engine="pypdf", seconds=0.2)
    assert time.monotonic() - begin < 8
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert isinstance(error, ReadError)
    # 0.2 s, and as much again for every MB: the file has 3.8
    assert error.reason == "is not read after 1 s: give it more (seconds=…), or leave it out"


def test_file_over_its_memory_costs_only_itself(folder: Path) -> None:
    """400 MB in a worker that may have 300."""
    files = [folder / "0.pdf", huge(folder / "h.pdf"), folder / "1.pdf"]
    first, error, last = stream(files, workers=1, memory=300 << 20)
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert isinstance(error, ReadError)
    assert error.reason == "needs more than 300 MB to be read: give it more (memory=…), or leave it out"


def test_a_document_too_large_for_its_caller_is_told_as_that(folder: Path) -> None:
    """Who unpacks it needs several times as much: an eighth of a worker's memory is as much as it may send."""
    reason, packed = of_worker._read(attempt, folder / "0.pdf", None, MEMORY)
    assert reason == ""
    assert len(packed) > 100
    assert of_worker._read(attempt, folder / "0.pdf", None, 8 * len(packed)) == ("", packed)
    assert of_worker._read(attempt, folder / "0.pdf", None, 8 * len(packed) - 8) == (None, b"")


BALLAST = r"""
import sys
from e2erag.extract import read_many
held = b"x" * (700 << 20)
documents, errors = read_many(sys.argv[1], workers=1, engine="pypdf", memory=300 << 20)
print(len(documents), *errors)
"""


def test_what_the_caller_holds_is_not_its_processes(tmp_path: Path) -> None:
    """A caller of 700 MB, and a file that takes a process of 300 some seconds: the first look would end it."""
    canvas = Canvas(str(tmp_path / "s.pdf"), pageCompression=0)
    canvas._code.append("q " * 400_000)
    canvas.drawString(72, 700, "slow")
    canvas.save()
    run = subprocess.run([sys.executable, "-c", BALLAST, tmp_path / "s.pdf"], capture_output=True, text=True)
    assert run.stdout == "1\n", run


def test_process_that_was_killed_is_replaced(folder: Path) -> None:
    """A file isn't blamed for what happened to the process before it."""
    worker = Worker(1 << 30)
    try:
        for _ in range(2):
            answer = worker.read(folder / "0.pdf", None, 60.0)
            assert unpack(answer.packed, "x").units[0].text == "file 0"
            assert worker.process is not None
            worker.process.kill()
    finally:
        worker.close()


def test_file_that_ends_its_process_says_how(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, the second time in a fresh process; then it is the file's fault."""
    asked = []
    worker = Worker(1 << 30)
    worker.read(folder / "0.pdf", None, 60.0)
    send = sys.modules["e2erag.extract.worker"]._send

    def kill(pipe: object, data: bytes) -> None:
        asked.append(data)
        send(pipe, data)
        assert worker.process is not None
        os.killpg(worker.process.pid, signal.SIGSEGV)

    monkeypatch.setattr("e2erag.extract.worker._send", kill)
    answer = worker.read(slow(folder / "s.pdf"), "pypdf", 60.0)
    worker.close()
    assert len(asked) == 2
    assert answer.reason == (
        "made the process that reads it end (SIGSEGV), perhaps for want of more than 1,024 MB: "
        "give it more (memory=…), or try another engine"
    )
    assert not answer.lasting


def test_no_process_at_all_is_an_error_with_a_way_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a thousand files that seem broken."""
    monkeypatch.setattr(sys, "path", ["/nowhere"])
    with pytest.raises(RuntimeError, match=r"no process to read in .*No module named .*; workers=0 reads without"):
        read_many(folder, workers=2)


# Ends


@linux
def test_nothing_is_left_over(folder: Path) -> None:
    """No process, zombie, pipe or thread: after the last file, a loop left early, a timeout, a crash of the caller."""
    list(stream(folder, workers=2))  # what is opened once and for all
    gc.collect()  # files of earlier tests, which would close meanwhile
    before, open_before = children(), descriptors()
    list(stream(folder, workers=2))
    assert (children(), descriptors()) == (before, open_before)
    for _ in stream(folder, workers=2):
        break
    assert (children(), descriptors()) == (before, open_before)
    list(stream([slow(folder / "s.pdf"), *folder.glob("?.pdf")], workers=2, engine="pypdf", seconds=0.2))
    assert (children(), descriptors()) == (before, open_before)

    def fail(_: Document) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        read_report([folder / "0.pdf", folder / "s.pdf"], fail, workers=2, engine="pypdf")
    assert (children(), descriptors()) == (before, open_before)


SCRIPT = r"""
import os, signal, sys
from e2erag.extract import stream
from e2erag.extract.worker import Worker
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
start = Worker._start
def started(self):
    process = start(self)
    os.write(1, b"%d\n" % process.pid)  # whole, whichever thread comes first
    return process
Worker._start = started
for found in stream(sys.argv[1:], workers=2, engine="pypdf"):
    print(type(found).__name__, flush=True)
"""


def script(*files: Path, code: str = SCRIPT) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, files)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def gone(pid: int) -> bool:
    """Within five seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # ended, and its new parent is slow to notice
            return True
        time.sleep(0.05)
    return False


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_caller_takes_its_processes_along(tmp_path: Path, number: int) -> None:
    """Ctrl-C while both read; and a caller that is killed, and can end nobody itself. Long before a file is read, on a
    busy machine too."""
    files = [slow(tmp_path / f"{n}.pdf", pages=4) for n in range(3)]
    with script(*files) as caller:
        assert caller.stdout is not None
        pids = [int(caller.stdout.readline()) for _ in range(2)]
        time.sleep(0.3)
        caller.send_signal(number)
        _, said = caller.communicate(timeout=25)
    assert caller.returncode != 0
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    assert all(gone(pid) for pid in pids)


def test_script_without_a_main_guard_runs_once(folder: Path) -> None:
    """Workers don't import the caller's main module again; and they import what it imports, wherever it runs."""
    code = "from e2erag.extract import read_many\nprint(*map(len, read_many(__import__('sys').argv[1], workers=2)))"
    path = folder.parent / "main.py"
    path.write_text(code)
    (folder / "json.py").write_text("raise SystemExit('the working directory came first')")
    run = subprocess.run([sys.executable, str(path), str(folder)], cwd=folder, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("10 2\n", "")


def test_worker_needs_no_torch() -> None:
    """Its import takes a fifth of a second, with torch it would take seconds."""
    code = "import sys, e2erag.extract.worker, e2erag.extract.read; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# A thousand files


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """990 small files and ten that are broken in ten ways."""
    folder = tmp_path_factory.mktemp("thousand")
    whole = drawn(folder / "one.pdf", "one page").read_bytes()
    (folder / "one.pdf").unlink()
    for n in range(990):
        (folder / f"{n:04}.pdf").write_bytes(whole + b"%% %d" % n)
    report = NTSB[0].read_bytes()
    broken = [
        b"", b"<html>", b"%PDF-1.7\n", report[:9000], b"%PDF" + bytes(5000), b"\0" * 4096, b"%PDF-1.4 trailer<<>>",
        b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj trailer<</Root 1 0 R>>", b"PK\3\4", whole[:300],
    ]  # fmt: skip
    for n, data in enumerate(broken):
        (folder / f"{n * 99:04}-broken.pdf").write_bytes(data)
    return folder


def test_a_thousand_files_with_ten_broken_ones(thousand: Path) -> None:
    """990 are read, ten are in the report with a reason each, and the exit code is that of a part."""
    begin = time.monotonic()
    names = []
    report = read_report(thousand, lambda document: names.append(document.name), workers=2)
    assert time.monotonic() - begin < 20
    assert (report.read, len(report.failed), report.pages, report.cached) == (990, 10, 990, 0)
    assert names == [f"{n:04}.pdf" for n in range(990)]
    assert [Path(error.file).name for error in report.failed] == [f"{n * 99:04}-broken.pdf" for n in range(10)]
    assert report.exit_code == 3
    assert "read     | 990 files, 990 pages in" in str(report)
    assert str(report).count("-broken.pdf") == 10


# The report


def test_report_tells_what_was_read_and_what_was_not() -> None:
    """Numbers first, then each file and each stretch of pages; nothing that a terminal would obey."""
    box = Box(0, 0, 1, 1)
    pages = [Page(n, 9.0, 9.0, (Unit("x", n, 1, box, 9.0),) if n == 1 else (), (), "" if n == 1 else "is a scan: …")
             for n in range(1, 5)]  # fmt: skip
    report = Report(seconds=2.0, cached=1)
    report.add(Document("a.pdf", "", tuple(pages)))
    report.add(ReadError("b\n\x1b[31m\udcff.pdf", "is empty"))
    assert str(report).splitlines() == [
        "read     | 1 file, 4 pages in 2.0 s, 2 pages/s",
        "cached   | 1 from the cache",
        "failed   | 1 file",
        "unread   | 3 pages of 1 file read",
        "",
        r"failed   | b\n\x1b[31m\udcff.pdf | is empty",
        r"unread   | a.pdf                 | pages 2–4: is a scan: …",
    ]
    told = json.loads(json.dumps(report.to_json()))
    assert told["failed"] == [{"file": "b\n\x1b[31m\udcff.pdf", "reason": "is empty"}]
    assert told["unread"] == {"a.pdf": dict.fromkeys("234", "is a scan: …")}
    assert (told["read"], told["pages"], told["cached"], told["exit_code"]) == (1, 4, 1, 3)


@pytest.mark.parametrize(("read", "failed", "code"), [(2, 0, 0), (2, 1, 3), (0, 1, 1), (0, 0, 1)])
def test_exit_code_says_whether_all_or_some_or_nothing_was_read(read: int, failed: int, code: int) -> None:
    """0, 3 and 1; 2 is left to a wrong command line."""
    assert Report(read=read, failed=[ReadError("a", "b")] * failed).exit_code == code


def test_report_counts_while_files_come(folder: Path) -> None:
    """After each file, what has come so far; a pattern without files is a failure too."""
    with stream([folder / "0.pdf", folder / "*.none", folder / "1.pdf"]) as found:
        seen = [(found.report.read, len(found.report.failed)) for _ in found]
    assert seen == [(1, 0), (1, 1), (2, 1)]
    assert found.report.seconds > 0


class Terminal(io.StringIO):
    """What a bar is drawn on."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("progress", "kind"), [(True, Terminal), (False, Terminal), (True, io.StringIO)])
def test_a_terminal_shows_how_far_it_is(
    folder: Path, progress: bool, kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of all, pages a second and failures; nothing where that isn't wanted, or is written to a file."""
    screen = kind()
    monkeypatch.setattr(sys, "stderr", screen)
    report = read_report(folder, workers=0, progress=progress)
    last = screen.getvalue().split("\r")[-1].strip()
    if not (progress and kind is Terminal):
        assert last == ""
        return
    assert last.startswith("read: 100%")
    assert " 12/12 " in last
    assert len(report.failed) == 2
    assert re.search(r"pages/s=[\d.,]+.*failed=2", last)


@linux
def test_a_worker_ends_by_itself_at_last() -> None:
    """Where nobody waits for it any more: some processor time beyond what its file may take."""
    code = "import os, resource, time; from e2erag.extract.worker import _limit_time; _limit_time(7); "
    code += "print(resource.getrlimit(resource.RLIMIT_CPU)[0] - time.process_time(), os.cpu_count())"
    left, cores = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert 0 <= float(left) - 12 * int(cores) <= 1
