"""What the command line hands on."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from docstring_parser import parse

from e2erag import RAG, RAGConfig
from e2erag.__main__ import main
from e2erag.retriever import RetrieverConfig
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


@pytest.mark.parametrize("settings", [FitConfig, RAGConfig, RetrieverConfig])
def test_every_flag_says_what_it_is(settings: type) -> None:
    """`--help` takes its texts from the docstring, one for each name; names that share a text would have none."""
    told = {entry.arg_name for entry in parse(settings.__doc__ or "").params}
    assert told == {field.name for field in fields(settings)}
