"""Objectives, the training module, and runs."""

from e2erag.train.fit import FitConfig, Run, fit
from e2erag.train.objectives import OBJECTIVES, marginal, rag_sequence

__all__ = ["OBJECTIVES", "FitConfig", "Run", "fit", "marginal", "rag_sequence"]
