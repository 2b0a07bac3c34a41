"""What the command line hands on."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from docstring_parser import parse

from e2erag import RAG, RAGConfig
from e2erag.__main__ import main
from e2erag.retriever import IndexConfig, RetrieverConfig
from e2erag.testing import tiny_rag
from e2erag.train import FitConfig


class Asked(Exception):
    """A system was asked for; nothing more is wanted."""


@pytest.mark.parametrize("door", ["flags", "yaml"])
def test_a_new_systems_options_come_through_every_door(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores and reading, from flags and from a YAML file, reach the system that is made."""
    seen: dict[str, Any] = {}

    def take(folder: str | None, **given: Any) -> RAG:
        seen.update(given, folder=folder)
        raise Asked

    monkeypatch.setattr(RAG, "from_pretrained", take)
    (tmp_path / "run.yaml").write_text("retrieval: {gates: pool, lora: 8, bm25: 0.1}\nanswering: {reading: concat}\n")
    given = {
        "flags": "--retrieval.gates pool --retrieval.lora 8 --retrieval.bm25 0.1 --answering.reading concat".split(),
        "yaml": ["--config", str(tmp_path / "run.yaml")],
    }[door]
    monkeypatch.setattr(sys, "argv", ["e2erag", "fit", "x.pdf", "train.jsonl", "out", *given])
    with pytest.raises(Asked):
        main()
    assert seen["retrieval"] == RetrieverConfig(gates="pool", lora=8, bm25=0.1)
    assert seen["config"] == RAGConfig(reading="concat")


def test_a_saved_system_is_not_given_other_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be passed by in silence."""
    monkeypatch.setattr(
        sys, "argv", ["e2erag", "fit", "x.pdf", "q.jsonl", "out", "--system", "s", "--retrieval.bm25", "0.1"]
    )
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


@pytest.mark.parametrize("settings", [FitConfig, IndexConfig, RAGConfig, RetrieverConfig])
def test_every_flag_says_what_it_is(settings: type) -> None:
    """`--help` takes its texts from the docstring, one for each name; names that share a text would have none."""
    told = {entry.arg_name for entry in parse(settings.__doc__ or "").params}
    assert told == {field.name for field in fields(settings)}
