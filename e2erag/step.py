"""What a training step takes of the corpus, and what learns from it."""

from dataclasses import dataclass

from e2erag.extract import GateMode


@dataclass(frozen=True, kw_only=True)
class Step:
    """How questions find passages, which of these are read, and what is computed with gradient.

    Attributes:
        k: passages read per question.
        mode: of the gates.
        rerank: passages per question found by the stored vectors, out of which the K best by fresh ones are read; 0:
            the K best by the stored ones.
        mined: passages read beside the K found, those with the best BM25 of question and answer together. p(z|x) is
            over the whole corpus, so whichever passages are read, the sum is the same sum.
        negatives: passages that are drawn for all questions together out of those that none of them reads, and
            encoded with gradient: as they move all the others do, in an estimate of Z's slope (`Softmax.draw`), and
            what is read for one question moves in every Z (`Softmax.shared`). 0: a question's Z moves with what is
            read for it alone, so that its loss and gradient are those that it has in any other batch, where nothing
            else is drawn or bounded for a batch (`judged`, `slope_limit`).
        judged: lines that the extractor judges anew, where the corpus has more: those of pages drawn, which stand
            for all, and those of the pages found. The other passages' log π is what the index has stored, and its
            slope in log Z is estimated from the pages drawn: without bias but for their features, which are
            normalised by their own figures while the extractor learns. 0: every line.
        slope_limit: going back, the slopes of a passage's lines in their log w (of each question's, for reading)
            lose their mean and have this norm at most (`competing`); 0 leaves them as they are.
        negligible: a passage whose share of p(z|x)·p(y|x,z) is below this is read without gradient, unless p(z|x)
            alone makes it likely to be needed (`joint.SURE`). All paths into retriever and extractor's prior stay
            exact; the reader loses at most this share per passage, of a loss whose slope in log p(y|x,z) is the share.
            1: all are, for a loss that teaches the reader nothing.
        tail: whether shares are of the K and of all that wasn't found, read as closed book (`marginal`), or of the
            K alone (`rag_sequence`); then the closed book is read without gradient, where passages are read alone.
        alone: whether passages that are read together are read each alone as well, without gradient
            (`Evidence.alone_logp`).
    """

    k: int
    mode: GateMode = "sample"
    rerank: int = 0
    mined: int = 0
    negatives: int = 0
    judged: int = 0
    slope_limit: float = 0.0
    negligible: float = 0.0
    tail: bool = True
    alone: bool = False
