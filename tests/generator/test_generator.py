"""The reader against the plain language model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import in_double
from transformers import AutoModelForCausalLM, Gemma2Config

from e2erag.extract import CLOSED
from e2erag.generator import Generator, GeneratorConfig, Row, Together
from e2erag.generator.attention import use_gates
from e2erag.testing import ReaderKind, tiny_generator

KINDS: list[ReaderKind] = ["llama", "t5", "bart"]
LINES = ["the pilot was 85", "engine maker lycoming", "seats 4"]
QUESTION, ANSWER = "how old was the pilot ?", "85"


def row(generator: Generator, which: list[int] | None, question: str = QUESTION, answer: str = ANSWER) -> Row:
    prompt = generator.prompt
    passage = None if which is None else np.array(which, np.int64)
    return prompt.row(prompt.lines(LINES), passage, prompt.questions([question])[0], prompt.answers([answer])[0])


def own_logp(generator: Generator, made: Row, mask: torch.Tensor | None = None, **extra: torch.Tensor) -> torch.Tensor:
    """log p(answer | prompt) by the model's own full forward pass, with a mask of its own."""
    ids = torch.from_numpy(made.ids)[None]
    if not generator.model.config.is_encoder_decoder:
        logp = generator.model(ids, attention_mask=mask, **extra).logits[0, made.prompt - 1 :].log_softmax(-1)
    else:
        start = torch.from_numpy(generator.reader.start)[None]
        given = torch.cat([start, ids[:, made.prompt : -1]], 1)
        out = generator.model(ids[:, : made.prompt], attention_mask=mask, decoder_input_ids=given)
        logp = out.logits[0, start.shape[1] - 1 :].log_softmax(-1)
    return sum(logp[t, token] for t, token in enumerate(made.ids[made.prompt :]))


@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihood_without_gates_is_the_plain_models(kind: ReaderKind) -> None:
    """Rows of different lengths in one batch, with a passage and closed book, in the order given."""
    generator = tiny_generator(kind=kind)
    made = [row(generator, [0, 1, 2]), row(generator, None), row(generator, [2], answer="seats 4 none")]
    expected = torch.stack([own_logp(generator, r) for r in made])
    torch.testing.assert_close(generator.log_likelihood(made), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_of_one_are_the_plain_models(kind: ReaderKind) -> None:
    """log w = 0 for every line, through the extra dimension of the keys."""
    generator = tiny_generator(kind=kind)
    made = row(generator, [0, 1, 2])
    gated = generator.log_likelihood([made], torch.zeros(3), [np.arange(3)])
    torch.testing.assert_close(gated[0], own_logp(generator, made), atol=1e-5, rtol=0)


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_is_a_bias_on_attention_logits(kind: ReaderKind, learning: bool) -> None:
    """Equal to the 4-D mask form: log w of the key's line, in a causal model, or in encoder and cross attention."""
    generator = tiny_generator(kind=kind)
    made = row(generator, [0, 1, 2])
    gates = torch.tensor([-0.5, -2.0, -0.1])
    bias = torch.cat([gates, torch.zeros(1)])[made.owner]
    if kind == "llama":
        n = len(made.ids)
        mask = bias.expand(n, n).masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), torch.finfo(torch.float32).min)
    else:
        mask = bias[: made.prompt]
    expected = own_logp(generator, made, mask.expand(1, 1, *([1] * (2 - mask.dim())), *mask.shape))
    gated = generator.log_likelihood([made], gates.requires_grad_(learning), [np.arange(3)])[0]
    torch.testing.assert_close(gated, expected, atol=1e-5, rtol=0)
    assert abs((gated - own_logp(generator, made)).item()) > 1e-3


def test_a_gate_of_zero_equals_deletion_but_for_position_numbers() -> None:
    """The shut line's tokens removed, what follows keeping its position numbers."""
    generator = tiny_generator()
    made = row(generator, [0, 1, 2])
    keep = made.owner != 1
    left = Row(made.ids[keep], made.owner[keep], made.prompt - int((~keep).sum()))
    expected = own_logp(generator, left, position_ids=torch.arange(len(keep))[None, torch.from_numpy(keep)])
    shut = generator.log_likelihood([made], torch.tensor([0.0, CLOSED, 0.0]), [np.arange(3)])
    torch.testing.assert_close(shut[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_gate_of_zero_hides_a_line_from_encoder_and_decoder(kind: ReaderKind) -> None:
    """The same as padding where the shut line stands: what follows keeps its position."""
    generator = tiny_generator(kind=kind)
    made = row(generator, [0, 1, 2])
    expected = own_logp(generator, made, torch.from_numpy(made.owner[: made.prompt] != 1)[None])
    shut = generator.log_likelihood([made], torch.tensor([0.0, CLOSED, 0.0]), [np.arange(3)])
    torch.testing.assert_close(shut[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gates_gradient_equals_finite_differences(kind: ReaderKind) -> None:
    """d log p / d log w in float64."""
    generator = tiny_generator(kind=kind)
    in_double(generator)
    made = [row(generator, [0, 1, 2]), row(generator, [1])]
    gates = torch.tensor([-0.5, -2.0, -0.1], dtype=torch.float64, requires_grad=True)
    slots = [np.arange(3), np.array([1])]
    assert torch.autograd.gradcheck(lambda g: generator.log_likelihood(made, g, slots), gates, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_like_length_are_read_together(kind: ReaderKind) -> None:
    """Forty rows of 3 to 45 words in all orders: a few calls, and little padding."""
    generator = tiny_generator(kind=kind)
    words, sizes = np.arange(3), np.random.default_rng(0).integers(1, 16, 40)
    made = [row(generator, np.resize(words, size).tolist()) for size in sizes]
    calls: list[int] = []
    body = generator.model.get_encoder() if generator.model.config.is_encoder_decoder else generator.model.get_decoder()
    body.register_forward_pre_hook(lambda _, args, given: calls.append(given["input_ids"].numel()), with_kwargs=True)
    generator.log_likelihood(made)
    assert len(calls) <= 15
    assert sum(calls) < 1.05 * sum(r.size for r in made)
    assert len(made) * max(r.size for r in made) > 1.3 * sum(calls)


@pytest.mark.parametrize("kind", KINDS)
def test_small_batches_with_recomputation_give_the_same_value_and_gradient(kind: ReaderKind) -> None:
    """A budget of one row a batch holds one graph at a time; values and gradients stay."""
    results = []
    for budget in (4096, 1):
        settings = GeneratorConfig(max_tokens=256, token_budget=budget, held_tokens=budget // 2)
        generator = tiny_generator(config=settings, kind=kind)
        made = [row(generator, [0, 1, 2]), row(generator, None), row(generator, [1])]
        gates = torch.tensor([-0.5, -2.0, -0.1], requires_grad=True)
        logp = generator.log_likelihood(made, gates, [np.arange(3), None, np.array([1])])
        logp.sum().backward()
        weight = next(generator.model.parameters())
        results.append((logp.detach(), gates.grad, weight.grad))
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_only_answer_positions_reach_the_head(kind: ReaderKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many rows of logits as there are answer tokens, whatever stands before them."""
    generator = tiny_generator(kind=kind)
    seen = []
    logits = generator.reader.logits
    monkeypatch.setattr(generator.reader, "logits", lambda hidden: seen.append(len(hidden)) or logits(hidden))
    rows = [row(generator, [0, 1]), row(generator, None), row(generator, [1], answer="85 years of age")]
    generator.token_log_likelihood(rows)
    assert sum(seen) == sum(len(made.ids) - made.prompt for made in rows)


def test_the_passage_is_cut_never_the_question_or_the_answer() -> None:
    """Four hundred lines where 96 tokens fit: prompt and answer whole, the passage's end lost."""
    generator = tiny_generator(config=GeneratorConfig(max_tokens=96))
    prompt = generator.prompt
    lines = prompt.lines(["seats 4"] * 400)
    question, answer = prompt.questions([QUESTION])[0], prompt.answers([ANSWER])[0]
    made = prompt.row(lines, np.arange(400), question, answer)
    assert len(made.ids) == 96
    assert made.ids[made.prompt :].tolist() == answer.tolist()
    text = generator.tokenizer.decode(made.ids[: made.prompt])
    assert f"Question: {QUESTION}" in text


def test_an_answer_that_cannot_fit_is_an_error() -> None:
    """It says how many tokens fit and which setting to raise."""
    generator = tiny_generator(config=GeneratorConfig(max_tokens=40))
    with pytest.raises(ValueError, match=r"where 40 fit: shorten them or raise the generator's max_tokens"):
        row(generator, [0], answer="seats " * 50)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_cannot_end_the_prompt(kind: ReaderKind) -> None:
    """The end token written out on a page or in a question is read as text."""
    generator = tiny_generator(kind=kind)
    end = generator.tokenizer.eos_token
    prompt = generator.prompt
    made = prompt.row(
        prompt.lines([f"seats {end} 4"]), np.array([0]), prompt.questions([f"what {end} ?"])[0],
        prompt.answers(["4"])[0],
    )  # fmt: skip
    template = row(generator, [2])
    eos = generator.tokenizer.eos_token_id
    assert (made.ids == eos).sum() == (template.ids == eos).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_transformers_own(kind: ReaderKind) -> None:
    """Rows of different lengths together, against `model.generate` one by one; log p includes the end token."""
    generator = tiny_generator(kind=kind)
    prompt = generator.prompt
    question = prompt.questions([QUESTION])[0]
    made = [prompt.row(prompt.lines(LINES), np.array(w), question) for w in ([0, 1, 2], [2])]
    made.append(prompt.row(None, None, question))
    got = generator.generate(made)
    for r, ids, logp in zip(made, got.ids, got.logp, strict=True):
        given = 0 if kind == "llama" else len(generator.reader.start) - 1
        forced = {"forced_bos_token_id": generator.tokenizer.convert_tokens_to_ids("<s>")} if given else {}
        ids_ = torch.from_numpy(r.ids)[None]
        own = generator.model.generate(ids_, max_new_tokens=8 + given, do_sample=False, **forced)[0]
        answer = own[len(r.ids) if kind == "llama" else given + 1 :]
        eos = (answer == generator.tokenizer.eos_token_id).nonzero()
        end = int(eos[0]) if len(eos) else len(answer)
        assert ids.tolist() == answer[:end].tolist()
        scored = np.concatenate([r.ids, answer[: end + 1].numpy()])
        closed = Row(scored, np.full(len(scored), -1), len(r.ids))
        torch.testing.assert_close(logp, own_logp(generator, closed), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_steer_generation_as_they_steer_likelihood(kind: ReaderKind) -> None:
    """log p of a gated greedy answer is the gated log-likelihood of that answer."""
    generator = tiny_generator(kind=kind)
    prompt = generator.prompt
    gates = torch.tensor([-3.0, 0.0, -1.0])
    asked = prompt.questions([QUESTION])[0]
    lines = prompt.lines(LINES)
    open_row = prompt.row(lines, np.arange(3), asked)
    got = generator.generate([open_row], gates, [np.arange(3)])
    ended = len(got.ids[0]) < 8
    answer = np.append(got.ids[0], generator.tokenizer.eos_token_id) if ended else got.ids[0]
    closed_row = prompt.row(lines, np.arange(3), asked, answer)
    torch.testing.assert_close(
        got.logp, generator.log_likelihood([closed_row], gates, [np.arange(3)]).detach(), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(("kind", "own"), [("llama", "LlamaForCausalLM"), ("t5", "T5ForConditionalGeneration")])
def test_a_saved_reader_comes_back_as_what_its_configuration_says(kind: ReaderKind, own: str, tmp_path: Path) -> None:
    """A causal model or an encoder–decoder, with the same likelihood."""
    generator = tiny_generator(kind=kind)
    generator.save(tmp_path)
    again = Generator.load(tmp_path, generator.config)
    assert type(again.model).__name__ == own
    made = row(generator, [0, 1])
    assert torch.equal(again.log_likelihood([made]), generator.log_likelihood([made]))


def test_a_model_that_gates_cannot_reach_is_an_error() -> None:
    """It says why and names models that do."""
    model = tiny_generator(kind="t5").model
    for module in model.get_decoder().modules():
        if hasattr(module, "is_causal"):
            module.is_causal = True  # as if there were no attention over an encoder
    capped = Gemma2Config(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        intermediate_size=8,
    )  # fmt: skip
    for each in (model, AutoModelForCausalLM.from_config(capped)):
        with pytest.raises(ValueError, match=r"reading gates can't reach it: use a model that does \(Llama.*T5, BART"):
            use_gates(each)


def test_an_encoder_decoder_without_a_start_token_is_an_error() -> None:
    """The setting to mend is named."""
    generator = tiny_generator(kind="t5")
    generator.model.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="T5ForConditionalGeneration decoder_start_token_id is None: set it there"):
        Generator(generator.model, generator.tokenizer)


def test_the_models_own_limit_bounds_a_row() -> None:
    """A BART has 512 learned positions, whatever longer rows are asked for."""
    generator = tiny_generator(config=GeneratorConfig(max_tokens=4096), kind="bart")
    assert generator.prompt.max_tokens == 512


def fused(generator: Generator, passages: list[list[int]], how: Together, answer: str = ANSWER) -> Row:
    prompt = generator.prompt
    lines, question = prompt.lines(LINES), prompt.questions([QUESTION])[0]
    return prompt.fused(
        lines, [np.array(p, np.int64) for p in passages], question, prompt.answers([answer])[0], how=how
    )


def fusion_in_decoder(generator: Generator, passages: list[list[int]], bias: torch.Tensor) -> torch.Tensor:
    """log p(answer | passages) by the model's own parts: sources encoded one by one, a bias on each one's keys."""
    alone = [row(generator, passage) for passage in passages]
    states = [
        generator.model.get_encoder()(torch.from_numpy(made.ids)[None, : made.prompt]).last_hidden_state
        for made in alone
    ]
    mask = torch.cat([b.expand(made.prompt) for b, made in zip(bias, alone, strict=True)])[None, None, None]
    answer, start = torch.from_numpy(alone[0].ids[alone[0].prompt :]), torch.from_numpy(generator.reader.start)
    hidden = generator.model.get_decoder()(
        torch.cat([start, answer[:-1]])[None],
        encoder_hidden_states=torch.cat(states, 1),
        encoder_attention_mask=mask,
    ).last_hidden_state
    logp = generator.reader.logits(hidden[0, len(start) - 1 :]).log_softmax(-1)
    return logp.gather(1, answer[:, None]).sum()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_row_of_parts_is_fusion_in_the_decoder(kind: ReaderKind) -> None:
    """Each passage encoded alone with the question, the decoder over all; with another row of fewer parts beside it."""
    generator = tiny_generator(kind=kind)
    many, few = [[0, 1], [2], []], [[1]]
    got = generator.log_likelihood([fused(generator, many, "fid"), fused(generator, few, "fid")])
    expected = [fusion_in_decoder(generator, passages, torch.zeros(len(passages))) for passages in (many, few)]
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_bias_on_a_whole_part_is_seen_by_the_decoder_alone(kind: ReaderKind) -> None:
    """The same number on all keys of a source changes nothing in its encoder; the decoder weighs the sources by it."""
    generator = tiny_generator(kind=kind)
    passages, bias = [[0, 1], [2]], torch.tensor([-2.0, 0.5])
    slots = np.array([0, 0, 1, 1, 0])  # three lines, then what frames the last part and the first
    got = generator.log_likelihood([fused(generator, passages, "fid")], bias, [slots])[0]
    torch.testing.assert_close(got, fusion_in_decoder(generator, passages, bias), atol=1e-5, rtol=0)


def test_the_order_of_parts_does_not_matter_to_a_t5() -> None:
    """Its decoder knows no positions in what it looks at."""
    generator = tiny_generator(kind="t5")
    made = [fused(generator, passages, "fid") for passages in ([[0, 1], [2]], [[2], [0, 1]])]
    here, there = generator.log_likelihood(made)
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_passages_in_one_text_are_one_passage_of_all_their_lines(kind: ReaderKind) -> None:
    """Concatenation, token by token; read together with nothing found is closed book."""
    generator = tiny_generator(kind=kind)
    whole, joined = row(generator, [0, 1, 2]), fused(generator, [[0, 1], [2]], "concat")
    assert joined.ids.tolist() == whole.ids.tolist()
    assert joined.owner.tolist() == whole.owner.tolist()
    assert fused(generator, [], "concat").ids.tolist() == row(generator, None).ids.tolist()


def test_of_passages_in_one_text_the_last_gives_way_first_and_parts_are_cut_each_to_its_own() -> None:
    """80 tokens: one text keeps the start of the first passage, parts keep the start of both."""
    generator = tiny_generator(config=GeneratorConfig(max_tokens=80), kind="t5")
    prompt = generator.prompt
    lines = prompt.lines(["seats 4"] * 60)
    question, answer = prompt.questions(["seats ?"])[0], prompt.answers(["4"])[0]
    passages = [np.arange(30), np.arange(30, 60)]
    one, parts = (prompt.fused(lines, passages, question, answer, how=how) for how in ("concat", "fid"))
    assert len(one.ids) == 80
    assert 0 <= one.owner.max() < 30
    assert (np.diff(parts.parts) == 80 - len(answer)).all()
    assert {30, 31} <= set(parts.owner.tolist())


def test_the_size_of_parts_counts_their_padding() -> None:
    """Three sources, padded to the longest, and the answer."""
    generator = tiny_generator(kind="t5")
    made = fused(generator, [[0, 1], [2], []], "fid")
    widths = np.diff(made.parts)
    assert made.size == 3 * widths.max() + len(made.ids) - made.prompt


def test_blocks_stand_side_by_side() -> None:
    """All at the positions of the first; the question behind the longest; each token knows its block."""
    made = Row(np.arange(10), np.full(10, -1), 9, blocks=np.array([2, 5, 5, 7]))
    assert made.block.tolist() == [-1, -1, 0, 0, 0, 2, 2, -1, -1, -1]
    assert made.positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 5, 6, 7]
    assert made.size == 10


def in_blocks(generator: Generator, made: Row) -> torch.Tensor:
    """log p of a row's answer token by token of the sequence: every token alone attends to what its block may see."""
    block, position = made.block, made.positions
    total = torch.zeros(())
    for t in range(made.prompt, len(made.ids)):
        seen = torch.zeros(1, 1, t, t, dtype=torch.bool)
        for i in range(t):
            for j in range(i + 1):
                seen[0, 0, i, j] = bool(block[i] < 0 or block[j] < 0 or block[i] == block[j])
        hidden = generator.model.get_decoder()(
            torch.from_numpy(made.ids)[None, :t], attention_mask=seen, position_ids=torch.from_numpy(position)[None, :t]
        ).last_hidden_state
        total = total + generator.reader.logits(hidden[0, -1:]).log_softmax(-1)[0, made.ids[t]]
    return total


def test_parallel_passages_do_not_see_each_other_and_the_question_sees_all() -> None:
    """Against a mask written out pair by pair, with shorter rows and one without blocks beside it; one passage alone is
    the plain row; the order of passages is nothing."""
    generator = tiny_generator(kind="llama")
    made = [fused(generator, passages, "parallel") for passages in ([[0, 1], [2]], [[2], [1], [0]], [[0, 1]], [])]
    got = generator.log_likelihood(made)
    expected = [in_blocks(generator, one) for one in made[:2]] + [own_logp(generator, one) for one in made[2:]]
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=0)
    assert made[2].ids.tolist() == row(generator, [0, 1]).ids.tolist()
    again = generator.log_likelihood([fused(generator, [[2], [0, 1]], "parallel")])
    torch.testing.assert_close(again, got[:1], atol=1e-5, rtol=0)
    one_text = generator.log_likelihood([fused(generator, [[0, 1], [2]], "concat")])
    assert (one_text - got[:1]).abs() > 1e-4


def test_a_gate_shuts_a_parallel_passage_out() -> None:
    """log w of −10⁴ on the shorter of two leaves the row of the longer alone: its positions are that row's own."""
    generator = tiny_generator(kind="llama")
    both = fused(generator, [[0, 1], [2]], "parallel")
    gates = torch.tensor([0.0, 0.0, -1e4])
    got = generator.log_likelihood([both], gates, [np.arange(3)])
    torch.testing.assert_close(got, generator.log_likelihood([row(generator, [0, 1])]), atol=1e-5, rtol=0)


def test_parallel_passages_are_answered_from_as_they_are_scored() -> None:
    """log p of gated greedy answers, rows of several lengths padded together, is their log-likelihood."""
    generator = tiny_generator(kind="llama")
    prompt, gates = generator.prompt, torch.tensor([-2.0, 0.0, -1.0])
    lines, asked = prompt.lines(LINES), prompt.questions([QUESTION])[0]
    groups = [[np.array([0, 1]), np.array([2])], [np.array([2]), np.array([0])]]
    open_rows = [prompt.fused(lines, group, asked, how="parallel") for group in groups] + [
        prompt.row(None, None, asked)
    ]
    slots = [np.array([0, 1, 2]), np.array([2, 0]), None]
    got = generator.generate(open_rows, gates, slots)
    answers = [
        ids if len(ids) == generator.config.max_new_tokens else np.append(ids, generator.tokenizer.eos_token_id)
        for ids in got.ids
    ]
    closed = [prompt.fused(lines, g, asked, a, how="parallel") for g, a in zip(groups, answers, strict=False)]
    closed.append(prompt.row(None, None, asked, answers[2]))
    scored = generator.log_likelihood(closed, gates, slots).detach()
    torch.testing.assert_close(got.logp, scored, atol=1e-4, rtol=0)


def test_parallel_passages_are_cut_each_to_its_own() -> None:
    """80 tokens hold each passage alone with question and answer; together they are longer."""
    generator = tiny_generator(config=GeneratorConfig(max_tokens=80), kind="llama")
    prompt = generator.prompt
    lines = prompt.lines(["seats 4"] * 60)
    question, answer = prompt.questions(["seats ?"])[0], prompt.answers(["4"])[0]
    made = prompt.fused(lines, [np.arange(30), np.arange(30, 60)], question, answer, how="parallel")
    assert made.positions.max() == 79
    assert len(made.ids) > 80
    assert {0, 30} <= set(made.owner.tolist())
