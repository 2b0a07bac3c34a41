"""The joint model: its loss is the sum it claims to be, and the answer's gradient reaches every stage."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers import in_double
from torch import Tensor, nn

from e2erag import precision
from e2erag.config import RAGConfig
from e2erag.corpus import Gates
from e2erag.extract import ExtractorConfig
from e2erag.joint import Reading, Terms
from e2erag.questions import Question
from e2erag.rag import RAG
from e2erag.step import Step
from e2erag.testing import ReaderKind, tiny_document, tiny_rag
from e2erag.train import OBJECTIVES, Options, marginal, rag_sequence
from e2erag.train.objectives import joint_logp

ASKED = [
    Question("how old was the pilot in accident NYC08 ?", ("85",)),
    Question("who made the engine in accident DEN07 ?", ("continental",)),
]
TEN = [
    ["accident number NYC08", "the pilot was 85", "engine maker lycoming", "seats 4", "weight 2000"],
    ["medical exam 1/2/2007", "registration N5921D", "landing gear tailwheel", "damage none", "date 3/4/2008"],
]


def ten_passages(k: int, reader: ReaderKind = "llama", reading: Reading = "marginal") -> RAG:
    """A system in float64 over ten passages of a line each, whose extractor already says something."""
    system = tiny_rag(
        extractor=ExtractorConfig(text_dim=32, hidden=16, sizes=(1,), identity_lines=1, kinds=()),
        config=RAGConfig(k=k, mode="soft", precision="float32", reading=reading),
        reader=reader,
    )
    for head in (system.model.extractor.gates, system.model.extractor.scores):
        nn.init.normal_(head.weight, std=0.2)
    with torch.no_grad():
        system.model.extractor.gates.bias[:3] -= 4.0  # below the bound w ≤ 1, where the slope is the derivative
    in_double(system.model)
    system.index([tiny_document(TEN)])
    assert len(system.corpus.passages) == 10
    return system


def loss(system: RAG, questions: list[Question] = ASKED, k: int = 3, **how: object) -> Tensor:
    terms = system.terms(questions, k, "soft", **how)
    return marginal(terms).mean()


def brute_force(system: RAG, question: Question, k: int) -> Tensor:
    """−log Σ_z p(z|x)·p(y|x,z), one passage at a time; all but the k best passages are read as closed book."""
    model, corpus = system.model, system.corpus
    gates = model.gates(corpus, "soft")
    q = model.retriever.query.encode_text([question.question], "query")[0]
    scores, reads = [], []
    prompt = model.generator.prompt
    asked, answer = prompt.questions([question.question])[0], prompt.answers([question.answers[0]])[0]
    for i, passage in enumerate(corpus.passages):
        lines, carried = corpus.lines(i)
        vector = model.retriever.passage.encode_lines(
            corpus.retriever_lines, [lines], gates.retrieve, [gates.slots(lines, carried)]
        )[0]
        out = gates.extraction
        edge = (
            torch.cat([out.cut, out.cut.new_full((1,), -2.0)]).sigmoid().log()
            - torch.sigmoid(out.cut.new_tensor(-2.0)).log()
        )
        log_prior = edge[passage.start] + edge[passage.stop] + out.span[passage.start]
        scores.append(q @ vector / model.retriever.config.temperature + log_prior)
        row = prompt.row(corpus.generator_lines, lines[carried:], asked, answer)
        reads.append(model.generator.log_likelihood([row], gates.read, [gates.slots(lines[carried:], 0)])[0])
    closed = model.generator.log_likelihood([prompt.row(None, None, asked, answer)])[0]
    score, answer_logp = torch.stack(scores), torch.stack(reads)
    best = score.topk(k).indices
    read = closed.expand(len(score)).index_put((best,), answer_logp[best])
    return -(score.log_softmax(0) + read).logsumexp(0)


@pytest.mark.parametrize(("k", "reader"), [(4, "llama"), (10, "llama"), (10, "t5"), (10, "bart")])
def test_the_loss_is_the_brute_force_sum(k: int, reader: ReaderKind) -> None:
    """Ten passages in float64: K = 10 reads all, K = 4 leaves six to the closed book."""
    system = ten_passages(k, reader)
    expected = torch.stack([brute_force(system, question, k) for question in ASKED]).mean()
    tolerance = 1e-9 if k == 10 else 1e-6  # the index stores float32
    torch.testing.assert_close(loss(system, k=k), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("reader", "reading"),
    [("llama", "marginal"), ("t5", "marginal"), ("llama", "concat"), ("llama", "parallel"), ("bart", "fid")],
)
@pytest.mark.parametrize("stage", ["extractor", "retriever", "generator"])
def test_every_stages_gradient_equals_finite_differences(stage: str, reader: ReaderKind, reading: Reading) -> None:
    """A directional derivative through the whole graph, in float64, all ten passages scored and read.

    (The extractor's text feature is a look-up in the retriever's word embeddings without gradient, so it is blinded
    to text where these move.)"""
    system = ten_passages(10, reader, reading)
    if stage == "retriever":
        nn.init.zeros_(system.model.extractor.text.weight)
    parameters = [p for p in system.model.get_submodule(stage).parameters() if p.requires_grad]
    gradient = torch.autograd.grad(loss(system, k=10), parameters, allow_unused=True)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True) if g is not None)

    def at(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
            value = loss(system, k=10).item()
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=step)
        return value

    step = 1e-6
    assert slope.item() == pytest.approx((at(step) - at(-step)) / (2 * step), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("stage", ["extractor", "retriever.passage"])
def test_with_negatives_for_all_the_rest_a_gradient_is_that_of_an_index_that_moves_too(stage: str) -> None:
    """Two of ten passages are read. Finite differences with everything encoded anew at both ends, against one step's
    gradient with all others drawn; without negatives it isn't that, for the rest of Z stands still.
    What is read for one question counts in another's Z by its stored row then, in float32, so that the
    values are the same to its digits."""
    system = ten_passages(2)
    nn.init.zeros_(system.model.extractor.text.weight)  # whose feature is a look-up in the encoder
    system._reindex(system.corpus)
    parameters = [p for p in system.model.get_submodule(stage).parameters() if p.requires_grad]
    direction = [torch.randn_like(p) for p in parameters]
    values, slopes = [], []
    for negatives in (10_000, 1, 0):
        value = loss(system, k=2, negatives=negatives)
        gradient = torch.autograd.grad(value, parameters, allow_unused=True)
        values.append(value.item())
        slopes.append(sum((g * d).sum().item() for g, d in zip(gradient, direction, strict=True) if g is not None))
    assert values[0] == pytest.approx(values[1], abs=1e-9)
    assert values[0] == pytest.approx(values[2], rel=1e-9)

    def at(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
        system._reindex(system.corpus)
        value = loss(system, k=2).item()
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=step)
        return value

    true = (at(1e-4) - at(-1e-4)) / 2e-4
    assert slopes[0] == pytest.approx(true, rel=0.01, abs=1e-4)
    assert abs(slopes[2] - true) > 0.1 * abs(true)


def gradients(system: RAG, objective: Callable[..., Tensor] = marginal, k: int = 3) -> dict[str, float]:
    """Gradient norm per stage, and per output of the extractor."""
    system.model.zero_grad()
    terms = system.terms(ASKED, k, "soft")
    objective(terms).mean().backward()
    norms = {
        stage: sum(p.grad.norm().item() for p in system.model.get_submodule(stage).parameters() if p.grad is not None)
        for stage in ("extractor", "retriever.query", "retriever.passage", "generator")
    }
    heads = {"gates": ("retrieve", "read", "carry"), "scores": ("cut", "span")}  # of tables there's none here
    for head, names in heads.items():
        slope = getattr(system.model.extractor, head).weight.grad
        norms |= {name: 0.0 if slope is None else slope[i].norm().item() for i, name in enumerate(names)}
    return norms


@pytest.mark.parametrize("objective", [marginal, rag_sequence])
def test_the_answers_gradient_reaches_every_stage(rag: RAG, objective: Callable[..., Tensor]) -> None:
    """Query tower, passage tower (untied), extractor and generator, from the answer alone, at step 0."""
    from e2erag.retriever import RetrieverConfig

    untied = tiny_rag(retriever=RetrieverConfig(temperature=0.2, tied=False))
    untied.index(rag.corpus.documents)
    assert all(norm > 1e-8 for norm in gradients(untied, objective).values())


def only(kept: str, system: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut two of the three paths into the extractor."""
    whole = system.model.gates

    def gates(*args: object, **kwargs: object) -> Gates:
        out = whole(*args, **kwargs)
        extraction = out.extraction
        if kept != "prior":
            held = {name: getattr(extraction, name).detach() for name in ("cut", "span", "rows", "sentences")}
            extraction = extraction._replace(**held)
        return Gates(
            out.retrieve if kept == "embedding" else out.retrieve.detach(),
            out.read if kept == "reading" else out.read.detach(),
            extraction,
        )

    monkeypatch.setattr(system.model, "gates", gates)


@pytest.mark.parametrize(
    ("path", "teaches"),
    [("embedding", {"retrieve", "carry"}), ("prior", {"cut", "span"}), ("reading", {"read"})],
)
def test_each_path_into_the_extractor_alone_teaches_its_own_outputs(
    rag: RAG, path: str, teaches: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passage embedding, span prior and the reader's attention, each with the other two cut."""
    only(path, rag, monkeypatch)
    norms = gradients(rag)
    for output in ("retrieve", "read", "carry", "cut", "span"):
        assert (norms[output] > 1e-9) == (output in teaches), output


def test_with_all_paths_cut_the_extractor_learns_nothing(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counterpart: no fourth way in."""
    only("none", rag, monkeypatch)
    terms = rag.terms(ASKED, 3, "soft")
    marginal(terms).mean().backward()
    assert rag.model.extractor.gates.bias.grad is None
    assert rag.model.extractor.scores.bias.grad is None


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "reader"])
def test_the_retrievers_gradient_changes_when_only_the_generator_changes(rag: RAG, name: str) -> None:
    """Other logits for the same tokens, another gradient in the retriever's weights; of `contrastive` where another
    passage becomes the best, which noise of this size makes it."""
    results = []
    reader, noise = rag.model.generator.model.get_decoder(), torch.Generator().manual_seed(0)
    for change in (0.0, 0.5):
        rag.model.zero_grad()
        with torch.no_grad():
            for layer in reader.layers:
                weight = layer.mlp.down_proj.weight
                weight.add_(change * torch.randn(weight.shape, generator=noise))
        terms = rag.terms(ASKED, 3, "soft")
        OBJECTIVES[name](terms, Options(samples=2, noise=torch.Generator().manual_seed(0))).mean().backward()
        weight = rag.model.retriever.passage.transformer.encoder.layer[0].attention.self.query.weight
        results.append(weight.grad.clone())
    assert not torch.allclose(*results, rtol=1e-3)


def test_a_one_token_answer_teaches_the_retriever(rag: RAG) -> None:
    """Hugging Face's RAG adds log p(z) at the second target token: there, this gradient is exactly zero."""
    answer = rag.model.generator.prompt.answers(["a"])[0]
    assert len(answer) == 2  # the token and the end
    loss(rag, [Question("how old was the pilot ?", ("a",))]).backward()
    weight = rag.model.retriever.passage.transformer.encoder.layer[0].attention.self.query.weight
    assert weight.grad.norm() > 1e-8


def test_one_step_raises_the_passage_that_explains_the_answer() -> None:
    """After a small step on the retriever, p(z|x) has grown for the passages the posterior prefers."""
    system = ten_passages(10)
    question = ASKED[:1]
    terms = system.terms(question, 10, "soft")
    prior, answer = terms.prior_logp.detach()[0], terms.answer_logp.detach()[0]
    posterior = (prior + answer).softmax(0)
    gain = posterior - prior.exp()
    loss(system, question, 10).backward()
    with torch.no_grad():
        for p in system.model.retriever.parameters():
            if p.grad is not None:
                p.sub_(p.grad, alpha=1e-3)
    after = dict(
        zip(
            *(
                x[0].tolist()
                for x in (system.terms(question, 10, "soft").ids, system.terms(question, 10, "soft").prior_logp)
            ),
            strict=True,
        )
    )
    best = int(gain.argmax())
    assert after[int(terms.ids[0, best])] > prior[best].item()


def test_a_batch_row_equals_a_batch_of_one(rag: RAG) -> None:
    """Both questions together, and each alone, over an index of the same gates."""
    rag.config = replace(rag.config, mode="soft")
    rag.refresh()
    together = rag.terms(ASKED, 3, "soft")
    for i, question in enumerate(ASKED):
        alone = rag.terms([question], 3, "soft")
        assert alone.ids[0].tolist() == together.ids[i].tolist()
        torch.testing.assert_close(alone.prior_logp[0], together.prior_logp[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.answer_logp[0], together.answer_logp[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.closed_book_logp[0], together.closed_book_logp[i], atol=1e-4, rtol=1e-4)


def test_the_order_of_documents_does_not_matter(rag: RAG) -> None:
    """The same loss and the same answers with the documents indexed the other way round."""
    other = tiny_rag()
    other.index(rag.corpus.documents[::-1])
    torch.testing.assert_close(loss(other), loss(rag), atol=1e-4, rtol=1e-4)
    asked = [q.question for q in ASKED]
    assert [a.text for a in other.ask_many(asked)] == [a.text for a in rag.ask_many(asked)]


def test_reading_negligible_passages_without_gradient_leaves_the_retriever_exact(rag: RAG) -> None:
    """Same loss, same gradient in retriever and prior; the generator's differs by less than the shares left out."""
    results = []
    terms = rag.terms(ASKED, 3, "soft")
    shares = joint_logp(terms).softmax(1)
    negligible_share = float(shares.min()) * 1.01
    assert 0 < negligible_share < 0.2
    for negligible in (0.0, negligible_share):
        rag.model.zero_grad()
        value = loss(rag, negligible=negligible)
        value.backward()
        query = rag.model.retriever.passage.transformer.encoder.layer[0].attention.self.query.weight.grad
        reader = rag.model.generator.model.get_decoder().layers[0].mlp.up_proj.weight.grad
        results.append((value.detach(), query.clone(), reader.clone()))
    (a, q, g), (b, r, h) = results
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(q, r, atol=1e-5, rtol=1e-3)
    assert 0 < (g - h).norm() < 0.3 * g.norm()


def test_at_step_zero_a_system_with_an_extractor_equals_one_without(rag: RAG) -> None:
    """Gates are open and the prior is flat: index rows are the plain model's embeddings of the text, p(z|x) is their
    softmax, and p(y|x,z) and answers are what the reader makes of the whole text, in either mode."""
    corpus, reader, k = rag.corpus, rag.model.generator, 3
    texts = [passage.text for passage in corpus.passages]
    plain = rag.model.retriever.passage.model.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(rag.index_.vectors[:, :-1], plain, atol=1e-6, rtol=0)
    assert (rag.index_.vectors[:, -1] == 0).all()
    asked = rag.model.retriever.query.model.encode([q.question for q in ASKED], convert_to_tensor=True)
    for mode in ("soft", "hard"):
        terms = rag.terms(ASKED, k, mode)
        every = asked @ plain.T / rag.model.retriever.config.temperature
        repeated = corpus.spans.repeated(terms.ids)  # near copies of what is read don't count in Z
        scores = every.clone()
        scores[:, repeated.rows] = scores[:, repeated.rows].masked_fill(repeated.mask, -torch.inf)
        scores = scores.scatter(1, terms.ids, every.gather(1, terms.ids))
        expected = (scores - scores.logsumexp(1, keepdim=True)).gather(1, terms.ids)
        torch.testing.assert_close(terms.prior_logp.detach(), expected, atol=1e-4, rtol=0)
        prompt = reader.prompt
        for i, question in enumerate(ASKED):
            rows = [
                prompt.row(
                    corpus.generator_lines,
                    corpus.texts(z, corpus.lines(z)[0][corpus.lines(z)[1] :]),
                    prompt.questions([question.question])[0],
                    prompt.answers([question.answers[0]])[0],
                )
                for z in terms.ids[i].tolist()
            ]
            torch.testing.assert_close(terms.answer_logp[i], reader.log_likelihood(rows), atol=1e-4, rtol=0)


def test_exploring_turns_down_what_is_read_alone(rag: RAG) -> None:
    """Gates for finding and the index stay; what is read changes with the noise; hard gates aren't explored."""
    model, corpus = rag.model, rag.corpus
    with model.extractor.learning(explore=3.0):
        one, other = (model.gates(corpus, "soft", torch.Generator().manual_seed(seed)) for seed in (0, 1))
        hard = model.gates(corpus, "hard", torch.Generator())
    open_ = model.gates(corpus, "soft")
    torch.testing.assert_close(one.retrieve, open_.retrieve, atol=1e-5, rtol=0)
    assert (one.read != other.read).any()
    n = len(corpus)
    assert (one.read[:n] < open_.read[:n] + 1e-5).all()
    assert (hard.read[:n] == 0).all()


def test_a_hard_gate_removes_a_line_from_what_is_encoded_and_read(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line shut: its passage's vector is that of the text without it, and the reader's tokens lack it."""
    model, corpus = rag.model, rag.corpus
    whole = model.extractor.forward

    def shut(*args: Tensor) -> object:
        out = whole(*args)
        out.retrieve[1] = out.read[1] = -5.0
        return out

    monkeypatch.setattr(model.extractor, "forward", shut)
    with torch.no_grad():
        gates = model.gates(corpus, "hard")
        number = next(i for i, p in enumerate(corpus.passages) if (p.start, p.stop) == (0, 4))
        passage = corpus.passages[number]
        left = [unit.text for i, unit in enumerate(passage.units) if i != 1]
        vector = model.encode(corpus, torch.tensor([number]), gates, model.log_prior(corpus, gates), "hard")[0, :-1]
        plain = model.retriever.passage.model.encode(["\n".join(left)], convert_to_tensor=True)[0]
        torch.testing.assert_close(vector, plain, atol=1e-6, rtol=0)
        (row,), _ = model.rows(corpus, ["who ?"], None, torch.tensor([[number]]), gates, "hard", closed_book=False)
    text = model.generator.tokenizer.decode(row.ids[row.owner >= 0])
    assert text == "\n".join(left) + "\n"


def read_together(system: RAG, question: Question, terms: Terms, even: bool) -> Tensor:
    """log p(y|x,z_1…z_K) written out: gates and log p_K(z|x) + log K (or no ranking) on the keys of each passage."""
    model, corpus, fid = system.model, system.corpus, system.config.reading == "fid"
    prompt, found = model.generator.prompt, terms.ids[0].tolist()
    share = terms.prior_logp[0] - terms.prior_logp[0].logsumexp(0) + torch.tensor(float(len(found))).log()
    share = torch.zeros_like(share) if even else share
    lines = [corpus.lines(i)[0][corpus.lines(i)[1] :] for i in found]
    table = torch.cat([terms.gates.read[: len(corpus)], torch.zeros(1), share])
    bias, slots = [], []
    for z, own in enumerate(lines):
        slots += [len(bias) + i for i in range(len(own))]
        bias += [table[line] + share[z] for line in own.tolist()]
    slots += [len(bias) + z for z in reversed(range(len(found)))] if fid else []
    bias += list(share) if fid else []
    row = prompt.fused(
        corpus.generator_lines, lines, prompt.questions([question.question])[0],
        prompt.answers([question.answers[0]])[0], how=system.config.reading,
    )  # fmt: skip
    return model.generator.log_likelihood([row], torch.stack(bias), [torch.tensor(slots).numpy()])[0]


@pytest.mark.parametrize(
    ("reader", "reading"),
    [("llama", "concat"), ("llama", "parallel"), ("t5", "concat"), ("t5", "fid"), ("bart", "fid")],
)
def test_passages_read_together_count_as_one_of_all_their_mass(reader: ReaderKind, reading: Reading) -> None:
    """−log[P_K·p(y|x,z_1…z_K) + (1 − P_K)·p(y|x,∅)], with the ranking in the reader's attention."""
    system = ten_passages(4, reader, reading)
    terms = system.terms(ASKED[:1], 4, "soft")
    fused = read_together(system, ASKED[0], terms, even=False)
    torch.testing.assert_close(terms.answer_logp[0], fused.expand(4), atol=1e-8, rtol=0)
    mass = terms.prior_logp[0].exp().sum()
    expected = -(mass * fused.exp() + (1 - mass) * terms.closed_book_logp[0].exp()).log()
    torch.testing.assert_close(loss(system, ASKED[:1], k=4), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("reader", "reading"), [("llama", "concat"), ("llama", "parallel"), ("t5", "fid")])
def test_an_even_ranking_leaves_the_reader_as_it_is(reader: ReaderKind, reading: Reading) -> None:
    """Where p(z|x) is the same for all that were found nothing is added, and an uneven one does change the answer's."""
    system = ten_passages(4, reader, reading)
    terms = system.terms(ASKED[:1], 4, "soft")
    plain = read_together(system, ASKED[0], terms, even=True)
    read = system.model.read
    with torch.no_grad():
        args = (system.corpus, [ASKED[0].question], [ASKED[0].answers[0]], terms.ids, terms.gates)
        even, _ = read(*args, torch.full_like(terms.prior_logp, -3.0), Step(k=4, mode="soft"))
    torch.testing.assert_close(even.sum(2)[0, :4], plain.detach().expand(4), atol=1e-9, rtol=0)
    assert abs(terms.answer_logp[0, 0] - plain).item() > 1e-4


def test_a_passage_found_by_several_questions_is_encoded_once(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions with all of their hits in common: as many encodings as there are different passages."""
    encoded: list[int] = []
    original = rag.model.retriever.encode_passages

    def counted(lines: object, passages: list[object], *rest: object) -> Tensor:
        encoded.append(len(passages))
        return original(lines, passages, *rest)

    monkeypatch.setattr(rag.model.retriever, "encode_passages", counted)
    terms = rag.terms([ASKED[0], ASKED[0], ASKED[1]], 3, "soft")
    assert encoded == [len(terms.ids.unique())]
    assert encoded[0] < terms.ids.numel()


def test_a_step_in_bfloat16_is_one_in_float32_within_its_resolution() -> None:
    """Loss to a few parts in a thousand, and every stage's gradient in the same direction."""
    results = []
    for kind in ("float32", "bfloat16"):
        torch.manual_seed(0)
        system = tiny_rag(config=RAGConfig(k=4, mode="soft", precision=kind))
        nn.init.normal_(system.model.extractor.gates.weight, std=0.2)
        system.index([tiny_document(TEN)])
        value = loss(system, k=4)
        value.backward()
        stages = ("extractor", "retriever", "generator")
        slopes = [
            torch.cat([p.grad.flatten() for p in system.model.get_submodule(stage).parameters() if p.grad is not None])
            for stage in stages
        ]
        results.append((value.detach(), *slopes))
    (exact, *slopes), (rough, *rough_slopes) = results
    torch.testing.assert_close(rough, exact, atol=0, rtol=0.01)
    assert exact != rough
    for slope, rough_slope in zip(slopes, rough_slopes, strict=True):
        assert torch.cosine_similarity(slope, rough_slope, dim=0) > 0.98


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_the_precision_that_the_processor_computes_in(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 where it multiplies that itself, else float32; named, the name counts."""
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: fast)
    ones, found = torch.ones(2, 2), {}
    for name in ("auto", "float32", "bfloat16"):
        with precision.autocast(torch.device("cpu"), name):
            found[name] = (ones @ ones).dtype
    expected = torch.bfloat16 if fast else torch.float32
    assert found == {"auto": expected, "float32": torch.float32, "bfloat16": torch.bfloat16}
