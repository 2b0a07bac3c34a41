"""The system as a user meets it: index, ask, cite, save, load, and what bad input is told."""

import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import NTSB, PAGES, hide_page
from pypdf import PdfWriter

from e2erag import RAG, QuestionError, RAGConfig, read_questions
from e2erag.artefact import ManifestError
from e2erag.extract import Extractor, ExtractorConfig, GateMode, ReadError
from e2erag.joint import Reading
from e2erag.questions import Question
from e2erag.rag import _checked_k
from e2erag.retriever import RetrieverConfig
from e2erag.testing import ReaderKind, tiny_document, tiny_rag

QUESTIONS = ["how old was the pilot in accident NYC08 ?", "who made the engine ?", "seats 2 ?"]

FRESH = """
import json, sys, torch
from e2erag import RAG
rag = RAG.from_pretrained(sys.argv[1])
answers = rag.ask_many(json.loads(sys.argv[2]))
vectors = rag.index_.vectors
q = rag.model.retriever.query.encode_text(json.loads(sys.argv[2]))
print(json.dumps([
    [a.text for a in answers], [str(a.citations[0]) for a in answers], [a.score for a in answers],
    vectors.tolist(), q.tolist(),
]))
"""


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize(
    ("reader", "reading"), [("llama", "concat"), ("llama", "parallel"), ("t5", "fid"), ("bart", "concat")]
)
def test_passages_read_together_give_one_answer(
    rag: RAG, reader: ReaderKind, reading: Reading, mode: GateMode, tmp_path: Path
) -> None:
    """Asked at once or one by one, with a citation of a passage that was read; the same again when saved and loaded."""
    config = RAGConfig(k=3, precision="float32", reading=reading, mode=mode)
    system = tiny_rag(reader=reader, config=config)
    system.index(rag.corpus.documents)
    answers = system.ask_many(QUESTIONS)
    assert [a.text for a in answers] == [system.ask(question).text for question in QUESTIONS]
    for answer in answers:
        assert len(answer.passages) == 3
        assert 0 < answer.score < 1
        assert answer.citations[0].file in {p.document.file for p in answer.passages}
        assert answer.tokens_read > 0
    system.save_pretrained(tmp_path / "system")
    again = RAG.from_pretrained(tmp_path / "system")
    assert again.config.reading == reading
    assert again.ask_many(QUESTIONS) == answers


def test_where_an_answer_stands_is_what_is_cited(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read together, the passage with the answer's words is cited, not the one that is ranked first."""
    system = tiny_rag(config=RAGConfig(k=3, precision="float32", reading="concat"))
    system.index(rag.corpus.documents)
    last = system.ask(QUESTIONS[0]).passages[-1]
    monkeypatch.setattr(system.model.generator, "text", lambda ids: last.units[-1].text)
    cited = system.ask(QUESTIONS[0]).citations
    assert all(last.units[-1].text in citation.text for citation in cited)
    assert 0 < sum(citation.score for citation in cited) <= 1


def test_a_way_of_reading_that_is_none_or_that_the_generator_cannot_is_an_error() -> None:
    """The first names those there are, the second what to do."""
    with pytest.raises(ValueError, match="reading must be one of marginal, concat, parallel, fid, got 'fusion'"):
        RAGConfig.__post_init__(SimpleNamespace(k=1, overlap=0.3, mode="hard", reading="fusion"))
    with pytest.raises(ValueError, match='LlamaForCausalLM is a causal model: read with "parallel" or "concat"'):
        tiny_rag(config=RAGConfig(reading="fid"))
    with pytest.raises(ValueError, match='is an encoder–decoder: read with "fid"'):
        tiny_rag(reader="t5", config=RAGConfig(k=2, reading="parallel"))
    system = tiny_rag()
    system.model.generator.model.config.sliding_window = 64
    with pytest.raises(ValueError, match="LlamaForCausalLM has a sliding window: read with"):
        RAG(system.model.extractor, system.model.retriever, system.model.generator, RAGConfig(reading="parallel"))


def test_reading_together_learns(rag: RAG) -> None:
    """A run over two questions moves every stage."""
    system = tiny_rag(reader="t5", config=RAGConfig(k=2, precision="float32", reading="fid"))
    system.index(rag.corpus.documents)
    before = {name: p.detach().clone() for name, p in system.model.named_parameters()}
    rows = [{"question": q, "answers": ["85"]} for q in QUESTIONS[:2]]
    run = system.fit(rows, k=2, epochs=1, batch_size=2, progress=False)
    assert run.steps == 1
    for stage in ("extractor", "retriever", "generator"):
        moved = [n for n, p in system.model.named_parameters() if n.startswith(stage) and not p.equal(before[n])]
        assert moved, stage


@pytest.fixture
def saved(rag: RAG, tmp_path: Path) -> Path:
    rag.save_pretrained(tmp_path / "system")
    return tmp_path / "system"


def test_an_answer_carries_its_passages_and_citations(rag: RAG) -> None:
    """k passages from distinct places, citations in order of evidence, scores that are probabilities."""
    answer = rag.ask(QUESTIONS[0])
    assert len(answer.passages) == 3
    assert 0 < answer.score <= 1 + 1e-6
    scores = [citation.score for citation in answer.citations]
    assert scores == sorted(scores, reverse=True)
    assert answer.tokens_read > 0


def test_asking_many_is_asking_each(rag: RAG) -> None:
    """Common batches change nothing."""
    assert [a.text for a in rag.ask_many(QUESTIONS)] == [rag.ask(question).text for question in QUESTIONS]


def test_the_answer_is_the_best_joint_over_passages(rag: RAG) -> None:
    """No other passage's greedy answer has more of Σ p(z|x)·p(y|x,z) than the one given."""
    model, found = rag.model, rag.search(QUESTIONS[:1])
    gates = model.gates(rag.corpus, "hard")
    rows, _ = model.rows(rag.corpus, QUESTIONS[:1], None, found.ids, gates, "hard", closed_book=False)
    generated = model.generator.generate(rows)
    joint = (found.prior_logp[0] + generated.logp).exp()
    total: dict[str, float] = {}
    for ids, share in zip(generated.ids, (joint / joint.sum()).tolist(), strict=True):
        total[model.generator.text(ids)] = total.get(model.generator.text(ids), 0.0) + share
    assert len(total) > 1
    answer = rag.ask(QUESTIONS[0])
    assert answer.text == max(total, key=total.__getitem__)
    assert answer.score == pytest.approx(total[answer.text], rel=1e-4)


def test_a_file_indexed_twice_counts_once(rag: RAG) -> None:
    """The same content under another name: one warning, and the index of one."""
    twin = replace(rag.corpus.documents[0], file="twin.pdf")
    n = len(rag.corpus.passages)
    with pytest.warns(UserWarning, match=r"twin\.pdf is the same file as a\.pdf: indexed once"):
        rag.index([*rag.corpus.documents, twin])
    assert len(rag.corpus.passages) == n


def test_gates_that_are_all_shut_are_told_and_change_nothing(rag: RAG) -> None:
    """Hard mode would have nothing to index: the error says what to do, and the old index still answers."""
    rag.model.extractor.gates.bias.data[0] = -5.0
    documents, index = rag.corpus.documents, rag.index_
    with pytest.raises(RuntimeError, match="every line's retrieval gate is shut"):
        rag.index(documents)
    assert rag.index_ is index


def test_training_that_shuts_every_gate_leaves_a_system_that_answers(rag: RAG) -> None:
    """The run ends with the error, and the trained weights answer in the soft mode they were trained in."""
    rag.model.extractor.gates.bias.data[0] = -9.0
    with pytest.raises(RuntimeError, match="every line's retrieval gate is shut"):
        rag.fit([{"question": QUESTIONS[0], "answer": "85"}], epochs=1, progress=False)
    assert rag.config.mode == "soft"
    assert rag.ask(QUESTIONS[0]).citations


def test_impossible_configurations_are_refused() -> None:
    """Each value with its rule."""
    for wrong in ({"k": 0}, {"overlap": 2.0}, {"mode": "sample"}):
        with pytest.raises(ValueError, match="k must be at least 1"):
            RAGConfig(**wrong)


def test_an_extractor_of_another_width_is_refused_where_it_meets_the_retriever(rag: RAG) -> None:
    """Before anything is read; the error says both widths."""
    with pytest.raises(ValueError, match="text features of width 384 where those have 32: make it with text_dim=32"):
        RAG(Extractor.fixed(50, 10), rag.model.retriever, rag.model.generator)


def test_a_new_system_takes_an_extractor_as_it_is(rag: RAG, tmp_path: Path) -> None:
    """The fixed chunker, beside pretrained models; from a configuration one of their width is made."""
    rag.model.retriever.passage.model.save(str(tmp_path / "encoder"))
    rag.model.generator.save(tmp_path / "reader")
    models = {"retriever": tmp_path / "encoder", "generator": tmp_path / "reader"}
    fixed = Extractor.fixed(8, 2, text_dim=32)
    system = RAG.from_pretrained(extractor=fixed, **models)
    assert system.model.extractor is fixed
    system.index([tiny_document([["the pilot was 85", "seats 4", "engine maker lycoming"]])])
    assert system.corpus is not None
    assert all(len(passage.units) < 3 for passage in system.corpus.passages)
    made = RAG.from_pretrained(extractor=ExtractorConfig(hidden=16), **models).model.extractor.config
    assert (made.text_dim, made.hidden) == (32, 16)


def test_passages_longer_than_the_encoder_reads_are_warned_of(rag: RAG, tmp_path: Path) -> None:
    """Chunks, and a given extractor's candidates; what just fits isn't, nor what a configuration is cut to."""
    rag.model.retriever.passage.model.save(str(tmp_path / "encoder"))
    rag.model.generator.save(tmp_path / "reader")
    models = {"retriever": tmp_path / "encoder", "generator": tmp_path / "reader"}
    room = rag.model.retriever.passage.room
    config = ExtractorConfig(text_dim=32, max_tokens=room + 1)
    for extractor in (Extractor.fixed(room + 1, text_dim=32), ExtractorConfig(chunk=(room + 1, 0)), Extractor(config)):
        with pytest.warns(UserWarning, match=rf"up to {room + 1} tokens.*the first {room} .*fixed\({room}\)"):
            RAG.from_pretrained(extractor=extractor, **models)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for extractor in (Extractor.fixed(room, text_dim=32), config):
            RAG.from_pretrained(extractor=extractor, **models)


def test_saved_and_loaded_in_a_fresh_process_everything_is_bit_equal(rag: RAG, saved: Path) -> None:
    """Embeddings, index, answers, scores and citations."""
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(saved), json.dumps(QUESTIONS)], capture_output=True, text=True, check=True
    )
    texts, cited, scores, vectors, q = json.loads(run.stdout.splitlines()[-1])
    answers = rag.ask_many(QUESTIONS)
    assert texts == [a.text for a in answers]
    assert cited == [str(a.citations[0]) for a in answers]
    assert scores == [a.score for a in answers]
    assert torch.equal(torch.tensor(vectors), rag.index_.vectors)
    assert torch.equal(torch.tensor(q), rag.model.retriever.query.encode_text(QUESTIONS))


@pytest.mark.parametrize("name", ["extractor.safetensors", "index/rows-1.bin", "documents.jsonl", "config.json"])
def test_a_changed_file_is_refused(saved: Path, name: str) -> None:
    """One byte flipped: the error names the file."""
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(bytes(content))
    with pytest.raises(ManifestError, match=name):
        RAG.from_pretrained(saved)


def test_a_missing_file_is_refused(saved: Path) -> None:
    """The manifest lists it, so it must be there."""
    (saved / "extractor.safetensors").unlink()
    with pytest.raises(ManifestError, match=r"extractor\.safetensors"):
        RAG.from_pretrained(saved)


def test_a_folder_that_is_no_system_is_refused(tmp_path: Path) -> None:
    """A missing folder, and one without a manifest."""
    with pytest.raises(ManifestError, match="nowhere"):
        RAG.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(ManifestError, match=r"manifest"):
        RAG.from_pretrained(tmp_path / "other")


def test_an_index_saved_with_closed_gates_loads_as_it_was(tmp_path: Path) -> None:
    """Gates and cuts decide which passages exist; the loaded system has the same ones."""
    system = tiny_rag()
    for head in (system.model.extractor.gates, system.model.extractor.scores):
        torch.nn.init.normal_(head.weight, std=4.0)
        head.bias.data.zero_()
    system.model.extractor.scores.bias.data[0] = 4.0
    system.index([tiny_document([["the pilot was 85", "seats 4", "page 1", "damage none"]] * 3)])
    extraction = system.model.gates(system.corpus, "hard").extraction
    assert (extraction.retrieve < 0).any()
    assert (extraction.cut.sigmoid() > 0.9).any()
    system.save_pretrained(tmp_path / "s")
    loaded = RAG.from_pretrained(tmp_path / "s")
    assert torch.equal(loaded.corpus.spans.spans, system.corpus.spans.spans)
    assert [a.text for a in loaded.ask_many(QUESTIONS)] == [a.text for a in system.ask_many(QUESTIONS)]


def test_nothing_indexed_is_said() -> None:
    """ask and fit before index."""
    with pytest.raises(RuntimeError, match=r"nothing is indexed yet: call index\(files\) first"):
        tiny_rag().ask("who ?")
    with pytest.raises(RuntimeError, match="nothing is indexed yet"):
        tiny_rag().fit([{"question": "who ?", "answers": ["a"]}])


@pytest.mark.parametrize("question", ["", "   "])
def test_an_empty_question_is_refused(rag: RAG, question: str) -> None:
    """The rule, what came, the way out."""
    with pytest.raises(ValueError, match=r"a question is a non-empty text, got .*: ask something"):
        rag.ask_many([question])


def test_one_text_is_not_taken_for_a_list_of_its_letters(rag: RAG) -> None:
    """The rule and the way out, for finding and for answering."""
    for call in (rag.search, rag.ask_many):
        with pytest.raises(ValueError, match=r"a list of texts, got the one text 'seats': give \[question\]"):
            call("seats")


def test_no_questions_find_nothing_and_no_passages_are_not_asked_for(rag: RAG) -> None:
    """0 × k of both; a k below one is told as it came, and none is the system's own."""
    assert [tuple(each.shape) for each in rag.search([], 4)] == [(0, 4)] * 2
    assert rag.search([]).ids.shape == (0, rag.config.k)
    assert rag.ask_many([]) == []
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k must be at least 1, got {k}: "):
            rag.search(QUESTIONS, k)
    with pytest.raises(ValueError, match=r"k is a number of passages, got 2\.5: give a whole number"):
        _checked_k(2.5)


def test_bad_files_are_skipped_with_one_warning_each(tmp_path: Path) -> None:
    """One report among a missing, empty, encrypted, foreign, truncated and text-less file: it is indexed, six warn."""
    report = sorted(NTSB.glob("*.pdf"))[0]
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "notes.pdf").write_bytes(b"hello")
    (tmp_path / "cut.pdf").write_bytes(report.read_bytes()[:9000])
    hide_page(tmp_path / "scan.pdf")
    locked = PdfWriter(clone_from=report)
    locked.encrypt("a user must know this", algorithm="AES-256")
    locked.write(tmp_path / "locked.pdf")
    names = ("missing.pdf", "empty.pdf", "locked.pdf", "notes.pdf", "cut.pdf", "scan.pdf")
    bad = [tmp_path / name for name in names]
    system = tiny_rag()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        skipped = system.index([report, *bad])
    told = [str(w.message) for w in caught if "skipped" in str(w.message)]
    assert len(told) == len(skipped) == 6
    assert all(any(path.name in text for text in told) for path in bad)
    assert [document.name for document in system.corpus.documents] == [report.name]


def test_where_nothing_is_left_the_error_names_every_file(tmp_path: Path) -> None:
    """And why each was not read."""
    (tmp_path / "empty.pdf").write_bytes(b"")
    with pytest.raises(ReadError) as error:
        tiny_rag().index([tmp_path / "empty.pdf", tmp_path / "missing.pdf"])
    assert "nothing to index" in str(error.value)
    assert "empty.pdf" in str(error.value)
    assert "missing.pdf" in str(error.value)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"query": "who ?", "answers": ["a"]},
            r"columns wanted are `question` and `answers`.* this row has `query`, `answers`",
        ),
        ({"question": "who ?"}, r"this row has `question`"),
        ({"question": " ", "answers": ["a"]}, r"`question` must be a non-empty text, got ' '"),
        ({"question": "who ?", "answers": []}, r"`answers` must hold at least one non-empty text"),
        ("who ?", r"every row must be an object"),
        ({"question": "who ?", "answers": ["a"], "page": "two"}, r"`page` must be a page's number, from 1, got 'two'"),
        ({"question": "who ?", "answers": ["a"], "page": 0}, r"from 1, got 0"),
        ({"question": "who ?", "answers": ["a"], "page": math.inf}, r"from 1, got inf"),
        ({"question": "who ?", "answers": ["a"], "page": True}, r"from 1, got True"),
    ],
)
def test_a_question_file_with_a_wrong_column_is_told_which_came(tmp_path: Path, row: object, text: str) -> None:
    """The line, the columns wanted and the columns there."""
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "a ?", "answers": ["b"]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(QuestionError, match=text) as error:
        read_questions(path)
    assert "line 2" in str(error.value)


@pytest.mark.parametrize("answers", [(), (" ",)])
def test_a_question_without_an_answer_is_refused_when_it_is_made(answers: tuple[str, ...]) -> None:
    """And one without a question."""
    with pytest.raises(QuestionError, match="`answers` must hold at least one non-empty text"):
        Question("who ?", answers)
    with pytest.raises(QuestionError, match="`question` must be a non-empty text"):
        Question(" ", ("a",))


def test_a_question_file_that_is_missing_empty_or_not_json_is_told(tmp_path: Path) -> None:
    """Three ways to be no question file."""
    with pytest.raises(QuestionError, match="no such file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(QuestionError, match="no question in it"):
        read_questions(tmp_path / "empty.jsonl")
    (tmp_path / "bad.jsonl").write_text("{'question'")
    with pytest.raises(QuestionError, match="line 1: not JSON"):
        read_questions(tmp_path / "bad.jsonl")


def test_answer_and_answers_are_both_read(tmp_path: Path) -> None:
    """One answer, several, and a number."""
    rows = read_questions(
        [
            {"question": "a ?", "answer": "b"},
            {"question": "a ?", "answers": ["b", "c"]},
            {"question": "a ?", "answer": 4},
        ]
    )
    assert [row.answers for row in rows] == [("b",), ("b", "c"), ("4",)]


def test_soft_and_hard_agree_at_step_zero() -> None:
    """Every gate starts at exactly one, so both read and index the whole text as it is."""
    documents = [tiny_document([["the pilot was 85", "seats 4"]])]
    hard, soft = (tiny_rag(config=RAGConfig(k=1, mode=mode, precision="float32")) for mode in ("hard", "soft"))
    for system in (hard, soft):
        system.index(documents)
    torch.testing.assert_close(hard.index_.vectors, soft.index_.vectors, atol=1e-6, rtol=0)
    assert hard.ask("seats ?").text == soft.ask("seats ?").text


def test_an_extractor_of_another_build_is_told_in_one_line(
    rag: RAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of other names or shapes: which folder, and the way out."""
    rag.save_pretrained(tmp_path / "system")
    lacking = {name: value for name, value in rag.model.extractor.state_dict().items() if name != "gates.weight"}
    monkeypatch.setattr("e2erag.saved.load_file", lambda path: lacking)
    with pytest.raises(ManifestError, match="holds an extractor of another build of e2erag: load it with that one"):
        RAG.from_pretrained(tmp_path / "system")


def test_a_file_whose_name_is_not_utf_8_is_saved_and_loaded_by_that_name(tmp_path: Path) -> None:
    """Old archives have such names, and Linux takes any bytes: what is indexed can be saved, cited and deleted."""
    files = tmp_path / "files"
    files.mkdir()
    name = files / os.fsdecode(b"caf\xe9.txt")
    try:
        name.write_text("the pilot was 85 years")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    (files / "日本.txt").write_text("seats 4")
    system = tiny_rag()
    assert system.index(files, progress=False) == []
    system.save_pretrained(tmp_path / "system")
    again = RAG.from_pretrained(tmp_path / "system")
    assert again.corpus.documents == system.corpus.documents
    assert str(name) in {citation.file for citation in again.ask("how old was the pilot ?").citations}
    assert again.delete(name) == 1


def test_finding_gates_that_act_in_hard_mode_alone() -> None:
    """Soft, vectors are those of open gates, whatever the gates; hard, those of a system whose gates act on attention
    too. A step trains the extractor all the same."""
    rows = {}
    for gates in ("attend", "hard"):
        retriever = RetrieverConfig(temperature=0.2, gates=gates)
        system = tiny_rag(retriever=retriever, config=RAGConfig(k=2, precision="float32"))
        weight = system.model.extractor.gates.weight
        for gated in (True, False):
            with torch.no_grad():
                weight.zero_() if not gated else weight.normal_(generator=torch.Generator().manual_seed(1))
            for mode in ("soft", "hard"):
                system.config = replace(system.config, mode=mode)
                system.index([tiny_document(PAGES)])
                rows[gates, gated, mode] = system.index_.vectors[:, :-1].clone()
    assert torch.equal(rows["hard", True, "soft"], rows["hard", False, "soft"])
    assert not torch.equal(rows["attend", True, "soft"], rows["attend", False, "soft"])
    torch.testing.assert_close(rows["hard", True, "hard"], rows["attend", True, "hard"])
    assert not torch.equal(rows["hard", True, "hard"], rows["hard", False, "hard"])
    learning = {name: p.clone() for name, p in system.model.extractor.named_parameters()}
    system.fit([Question("how old was the pilot ?", ("85",))], epochs=1, k=2, progress=False)
    assert any(not torch.equal(learning[name], p) for name, p in system.model.extractor.named_parameters())
