"""What a sentence-transformers model's own configuration says is what is done, and is saved with it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

from e2erag.retriever import Encoder, Retriever, RetrieverConfig
from e2erag.testing import tiny_encoder, tiny_generator

QUESTION = "how old was the pilot ?"
LINES = ["the pilot was 85 years", "engine maker lycoming"]
POOLINGS = ("mean", "cls", "lasttoken")


def both(encoder: Encoder) -> torch.Tensor:
    """A question's vector and a passage's."""
    with torch.no_grad():
        passage = encoder.encode_lines(encoder.lines(LINES), [np.arange(2)])
        return torch.cat([encoder.encode_text([QUESTION], "query"), passage])


def plain(model: SentenceTransformer) -> torch.Tensor:
    """The same by sentence-transformers itself."""
    question = model.encode_query(QUESTION, convert_to_tensor=True)
    return torch.stack([question, model.encode_document("\n".join(LINES), convert_to_tensor=True)])


def saved(encoder: Encoder, folder: Path) -> Encoder:
    encoder.save(folder)
    return Encoder.load(folder)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("name", ["document", "passage"])
def test_prompts_are_the_models_own_and_survive_saving(pooling: str, include: bool, name: str, tmp_path: Path) -> None:
    """A prompt for questions, one for passages under either of its names, pooled or not: as `encode_query` and
    `encode_document` have it, before and after saving."""
    base = tiny_encoder(pooling=pooling).model
    parts = [base[0], Pooling(32, pooling, include_prompt=include), base[2]]
    prompts = {"query": "question : ", name: "the accident report : "}
    encoder = Encoder(SentenceTransformer(modules=parts, prompts=prompts, device="cpu").eval())
    assert encoder.prompt("query") == "question : "
    bare = both(Encoder(base))
    assert (both(encoder) - bare).abs().max() > 1e-2
    # sentence-transformers has its own entry for "document", an empty one, which hides "passage"
    expected = plain(encoder.model)
    torch.testing.assert_close(both(encoder), expected, atol=1e-6, rtol=0)
    assert torch.equal(both(saved(encoder, tmp_path / "model")), both(encoder))


def test_a_default_prompt_is_for_plain_texts_alone() -> None:
    """A model may name a default prompt; `encode_query` and `encode_document` leave it out, and so do we."""
    base = tiny_encoder().model
    model = SentenceTransformer(
        modules=list(base), prompts={"other": "question : "}, default_prompt_name="other", device="cpu"
    ).eval()
    torch.testing.assert_close(both(Encoder(model)), plain(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_model_without_normalize_gives_vectors_of_its_own_length(pooling: str, tmp_path: Path) -> None:
    """Two modules instead of three: vectors as sentence-transformers has them, also after saving."""
    encoder = Encoder(SentenceTransformer(modules=list(tiny_encoder(pooling=pooling).model)[:2], device="cpu").eval())
    vectors = both(encoder)
    assert (vectors.norm(dim=1) - 1).abs().min() > 0.1
    torch.testing.assert_close(vectors, plain(encoder.model), atol=1e-5, rtol=0)
    again = saved(encoder, tmp_path / "model")
    assert not again.head
    assert torch.equal(both(again), vectors)


@pytest.mark.parametrize("modules", [2, 3])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_truncated_vectors_are_truncated(pooling: str, modules: int, tmp_path: Path) -> None:
    """`truncate_dim` in a model's configuration: as sentence-transformers has it, also once saved, and by lines."""
    parts = list(tiny_encoder(pooling=pooling).model)[:modules]
    encoder = Encoder(SentenceTransformer(modules=parts, truncate_dim=16, device="cpu").eval())
    assert both(encoder).shape == (2, 16)
    torch.testing.assert_close(both(encoder), plain(encoder.model), atol=1e-5, rtol=0)
    assert torch.equal(both(saved(encoder, tmp_path / "model")), both(encoder))
    if pooling == "mean":
        lines = encoder.lines(LINES), [np.arange(2)], [np.arange(2)]
        torch.testing.assert_close(encoder.line_sums(*lines).pool(torch.zeros(2)), both(encoder)[1:])


HEADS: dict[str, list[torch.nn.Module]] = {
    "dense": [Dense(32, 24)],
    "two and unit length": [Dense(32, 48, activation_function=None), Dense(48, 16), Normalize()],
    "unit length, then dense": [Normalize(), Dense(32, 16, use_residual=True)],
    "layer norm and dropout": [LayerNorm(32), Dropout(0.5)],
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_models_head_is_its_own(pooling: str, head: str, tmp_path: Path) -> None:
    """Whatever follows pooling: vectors as sentence-transformers has them, of their length, in float32 under autocast,
    after saving, and pooled anew from sums over lines; gradient reaches every parameter of it."""
    parts = [*list(tiny_encoder(pooling=pooling).model)[:2], *copy.deepcopy(HEADS[head])]
    encoder = Encoder(SentenceTransformer(modules=parts, device="cpu").eval())
    expected = plain(encoder.model)
    torch.testing.assert_close(both(encoder), expected, atol=1e-5, rtol=0)
    assert both(encoder).shape == (2, encoder.dim) == expected.shape
    assert torch.equal(both(saved(encoder, tmp_path / "model")), both(encoder))
    pooled = torch.randn(2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.finish(pooled), encoder.finish(pooled).float())
    assert encoder.finish(pooled).dtype == torch.float32
    lines, every = encoder.lines(LINES), [np.arange(2)]
    if pooling == "mean":
        anew = encoder.line_sums(lines, every, every).pool(torch.zeros(2))
        torch.testing.assert_close(anew, both(encoder)[1:], atol=1e-6, rtol=0)
    encoder.encode_lines(lines, every).square()[:, :3].sum().backward()
    assert all(p.grad is not None and p.grad.any() for module in encoder.head for p in module.parameters())


def test_lengths_of_a_models_configuration_are_kept(tmp_path: Path) -> None:
    """Questions of at most seven tokens and passages of nine, as sentence-transformers cuts them; also once saved."""
    encoder = tiny_encoder()
    encoder.model[0].query_length, encoder.model[0].document_length = 7, 9
    texts = [" ".join(LINES * 3), LINES[0]]
    for each in (encoder, saved(encoder, tmp_path / "model")):
        for role, encode in (("query", each.model.encode_query), ("document", each.model.encode_document)):
            expected = encode(texts, convert_to_tensor=True)
            torch.testing.assert_close(each.encode_text(texts, role=role), expected, atol=1e-5, rtol=0)
        assert each.room == 7
        lines = each.lines(LINES * 3)
        cut = each.encode_lines(lines, [np.arange(len(lines)), np.arange(1)])
        torch.testing.assert_close(cut, each.encode_text(texts, role="document"), atol=1e-5, rtol=0)
    assert tiny_encoder().token_fingerprint() != encoder.token_fingerprint()


def test_with_adapters_a_head_stays() -> None:
    """Adapters are all of a tower that learns."""
    parts = [*list(tiny_encoder().model)[:2], Dense(32, 24)]
    retriever = Retriever(Encoder(SentenceTransformer(modules=parts, device="cpu").eval()), RetrieverConfig(lora=2))
    learns = [name for name, p in retriever.named_parameters() if p.requires_grad]
    assert learns
    assert all("lora_" in name for name in learns)


def test_a_tokenizer_that_reads_line_ends_gets_them() -> None:
    """A byte-level tokenizer would glue "years" and "engine" together; WordPiece needs nothing between lines."""
    reader = tiny_generator()
    encoder = tiny_encoder()
    assert len(encoder.lines(LINES).ids) == sum(len(encoder.lines([line]).ids) for line in LINES)
    encoder.model[0].processor = reader.tokenizer
    tokens, _ = encoder.lines(LINES).gather(np.arange(2))
    assert reader.tokenizer.decode(tokens) == "".join(line + "\n" for line in LINES)


def test_a_step_on_one_of_two_untied_towers_leaves_the_other_bit_identical() -> None:
    """AdamW over all parameters of both, a loss of the questions alone: the query tower moves in every matrix that
    has a gradient, and the passage tower in no bit."""
    retriever = Retriever(tiny_encoder(), RetrieverConfig(tied=False))
    before = {name: p.clone() for name, p in retriever.state_dict().items()}
    optimizer = torch.optim.AdamW(retriever.parameters(), 1e-2, weight_decay=0.1)
    retriever.encode_questions([QUESTION]).square()[:, :3].sum().backward()
    optimizer.step()
    moved = {name for name, p in retriever.state_dict().items() if not torch.equal(p, before[name])}
    assert any("attention.self.query.weight" in name for name in moved)
    assert all(name.startswith("query.") for name in moved)
    storage = [{p.untyped_storage().data_ptr() for p in t.parameters()} for t in (retriever.query, retriever.passage)]
    assert not storage[0] & storage[1]


def test_one_model_twice_is_no_pair_of_untied_towers() -> None:
    """What is said to be untied has parameters of its own, or is refused: also in part."""
    encoder = tiny_encoder()
    half = tiny_encoder(1)
    half.transformer.embeddings = encoder.transformer.embeddings
    for query in (encoder, Encoder(encoder.model), half):
        with pytest.raises(ValueError, match="untied towers are two models, and these share parameters: leave query"):
            Retriever(encoder, RetrieverConfig(tied=False), query)


def test_a_temperature_is_learned_or_stays(tmp_path: Path) -> None:
    """d s/d log τ = −s by finite differences; what was learned is saved; a fixed one has no parameter."""
    fixed = Retriever(tiny_encoder(), RetrieverConfig(temperature=0.1))
    assert fixed.log_temperature is None
    retriever = Retriever(tiny_encoder(), RetrieverConfig(temperature=0.1, learn_temperature=True)).double()

    def score() -> torch.Tensor:
        return retriever.encode_questions([QUESTION])[0, 0]

    score().backward()
    slope = retriever.log_temperature.grad.item()
    torch.testing.assert_close(slope, -score().item())
    values = []
    for step in (1e-5, -2e-5):
        retriever.log_temperature.data += step
        values.append(score().item())
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-4)
    retriever.log_temperature.data += 0.5
    retriever.save(tmp_path)
    loaded = Retriever.load(tmp_path, retriever.config)
    torch.testing.assert_close(loaded.temperature, retriever.temperature)
    with pytest.raises(ValueError, match="temperature divides the inner product and must be above 0, got 0"):
        RetrieverConfig(temperature=0.0)


def compared(modules: list[torch.nn.Module], said: str | None, **settings: int) -> Retriever:
    """Untied towers, so that each has its own."""
    model = SentenceTransformer(modules=modules, similarity_fn_name=said, device="cpu", **settings).eval()
    return Retriever(Encoder(model), RetrieverConfig(tied=False, temperature=0.1))


@pytest.mark.parametrize(("said", "cut"), [(None, None), ("cosine", None), ("dot", None), (None, 16), ("dot", 16)])
@pytest.mark.parametrize("modules", [2, 3])
def test_a_score_is_the_similarity_that_the_model_names(
    said: str | None, cut: int | None, modules: int, tmp_path: Path
) -> None:
    """With and without Normalize and truncation, as `SentenceTransformer.similarity` has it; also once saved."""
    retriever = compared(list(tiny_encoder().model)[:modules], said, **({} if cut is None else {"truncate_dim": cut}))
    retriever.save(tmp_path)
    for each in (retriever, Retriever.load(tmp_path, retriever.config)):
        assert each.passage.similarity == (said or "cosine")
        question, passage = both(each.passage).split(1)
        expected = each.passage.model.similarity(question, passage)
        rows = each.passage_rows(passage, torch.zeros(1))
        score = each.encode_questions([QUESTION]) @ rows.T
        torch.testing.assert_close(score, expected / 0.1, atol=1e-5, rtol=1e-5)


def test_similarities_that_no_inner_product_gives_are_refused() -> None:
    """Distances, and towers that are compared otherwise."""
    parts = list(tiny_encoder().model)
    with pytest.raises(ValueError, match="distances aren't searched; 'euclidean' came beside 'euclidean': take models"):
        compared(parts, "euclidean")
    models = [SentenceTransformer(modules=parts, similarity_fn_name=n, device="cpu") for n in ("dot", "cosine")]
    with pytest.raises(ValueError, match=r"by cosine, or both by dot, .*; 'cosine' came beside 'dot'"):
        Retriever(Encoder(models[0]), RetrieverConfig(tied=False), Encoder(copy.deepcopy(models[1])))
