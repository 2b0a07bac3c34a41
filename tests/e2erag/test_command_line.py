"""What the command line hands on."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from json import dumps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from docstring_parser import parse
from helpers import NTSB

from e2erag import RAG, RAGConfig
from e2erag.__main__ import NO_MEMORY, main
from e2erag.artefact import write_folder
from e2erag.generator import GeneratorConfig
from e2erag.retriever import ExactIndex, IndexConfig, RetrieverConfig
from e2erag.testing import tiny_document, tiny_rag
from e2erag.train import FitConfig


class Asked(Exception):
    """A system was asked for; nothing more is wanted."""


@pytest.mark.parametrize("door", ["flags", "yaml"])
def test_a_new_systems_options_come_through_every_door(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores and reading, from flags and from a YAML file, reach the system that is made."""
    seen: dict[str, Any] = {}

    def take(folder: str | None = None, **given: Any) -> RAG:
        seen.update(given, folder=folder)
        raise Asked

    monkeypatch.setattr(RAG, "from_pretrained", take)
    (tmp_path / "run.yaml").write_text(
        "retrieval: {gates: pool, lora: 8, bm25: 0.1}\nanswering: {reading: concat}\n"
        "generation: {max_tokens: 512, token_budget: 1024, held_tokens: 0}\n"
    )
    given = {
        "flags": "--retrieval.gates pool --retrieval.lora 8 --retrieval.bm25 0.1 --answering.reading concat "
        "--generation.max_tokens 512 --generation.token_budget 1024 --generation.held_tokens 0".split(),
        "yaml": ["--config", str(tmp_path / "run.yaml")],
    }[door]
    for command in (["fit", "x.pdf", str(NTSB / "train.jsonl"), "out"], ["index", "x.pdf", "out"]):
        seen.clear()
        monkeypatch.setattr(sys, "argv", ["e2erag", *command, *given])
        with pytest.raises(Asked):
            main()
        assert seen["retrieval"] == RetrieverConfig(gates="pool", lora=8, bm25=0.1)
        assert seen["config"] == RAGConfig(reading="concat")
        assert seen["generation"] == GeneratorConfig(max_tokens=512, token_budget=1024, held_tokens=0)


def test_a_saved_system_trains_over_an_index_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows are made there, and there they are after training; without --system there is none to place."""
    (tmp_path / "a.txt").write_text("the pilot was 85\nseats 4")
    (tmp_path / "q.jsonl").write_text('{"question": "seats ?", "answers": ["4"]}')
    rag = tiny_rag()
    rag.index([str(tmp_path / "a.txt")], progress=False)
    rag.save_pretrained(tmp_path / "system")
    call = ["fit", *(str(tmp_path / name) for name in ("a.txt", "q.jsonl", "out"))]
    settings = ["--settings.epochs=1", "--settings.k=1", "--settings.calibrate=1"]
    where = [f"--index.folder={tmp_path / 'rows'}", *settings]
    monkeypatch.setattr(sys, "argv", ["e2erag", *call, f"--system={tmp_path / 'system'}", *where])
    main()
    told = capsys.readouterr().out
    assert "saved to" in told
    assert "τ = " in told
    trained, placed = RAG.from_pretrained(tmp_path / "out"), ExactIndex.load(tmp_path / "rows")
    assert torch.equal(trained.index_.vectors, placed.vectors)
    assert not torch.equal(placed.vectors, rag.index_.vectors)
    monkeypatch.setattr(sys, "argv", ["e2erag", *call, *where])
    with pytest.raises(SystemExit, match=r"--index is of a --system to go on from, .* new one's is --answering.index"):
        main()


@pytest.mark.parametrize("option", ["--retrieval.bm25=0.1", "--generation.max_tokens=80"])
def test_a_saved_system_is_not_given_other_options(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be passed by in silence."""
    monkeypatch.setattr(sys, "argv", ["e2erag", "fit", "x.pdf", "q.jsonl", "out", "--system", "s", option])
    with pytest.raises(SystemExit, match="s keeps what it was made with: leave out --retrieval and --answering"):
        main()


@pytest.mark.parametrize("kind", ["exact", "Flat"])
def test_documents_come_and_go_in_a_saved_system(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """index, add twice, delete: each is saved in place of the system before, which any of them can load."""
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"the pilot of {name} was 85")
    tiny = tiny_rag()
    tiny.model.retriever.passage.model.save(str(tmp_path / "encoder"))
    tiny.model.generator.save(tmp_path / "reader")

    def call(*flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["e2erag", *flags])
        main()
        return capsys.readouterr().out

    a, b, c, system = (str(tmp_path / name) for name in ("a.txt", "b.txt", "c.txt", "system"))
    where = [] if kind == "exact" else [f"--answering.index.kind={kind}", f"--answering.index.folder={tmp_path / 'w'}"]
    models = [f"--retriever={tmp_path / 'encoder'}", f"--generator={tmp_path / 'reader'}"]
    assert "2 documents indexed, 0 files couldn't be read" in call("index", f"[{a}, {b}]", system, *models, *where)
    assert "1 documents added, 0 of them" in call("add", system, f"[{b}, {c}]")
    assert "0 documents added" in call("add", system, str(tmp_path / "*.txt"))
    assert "1 documents deleted" in call("delete", system, a)
    assert [document.file for document in RAG.from_pretrained(system).corpus.documents] == [b, c]
    with pytest.raises(SystemExit, match=r"^e2erag: '.*a\.txt' is not indexed"):
        call("delete", system, a)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(
        ["encoder", "reader", "system", *(["w"] if where else [])]
    )


@pytest.mark.parametrize("command", ["extract", "index", "add"])
@pytest.mark.parametrize("door", ["shell", "list", "yaml", "yaml of one"])
def test_files_come_one_after_the_other(
    command: str, door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shell expands a pattern, and as one text or a list from elsewhere; with limits of what reads them."""
    seen: dict[str, Any] = {}

    def read_of(files: Any, *_: Any, **reading: Any) -> None:
        seen.update(reading, files=files)
        raise Asked

    monkeypatch.setattr("e2erag.__main__.read_report", read_of)
    monkeypatch.setattr(RAG, "from_pretrained", lambda *_, **__: SimpleNamespace(index=read_of, add=read_of))
    system = str(tmp_path / "system")
    if command == "add":
        tiny_rag().save_pretrained(system)
    files = ["a.html", "b [1].md", "*.txt"]
    given: list[str] = {"shell": files, "list": [dumps(files[::2])]}.get(door, [])
    if door.startswith("yaml"):
        (tmp_path / "run.yaml").write_text(f"files: {files if door == 'yaml' else files[0]}\n")
        given = [f"--config={tmp_path / 'run.yaml'}"]
    place = [system] if command == "index" else []  # behind the files
    if place and door.startswith("yaml"):
        with open(tmp_path / "run.yaml", "a") as file:
            file.write(f"out: {place.pop()}\n")
    first = [system] if command == "add" else []
    limits = ["--seconds=9.5", "--memory=3000000000"]
    monkeypatch.setattr(sys, "argv", ["e2erag", command, *limits, *first, *given, *place])
    with pytest.raises(Asked):
        main()
    assert seen["files"] == {"shell": files, "list": files[::2], "yaml": files, "yaml of one": files[0]}[door]
    assert (seen["seconds"], seen["memory"]) == (9.5, 3_000_000_000)


@pytest.mark.parametrize(("good", "broken", "code"), [(2, 0, 0), (2, 1, 3), (0, 1, 1)])
def test_extracts_exit_code_says_whether_a_folder_was_read(
    good: int,
    broken: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of it, a part, or nothing; what was read is written, and each broken file named with its reason."""
    (tmp_path / "in").mkdir()
    for n in range(good):
        (tmp_path / "in" / f"{n}.txt").write_text(f"the pilot of {n}")
    for n in range(broken):
        (tmp_path / "in" / f"b{n}.pdf").write_bytes(b"%PDF-1.7\n")
    monkeypatch.setattr(sys, "argv", ["e2erag", "extract", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    ended = 0
    try:
        main()
    except SystemExit as error:
        ended = error.code
    assert ended == code
    told = capsys.readouterr().out
    assert f"failed   | {broken} file{'s' * (broken != 1)}\n" in told
    assert all(f"b{n}.pdf | is damaged or cut off" in told for n in range(broken))
    assert len(list(tmp_path.glob("out/*.md"))) == good


@pytest.mark.parametrize("command", ["index", "add"])
@pytest.mark.parametrize(("good", "broken", "code"), [(1, 0, 0), (1, 1, 3), (0, 2, 1)])
def test_what_is_indexed_of_files_is_an_exit_code_too(
    command: str, good: int, broken: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same three as of `extract`; of `add` also where what could be read was there already."""
    tiny = tiny_rag()
    tiny.model.retriever.passage.model.save(str(tmp_path / "encoder"))
    tiny.model.generator.save(tmp_path / "reader")
    files = [tmp_path / f"{n}.{'txt' if n < good else 'pdf'}" for n in range(good + broken)]
    for file in files:
        file.write_bytes(b"%PDF-1.7\n" if file.suffix == ".pdf" else b"the pilot was 85")
    if command == "add":
        tiny.index([tiny_document([["seats 4"]])])
        tiny.save_pretrained(tmp_path / "system")
    models = [f"--retriever={tmp_path / 'encoder'}", f"--generator={tmp_path / 'reader'}"]
    system, names = str(tmp_path / "system"), [str(file) for file in files]
    given = {"index": [*models, *names, system], "add": [system, *names]}[command]
    monkeypatch.setattr(sys, "argv", ["e2erag", command, *given])
    for _ in range(2 if command == "add" else 1):
        ended: Any = 0
        try:
            main()
        except SystemExit as error:
            ended = 1 if isinstance(error.code, str) else error.code  # a text is printed, and ends with 1
        assert ended == code
    assert (tmp_path / "system").exists() == (command == "add" or good > 0)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("extract {a} --system nosys", "nosys is not a folder, and a saved folder was expected there"),
        ("extract {a} --system {other}", "other holds no system: give a folder that `e2erag index` or"),
        ("extract {a} --out {a}/x", "a.txt/x was to be written below it. Choose another place"),
        ("extract {a} --out {a}", "a.txt is a file, and a folder was to be written there. Choose another place"),
        ("extract {a} --cache {a}", "a.txt is a file or lies below one, and what was read is kept in a folder"),
        ("extract {a} --pages -1", "pages is how many of each document are shown, none or more, got -1"),
        ("extract {a} --memory -1", "workers is 0 or more, seconds and memory are positive, got"),
        ("extract {a} --gate red", "Got value: red"),
        ("index {a} {a}/x", "a.txt/x was to be written below it. Choose another place"),
        ("index {a} {foreign}", "foreign is not empty and not a folder that e2erag saved"),
        ("index {a} out --cache {a}/x", "a.txt/x is a file or lies below one, and what was read is kept"),
        ("fit {a} q.jsonl {foreign}", "foreign is not empty and not a folder that e2erag saved"),
        ("fit {a} q.jsonl out --system nosys", "nosys is not a folder"),
        ("add nosys {a}", "nosys is not a folder"),
        ("add {other} {a}", "other holds no system"),
        ("delete nosys {a}", "nosys is not a folder"),
        ("ask nosys why", "nosys is not a folder"),
        ("evaluate nosys q.jsonl", "nosys is not a folder"),
    ],
)
def test_what_is_asked_for_wrongly_is_told_before_anything_is_read(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the way out, and exit code 2."""
    (tmp_path / "a.txt").write_text("the pilot was 85")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    with write_folder(tmp_path / "other") as folder:
        (folder / "x").write_text("x")
    for name in ("e2erag.__main__.read_report", "e2erag.rag.take"):
        monkeypatch.setattr(name, None)
    monkeypatch.setattr(RAG, "from_pretrained", None)
    places = {"a": tmp_path / "a.txt", "foreign": tmp_path / "foreign", "other": tmp_path / "other"}
    monkeypatch.setattr(sys, "argv", ["e2erag", *command.format(**places).split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "foreign" / "thesis.txt").read_text() == "mine"


def test_the_reports_gate_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the terminal and in the folder; the system stays as it is."""
    (tmp_path / "a.txt").write_text("the pilot was 85\nseats 4")
    tiny_rag().save_pretrained(tmp_path / "system")
    given = [str(tmp_path / "a.txt"), f"--system={tmp_path / 'system'}", f"--out={tmp_path / 'out'}", "--gate=carry"]
    monkeypatch.setattr(sys, "argv", ["e2erag", "extract", *given])
    main()
    assert "a.txt, page 1: finding | reading | carrying" in capsys.readouterr().out
    assert "soft gates for carrying" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "0001-0001.png").is_file()


@pytest.mark.parametrize("command", ["extract", "index", "add"])
def test_help_says_the_exit_codes(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the flags."""
    monkeypatch.setattr(sys, "argv", ["e2erag", command, "--help"])
    with pytest.raises(SystemExit):
        main()
    told = " ".join(capsys.readouterr().out.split())
    assert "0 where every file was read, 3 where some were, 1 where none was" in told


@pytest.mark.parametrize("settings", [FitConfig, GeneratorConfig, IndexConfig, RAGConfig, RetrieverConfig])
def test_every_flag_says_what_it_is(settings: type) -> None:
    """`--help` takes its texts from the docstring, one for each name; names that share a text would have none."""
    told = {entry.arg_name for entry in parse(settings.__doc__ or "").params}
    assert told == {field.name for field in fields(settings)}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("fit x q out --settings.kk 2", "--settings.kk 2; did you mean --settings.k?"),
        ("fit x q out --config FILE", "'settings.epoch'; did you mean --settings.epochs?"),
        ("extract x --engin pypdf", "--engin pypdf; did you mean --engine?"),
        ("fit x q out --settings.k 0", "k must be at least 1, got 0"),
        ("fit x q out --retrieval.temperature 0", "must be above 0, got 0.0"),
        ("fit x", "usage: e2erag fit [options] files ... questions out"),
        ("fitt", "usage: e2erag [options] demo | extract | index"),
        ("fitt", "; did you mean fit?"),
        ("index a b --cache c out", "unrecognized arguments: out\n"),
    ],
)
def test_a_wrong_call_is_answered_in_a_few_lines_with_what_is_nearest(
    command: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag or key that there isn't, a value that can't be, a part left out: all end with 2, before any work."""
    (tmp_path / "run.yaml").write_text("settings: {epoch: 3}")
    words = command.replace("FILE", str(tmp_path / "run.yaml")).split()
    monkeypatch.setattr(sys, "argv", ["e2erag", *words])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert said in told
    assert told.count("\n") < 5


@pytest.mark.parametrize("command", ["extract", "index", "add", "fit"])
def test_help_says_that_several_files_may_be_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["e2erag", command, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out.count(" files ...") == 2  # in the usage, and where it is explained


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_extract_writes_documents_of_any_name(tmp_path: Path) -> None:
    """As many bytes as a name may have, and no text, which can be printed; of one content they are indexed once."""
    names = ["a" * 251 + ".txt", "é" * 125 + ".txt", os.fsdecode(b"caf\xe9.txt")]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_text("seats 4")
    rag = tiny_rag()
    rag.index(tmp_path / "in" / names[2])
    rag.save_pretrained(tmp_path / "system")

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "e2erag", *words]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}  # strict, as a terminal's is
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert "read     | 3 files" in call("extract", "in", "--out=out")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name[:-12] for name in written] == ["a" * 180, "caf\\udce9.txt", "é" * 90]
    assert "caf\\udce9.txt, page 1, line 1" in call("ask", "system", "seats ?")
    told = call("extract", "in", "--system=system", "--out=report")
    assert told.count(", page 1: finding | reading") == 1
    assert "caf\\udce9.txt" in call("extract", "in/" + names[2], "--system=system", "--out=report")
    assert "<h2>caf\\udce9.txt</h2>" in (tmp_path / "report" / "index.html").read_text("utf-8")


def out_of_memory(**_: Any) -> RAG:
    torch.empty(10**15)
    raise AssertionError


def test_what_is_said_of_too_little_memory_can_be_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every flag that is named is one of the command for which it is named."""
    flags = re.findall(r"--[\w.]+", NO_MEMORY)
    for command, named in (("fit", flags[:-1]), ("extract", flags[-1:])):
        monkeypatch.setattr(sys, "argv", ["e2erag", command, "--help"])
        with pytest.raises(SystemExit):
            main()
        told = capsys.readouterr().out
        assert named
        assert all(f"{flag} " in told for flag in named)


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [(MemoryError, re.escape(NO_MEMORY), ""), (torch.OutOfMemoryError, re.escape(NO_MEMORY), ""),
     (out_of_memory, re.escape(NO_MEMORY), ""), (KeyboardInterrupt, "130", "e2erag: interrupted\n")],
)  # fmt: skip
def test_no_memory_and_ctrl_c_are_no_traceback(
    raised: Any,
    code: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**given: Any) -> RAG:
        raise raised()

    monkeypatch.setattr(RAG, "from_pretrained", fail)
    monkeypatch.setattr(sys, "argv", ["e2erag", "index", "x.pdf", "out"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert re.fullmatch(f"{code}.*", str(ended.value.code))
    assert capsys.readouterr().err == told
