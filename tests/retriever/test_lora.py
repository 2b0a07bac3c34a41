"""Adapters: the model as it was at step 0, nothing else learns, and they are saved beside it."""

import sys
from pathlib import Path

import pytest
import torch

from e2erag import RAG
from e2erag.retriever import Encoder, Retriever, RetrieverConfig
from e2erag.testing import tiny_document, tiny_encoder, tiny_rag

PAGE = [["the pilot was 85", "seats 4"], ["engine lycoming", "damage none"]]
ROWS = [{"question": "how old was the pilot ?", "answers": ["85"]}, {"question": "engine ?", "answers": ["lycoming"]}]


def test_adapters_change_nothing_at_step_zero_and_only_they_learn() -> None:
    """B = 0: the same vectors to rounding; every parameter that learns is an adapter's, and each gets a gradient."""
    texts = ["the pilot was 85", "seats 4"]
    before = tiny_encoder().encode_text(texts)
    retriever = Retriever(tiny_encoder(), RetrieverConfig(lora=4))
    after = retriever.passage.encode_text(texts)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    after[:, :3].sum().backward()
    learning = {name: p for name, p in retriever.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora_" in name and p.grad is not None for name, p in learning.items())
    assert sum(p.numel() for p in learning.values()) < 0.5 * sum(p.numel() for p in retriever.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_trains_adapters_alone_and_they_are_saved_and_loaded(tied: bool, tmp_path: Path) -> None:
    """A run over a tiny system: base weights bit for bit, adapters moved; the loaded system gives the same vectors,
    its adapters learn on, and the towers are as many as before."""
    rag = tiny_rag(retriever=RetrieverConfig(temperature=0.2, lora=2, tied=tied))
    rag.index([tiny_document(PAGE)])
    before = {name: p.clone() for name, p in rag.model.retriever.named_parameters()}
    rag.fit(ROWS, epochs=1, batch_size=2, k=1, progress=False, lr_retriever=1e-2)
    moved = {name for name, p in rag.model.retriever.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert {name.split(".")[0] for name in moved} == ({"passage"} if tied else {"passage", "query"})

    rag.save_pretrained(tmp_path / "system")
    again = RAG.from_pretrained(tmp_path / "system", device="cpu")
    questions = [row["question"] for row in ROWS]
    with torch.no_grad():
        kept, loaded = (each.model.retriever.encode_questions(questions) for each in (rag, again))
    assert torch.equal(kept, loaded)
    names = [{n for n, p in each.model.retriever.named_parameters() if p.requires_grad} for each in (rag, again)]
    assert names[0] == names[1]
    assert sum(p.numel() for p in again.model.retriever.query.parameters() if p.requires_grad) > 0


def test_a_model_saved_with_adapters_is_whole_without_them(tmp_path: Path) -> None:
    """The folder is the base model for whoever doesn't look for adapters: sentence-transformers loads it."""
    from sentence_transformers import SentenceTransformer

    retriever = Retriever(tiny_encoder(), RetrieverConfig(lora=2))
    with torch.no_grad():
        for name, p in retriever.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    retriever.passage.save(tmp_path / "model")
    base = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode("seats 4", convert_to_tensor=True)
    torch.testing.assert_close(base, tiny_encoder().encode_text(["seats 4"])[0], atol=1e-6, rtol=0)
    adapted = Encoder.load(tmp_path / "model").encode_text(["seats 4"])[0]
    assert torch.equal(adapted, retriever.passage.encode_text(["seats 4"])[0])
    assert (adapted - base).abs().max() > 1e-2


def test_adapters_need_a_rank_and_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank of 0, and a machine without peft: what to do is said."""
    with pytest.raises(ValueError, match="rank of the adapters, at least 1, got 0"):
        Retriever(tiny_encoder(), RetrieverConfig(lora=0))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'e2erag\[lora\]'"):
        Retriever(tiny_encoder(), RetrieverConfig(lora=2))


def test_a_query_tower_that_is_given_gets_adapters_too() -> None:
    """Else all of its weights would learn."""
    retriever = Retriever(tiny_encoder(), RetrieverConfig(lora=2, tied=False), tiny_encoder(seed=1))
    for tower in (retriever.passage, retriever.query):
        learning = [name for name, p in tower.named_parameters() if p.requires_grad]
        assert learning
        assert all("lora_" in name for name in learning)
