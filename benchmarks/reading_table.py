"""A reader's log p(y|x,z), token by token, of every question with every passage of a small corpus of SQuAD paragraphs.

A passage's tokens are read once and the questions go on from its keys and values, so that a table of 96 passages and
28 questions costs a third of reading each pair by itself; `check` reads some pairs the plain way and compares. The
table is kept on disk and resumed where it stopped.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from e2erag.extract.tokens import pad
from e2erag.generator import Generator, Row
from e2erag.generator.cache import go_on
from e2erag.models import resolve
from e2erag.precision import autocast
from e2erag.rag import GENERATOR, RETRIEVER
from e2erag.retriever import BM25, Encoder
from e2erag.testing import WORDS, tiny_encoder, tiny_generator

FOLDER = Path("../shared/data/squad")
BANDS = ((0, 4), (4, 8), (8, 16), (16, 64), (64, 10**9))
"""Ranks of the gold passage (from 0) out of which questions are drawn."""


@dataclass(frozen=True)
class Size:
    """Paragraphs of the corpus; questions per band of the gold passage's rank."""

    passages: int = 240
    questions: tuple[int, ...] = (16, 8, 6, 8, 4)
    seed: int = 0


class Table(NamedTuple):
    """Attributes:
    questions, passages: unit vectors of the retriever.
    token_logp: log p of each answer token, 0 beyond an answer's end token.
    closed_logp: the same without a passage.
    length: tokens of each answer, its end token included.
    gold: per question the passage it was asked about.
    sparse: BM25 of passages with question and answer.
    """

    questions: Tensor  # questions dim
    passages: Tensor  # passages dim
    token_logp: Tensor  # questions passages tokens
    closed_logp: Tensor  # questions tokens
    length: Tensor  # questions
    gold: Tensor  # questions
    sparse: Tensor  # questions passages

    def likeliest(self, temperature: float) -> Tensor:
        """Per question the passage with the most of p(z|x)·p(y|x,z)."""
        return (self.questions @ self.passages.T / temperature + self.token_logp.sum(2)).argmax(1)

    def rank(self) -> Tensor:
        """Of the gold passage, from 0."""
        cosine = self.questions @ self.passages.T
        return (cosine > cosine.gather(1, self.gold[:, None])).sum(1)


def rows(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def choose(size: Size, folder: Path) -> tuple[list[str], list[tuple[str, str, int]], Tensor, Tensor]:
    """Paragraphs of whole articles drawn at random, and per band of gold rank as many questions as wanted.

    Returns the texts, (question, answer, gold), and the vectors of questions and passages."""
    draw = np.random.default_rng(size.seed)
    passages = list(rows(folder / "dev32.passages.jsonl.gz"))
    titles = sorted({passage["title"] for passage in passages})
    order = {title: i for i, title in enumerate(draw.permutation(titles))}
    passages = sorted(passages, key=lambda passage: order[passage["title"]])[: size.passages]
    place = {passage["id"]: i for i, passage in enumerate(passages)}
    asked = [row for row in rows(folder / "dev32.qa.jsonl.gz") if len(row["gold"]) == 1 and row["gold"][0] in place]
    asked = [asked[i] for i in draw.permutation(len(asked))]
    encoder = Encoder.load(resolve(RETRIEVER))
    texts = [passage["text"] for passage in passages]
    with torch.no_grad():
        vectors = encoder.encode_text(texts)
        questions = encoder.encode_text([row["question"] for row in asked], role="query")
    cosine = questions @ vectors.T
    gold = torch.tensor([place[row["gold"][0]] for row in asked])
    rank = (cosine > cosine.gather(1, gold[:, None])).sum(1)
    chosen: list[int] = []
    for (low, high), count in zip(BANDS, size.questions, strict=True):
        chosen += ((rank >= low) & (rank < high)).nonzero()[:count, 0].tolist()
    picked = [(asked[i]["question"], min(asked[i]["answers"], key=len), int(gold[i])) for i in chosen]
    return texts, picked, questions[chosen], vectors


def read(size: Size, out: Path, folder: Path = FOLDER, reader: str | Path = GENERATOR) -> Table:
    """The table of this size, from `out` as far as it is there. `reader` is a name or a generator's folder."""
    texts, asked, vectors, passages = choose(size, folder)
    generator, known = Generator.load(resolve(reader)), str(reader)
    if reader != GENERATOR:
        files = (path for path in sorted(resolve(reader).iterdir()) if path.is_file())
        known = sha256(b"".join(sha256(path.read_bytes()).digest() for path in files)).hexdigest()
    key = sha256(json.dumps([asdict(size), texts, asked, known]).encode()).hexdigest()[:16]
    return made(generator, texts, asked, vectors, passages, out / f"table_{key}.safetensors")


def read_tiny(passages: int, questions: int, out: Path) -> Table:
    """The same of random tiny models over made-up passages. Vectors of an untrained encoder are all alike, so they are
    taken less their mean; gold is the passage with the most of p(z|x)·p(y|x,z) at τ = .05."""
    draw = Random(0)
    texts = [" ".join(draw.choices(WORDS, k=12)) for _ in range(passages)]
    asked = [(" ".join(draw.choices(WORDS, k=6)), " ".join(draw.choices(WORDS, k=2)), 0) for _ in range(questions)]
    encoder = tiny_encoder()
    with torch.no_grad():
        rows = encoder.encode_text(texts)
        own = encoder.encode_text([question for question, _, _ in asked], role="query")
    own, rows = (torch.nn.functional.normalize(each - rows.mean(0), dim=1) for each in (own, rows))
    generator = tiny_generator()
    key = sha256(json.dumps([texts, asked]).encode())
    for parameter in generator.parameters():
        key.update(parameter.detach().numpy().tobytes())
    found = made(generator, texts, asked, own, rows, out / f"tiny_{key.hexdigest()[:16]}.safetensors")
    return found._replace(gold=found.likeliest(0.05))


def made(
    generator: Generator,
    texts: Sequence[str],
    asked: Sequence[tuple[str, str, int]],
    vectors: Tensor,
    passages: Tensor,
    path: Path,
) -> Table:
    """A table of (question, answer, gold) and texts, from `path` as far as it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines, prompt = generator.prompt.lines(texts), generator.prompt
    questions, answers = prompt.questions([q for q, _, _ in asked]), prompt.answers([a for _, a, _ in asked])
    pairs = list(zip(questions, answers, strict=True))
    length = torch.tensor([len(answer) for answer in answers])
    done = load_file(path)["token_logp"] if path.exists() else torch.zeros(0, len(asked), int(length.max()))
    new: list[Tensor] = []
    for i in tqdm(range(len(done), len(texts) + 1), desc="reading", unit=" passages", initial=len(done)):
        passage = None if i == len(texts) else np.array([i])
        new.append(read_on(generator, [prompt.row(lines, passage, *pair) for pair in pairs]))
        if i % max(10, len(texts) // 50) == 0 or passage is None:
            done, new = torch.cat([done, torch.stack(new)]), []
            save_file({"token_logp": done}, f"{path}.new")
            Path(f"{path}.new").rename(path)
    check(generator, [[prompt.row(lines, np.array([i]), *pair) for pair in pairs] for i in (0, len(texts) - 1)],
          done[[0, -2]])  # fmt: skip
    gold = torch.tensor([g for _, _, g in asked])
    sparse = BM25(texts).scores([f"{question} {answer}" for question, answer, _ in asked])
    return Table(vectors, passages, done[:-1].transpose(0, 1), done[-1], length, gold, sparse)


@torch.no_grad()
def read_on(generator: Generator, rows: Sequence[Row]) -> Tensor:
    """Token log-probabilities of rows that begin with the same passage (or with none), 0 beyond each answer."""
    owner = rows[0].owner
    shared = int((owner >= 0).nonzero()[0].max()) + 1 if (owner >= 0).any() else 1
    tails = [row.ids[shared:] for row in rows]
    head = torch.from_numpy(rows[0].ids[:shared])[None]
    ids = torch.from_numpy(pad(tails, generator.reader.pad_id))
    decoder = generator.model.get_decoder()
    with autocast(generator.device):
        _, cache = go_on(decoder, None, input_ids=head)
        cache.batch_repeat_interleave(len(rows))
        hidden, _ = go_on(decoder, cache, input_ids=ids)
        start = torch.tensor([row.prompt - shared for row in rows])
        stop = torch.tensor([len(tail) for tail in tails])
        column = torch.arange(ids.shape[1])
        row, position = ((column >= start[:, None]) & (column < stop[:, None])).nonzero(as_tuple=True)
        logp = generator.token_logp(hidden[row, position - 1], ids[row, position])
    table = logp.new_zeros(len(rows), int((stop - start).max()))
    return table.index_put((row, position - start[row]), logp)


@torch.no_grad()
def check(generator: Generator, rows: Sequence[Sequence[Row]], read: Tensor) -> None:
    """Some pairs read the plain way agree: bfloat16 leaves a few hundredths of a nat a token."""
    with autocast(generator.device):
        plain = torch.stack([generator.log_likelihood(group[:8]) for group in rows])
    difference = (plain - read[:, :8].sum(2)).abs()
    print(f"read on from a passage's keys and values, and row by row: {difference.max():.3f} nats apart at most")
    if difference.mean() > 0.3:
        raise RuntimeError(f"the two ways of reading disagree by {difference.mean():.2f} nats: the table is wrong")


if __name__ == "__main__":
    print(read(Size(), Path("runs/gradient_audit")).token_logp.shape)
