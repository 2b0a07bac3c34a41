"""The reader against the plain language model."""

import numpy as np
import pytest
import torch
from helpers import in_double

from e2erag.extract import CLOSED
from e2erag.generator import Generator, GeneratorConfig, Row
from e2erag.testing import tiny_generator

LINES = ["the pilot was 85", "engine maker lycoming", "seats 4"]
QUESTION, ANSWER = "how old was the pilot ?", "85"


def row(generator: Generator, which: list[int] | None, question: str = QUESTION, answer: str = ANSWER) -> Row:
    prompt = generator.prompt
    passage = None if which is None else np.array(which)
    return prompt.row(prompt.lines(LINES), passage, prompt.questions([question])[0], prompt.answers([answer])[0])


def plain(generator: Generator, made: Row) -> torch.Tensor:
    """log p(answer | prompt) by the model's own full forward pass."""
    ids = torch.from_numpy(made.ids)[None]
    logp = generator.model(ids).logits[0].log_softmax(-1)
    return sum(logp[t - 1, ids[0, t]] for t in range(made.prompt, len(made.ids)))


def test_log_likelihood_without_gates_is_the_plain_models() -> None:
    """Rows of different lengths in one batch, with a passage and closed book, in the order given."""
    generator = tiny_generator()
    made = [row(generator, [0, 1, 2]), row(generator, None), row(generator, [2], answer="seats 4 none")]
    expected = torch.stack([plain(generator, r) for r in made])
    torch.testing.assert_close(generator.log_likelihood(made), expected, atol=1e-5, rtol=0)


def test_gates_of_one_are_the_plain_models() -> None:
    """log w = 0 for every line, through the extra dimension of the keys."""
    generator = tiny_generator()
    made = row(generator, [0, 1, 2])
    gated = generator.log_likelihood([made], torch.zeros(3), [np.arange(3)])
    torch.testing.assert_close(gated[0], plain(generator, made), atol=1e-5, rtol=0)


def test_a_gate_is_a_bias_on_attention_logits() -> None:
    """Equal to the 4-D mask form: causal, plus log w of the key's line."""
    generator = tiny_generator()
    made = row(generator, [0, 1, 2])
    gates = torch.tensor([-0.5, -2.0, -0.1])
    n = len(made.ids)
    bias = torch.cat([gates, torch.zeros(1)])[made.owner].expand(n, n)
    mask = bias.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), torch.finfo(torch.float32).min)
    ids = torch.from_numpy(made.ids)[None]
    logp = generator.model(ids, attention_mask=mask[None, None]).logits[0].log_softmax(-1)
    expected = sum(logp[t - 1, ids[0, t]] for t in range(made.prompt, n))
    torch.testing.assert_close(generator.log_likelihood([made], gates, [np.arange(3)])[0], expected, atol=1e-5, rtol=0)


def test_a_gate_of_zero_equals_deletion_but_for_position_numbers() -> None:
    """The shut line's tokens removed, what follows keeping its position numbers."""
    generator = tiny_generator()
    made = row(generator, [0, 1, 2])
    keep = torch.from_numpy(made.owner != 1)
    ids = torch.from_numpy(made.ids)[None, keep]
    logp = generator.model(ids, position_ids=torch.arange(len(keep))[None, keep]).logits[0].log_softmax(-1)
    start = made.prompt - int((~keep).sum())
    expected = sum(logp[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))
    shut = generator.log_likelihood([made], torch.tensor([0.0, CLOSED, 0.0]), [np.arange(3)])
    torch.testing.assert_close(shut[0], expected, atol=1e-5, rtol=0)


def test_a_gates_gradient_equals_finite_differences() -> None:
    """d log p / d log w in float64."""
    generator = tiny_generator()
    in_double(generator)
    made = [row(generator, [0, 1, 2]), row(generator, [1])]
    gates = torch.tensor([-0.5, -2.0, -0.1], dtype=torch.float64, requires_grad=True)
    slots = [np.arange(3), np.array([1])]
    assert torch.autograd.gradcheck(lambda g: generator.log_likelihood(made, g, slots), gates, atol=1e-5)


def test_small_batches_with_recomputation_give_the_same_value_and_gradient() -> None:
    """A budget of one row a batch holds one graph at a time; values and gradients stay."""
    results = []
    for budget in (4096, 1):
        generator = tiny_generator(config=GeneratorConfig(max_tokens=256, token_budget=budget, held_tokens=budget // 2))
        made = [row(generator, [0, 1, 2]), row(generator, None), row(generator, [1])]
        gates = torch.tensor([-0.5, -2.0, -0.1], requires_grad=True)
        logp = generator.log_likelihood(made, gates, [np.arange(3), None, np.array([1])])
        logp.sum().backward()
        weight = next(generator.model.parameters())
        results.append((logp.detach(), gates.grad, weight.grad))
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


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


def test_a_page_cannot_end_the_prompt() -> None:
    """The end token written out on a page or in a question is read as text."""
    generator = tiny_generator()
    prompt = generator.prompt
    made = prompt.row(
        prompt.lines(["seats <|end|> 4"]), np.array([0]), prompt.questions(["what <|end|> ?"])[0],
        prompt.answers(["4"])[0],
    )  # fmt: skip
    template = row(generator, [2])
    eos = generator.tokenizer.eos_token_id
    assert (made.ids == eos).sum() == (template.ids == eos).sum()


def test_greedy_answers_are_transformers_own() -> None:
    """Rows of different lengths together, against `model.generate` one by one; log p includes the end token."""
    generator = tiny_generator()
    prompt = generator.prompt
    question = prompt.questions([QUESTION])[0]
    made = [prompt.row(prompt.lines(LINES), np.array(w), question) for w in ([0, 1, 2], [2])]
    made.append(prompt.row(None, None, question))
    got = generator.generate(made)
    for r, ids, logp in zip(made, got.ids, got.logp, strict=True):
        own = generator.model.generate(torch.from_numpy(r.ids)[None], max_new_tokens=8, do_sample=False)[0]
        answer = own[len(r.ids) :]
        eos = (answer == generator.tokenizer.eos_token_id).nonzero()
        end = int(eos[0]) if len(eos) else len(answer)
        assert ids.tolist() == answer[:end].tolist()
        scored = Row(own.numpy()[: len(r.ids) + min(end + 1, 8)], np.full(len(r.ids) + min(end + 1, 8), -1), len(r.ids))
        torch.testing.assert_close(logp, plain(generator, scored), atol=1e-4, rtol=0)


def test_gates_steer_generation_as_they_steer_likelihood() -> None:
    """log p of a gated greedy answer is the gated log-likelihood of that answer."""
    generator = tiny_generator()
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
