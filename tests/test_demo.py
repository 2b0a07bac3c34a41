"""The demo and the command line, end to end on tiny models and once on the real ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import NTSB
from PIL import Image

from e2erag import RAG, evaluate, read_questions
from e2erag.demo import demo, table
from e2erag.draw import DROPPED, KEPT, draw_page
from e2erag.extract import read
from e2erag.testing import tiny_rag


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with random models of the real kind."""
    whole = RAG.from_pretrained.__func__

    def from_pretrained(cls: type, folder: object = None, **kwargs: object) -> RAG:
        return tiny_rag() if folder is None else whole(cls, folder, **kwargs)

    monkeypatch.setattr(RAG, "from_pretrained", classmethod(from_pretrained))


def test_the_demo_shows_trains_cites_draws_saves_and_reloads(
    tiny_models: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two reports with two questions each; its own check that a fresh process answers the same must pass."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "test"):
        rows = (NTSB / f"{name}.jsonl").read_text().splitlines()[6:8]
        (data / f"{name}.jsonl").write_text("\n".join(rows))
        (data / json.loads(rows[0])["file"]).symlink_to(NTSB / json.loads(rows[0])["file"])
    demo(str(tmp_path / "run"), str(data), epochs=1)
    out = capsys.readouterr().out
    assert "before" in out
    assert "after, hard gates" in out
    assert out.count(", page ") >= 3
    assert "the same answers" in out
    assert (tmp_path / "run" / "manifest.json").is_file()
    assert (tmp_path / "run-log" / "metrics.csv").is_file()
    assert Image.open(tmp_path / "run-log" / "page.png").size == (1364, 1584)


def test_the_table_holds_every_metric_before_and_after() -> None:
    """Recall, exact match, F1 with intervals, and tokens read, for soft and hard gates."""
    rag = tiny_rag()
    rag.index(read(path) for path in sorted(NTSB.glob("*.pdf"))[:1])
    result = evaluate(rag, read_questions(NTSB / "train.jsonl")[:3])
    text = table(result, result, result)
    for word in ("recall@1", "recall@5", "exact match", "F1", "tokens", "before", "soft gates", "hard gates"):
        assert word in text


def test_a_perfect_reader_and_finder_scores_one() -> None:
    """The scorer: gold page found and answer equal up to case, article and punctuation give ones, else zeros."""
    from e2erag.evaluation import _score
    from e2erag.extract import propose
    from e2erag.questions import Question
    from e2erag.rag import Answer

    passages = propose(read(sorted(NTSB.glob("*.pdf"))[0]), (8,))
    page2 = [p for p in passages if p.page == 2]
    asked = Question("what ?", ("The Lycoming",), passages[0].document.name, 2)
    right = Answer("lycoming.", 1.0, (), tuple(page2), 90)
    wrong = Answer("Continental", 1.0, (), tuple(passages), 90)
    assert _score(asked, right, page2[:5]) == (1.0, 1.0, 1.0, 1.0, 90.0)
    assert _score(asked, wrong, [passages[0], page2[0]]) == (0.0, 1.0, 0.0, 0.0, 90.0)


def test_a_page_is_drawn_with_kept_lines_green_and_dropped_lines_red(tmp_path: Path) -> None:
    """All gates open: green where lines are, no red; all shut: the other way round."""
    path = sorted(NTSB.glob("*.pdf"))[0]
    rag = tiny_rag()
    rag.index([path])
    counts = []
    for bias in (8.0, -8.0):
        rag.model.extractor.gates.bias.data[:3] = bias
        picture = Image.open(draw_page(rag, path.name, 1, tmp_path / "page.png")).convert("RGB")
        pixels = list(zip(*[iter(picture.resize((306, 396)).tobytes())] * 3, strict=True))
        counts.append([sum(_near(pixel, colour) for pixel in pixels) for colour in (KEPT, DROPPED)])
    assert counts[0][0] > 500 > counts[0][1]
    assert counts[1][1] > 500 > counts[1][0]


def _near(pixel: tuple[int, int, int], colour: tuple[int, int, int]) -> bool:
    """Whether a pixel is white tinted with the colour."""
    tinted = [255 + (c - 255) * 60 / 255 for c in colour]
    return all(abs(p - t) < 12 for p, t in zip(pixel, tinted, strict=True))


def test_a_page_that_is_not_there_is_told() -> None:
    """Which documents, pages and gates there are."""
    rag = tiny_rag()
    rag.index([sorted(NTSB.glob("*.pdf"))[0]])
    name = rag.corpus.documents[0].name
    with pytest.raises(ValueError, match=f"other.pdf is not indexed; there are {name}"):
        draw_page(rag, "other.pdf", 1, "x.png")
    with pytest.raises(ValueError, match="has pages 1 to 4, got 9"):
        draw_page(rag, name, 9, "x.png")
    with pytest.raises(ValueError, match="gate must be read, retrieve or carry, got 'keep'"):
        draw_page(rag, name, 1, "x.png", gate="keep")


def command(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "e2erag", *map(str, args)], capture_output=True, text=True, check=False
    )


def test_the_command_line_trains(tmp_path: Path) -> None:
    """`e2erag fit` takes a pattern, as the README writes it, or refuses what isn't there in one message."""
    asked = tmp_path / "q.jsonl"
    asked.write_text('{"question": "who ?", "answers": ["the pilot"]}\n')
    wrong = command("fit", str(tmp_path / "*.pdf"), asked, tmp_path / "out", "--settings.epochs", 3)
    assert wrong.returncode != 0
    assert "Traceback" not in wrong.stderr
    assert "nothing to index" in wrong.stderr


def test_the_command_line_asks_and_evaluates_a_saved_system(tmp_path: Path) -> None:
    """`e2erag ask` prints answer and citation, `e2erag evaluate` every metric; a wrong folder is an error."""
    rag = tiny_rag()
    rag.index([sorted(NTSB.glob("*.pdf"))[0]])
    rag.save_pretrained(tmp_path / "system")
    asked = command("ask", tmp_path / "system", "How old was the pilot?")
    assert ".pdf, page" in asked.stdout, asked.stderr
    rows = (NTSB / "train.jsonl").read_text().splitlines()[:2]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    scored = command("evaluate", tmp_path / "system", tmp_path / "q.jsonl")
    assert "exact match" in scored.stdout, scored.stderr
    missing = command("ask", tmp_path / "nowhere", "who?")
    assert missing.returncode != 0
    assert "nowhere" in missing.stderr
    assert "Traceback" not in missing.stderr


@pytest.mark.models
def test_real_models_learn_from_answers_alone() -> None:
    """One report, four questions, three passes: the loss falls, and gradient reaches all three stages."""
    rag = RAG.from_pretrained()
    rag.index([sorted(NTSB.glob("*.pdf"))[0]])
    rows = read_questions(NTSB / "train.jsonl")[6:10]
    run = rag.fit(rows, epochs=3, progress=False)
    assert run.history[-1]["loss"] < 0.7 * run.history[0]["loss"]
    for stage in ("extractor", "retriever", "generator"):
        assert run.history[0][f"gradient_{stage}"] > 0


@pytest.mark.models
def test_real_models_without_training_are_the_real_models() -> None:
    """Embeddings of the index equal sentence-transformers' in float32; the reader's log p equals the plain model's."""
    import torch

    from e2erag import RAGConfig

    rag = RAG.from_pretrained(config=RAGConfig(precision="float32"))
    rag.index([sorted(NTSB.glob("*.pdf"))[0]])
    texts = [passage.text for passage in rag.corpus.passages[:8]]
    plain = rag.model.retriever.passage.model.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(rag.index_.vectors[:8, :-1], plain, atol=1e-5, rtol=0)
    reader = rag.model.generator
    prompt = reader.prompt
    row = prompt.row(None, None, prompt.questions(["What is the capital of France?"])[0], prompt.answers(["Paris"])[0])
    with torch.no_grad():
        logits = reader.model(torch.from_numpy(row.ids)[None]).logits[0].log_softmax(-1)
        expected = sum(logits[t - 1, row.ids[t]] for t in range(row.prompt, len(row.ids)))
        torch.testing.assert_close(reader.log_likelihood([row])[0], expected, atol=1e-3, rtol=0)
