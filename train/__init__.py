"""Objectives, the training module, and runs."""

from e2erag.joint import Evidence
from e2erag.train.calibrate import Calibration, calibrate
from e2erag.train.fit import FitConfig, Run, fit
from e2erag.train.objectives import OBJECTIVES, Options, marginal, rag_sequence
from e2erag.train.warm_start import ROLES, warm_start

__all__ = [
    "OBJECTIVES",
    "ROLES",
    "Calibration",
    "Evidence",
    "FitConfig",
    "Options",
    "Run",
    "calibrate",
    "fit",
    "marginal",
    "rag_sequence",
    "warm_start",
]
