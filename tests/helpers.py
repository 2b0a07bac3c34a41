"""What several tests need."""

from pathlib import Path

import torch
from reportlab.pdfgen import canvas
from torch import nn


def in_double(module: nn.Module) -> nn.Module:
    """The module in float64 throughout: Llama's and T5's own norms drop to float32, which finite differences see."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in ("LlamaRMSNorm", "T5LayerNorm"):
                norm = nn.RMSNorm(len(child.weight), eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return module.to(torch.float64)


def hide_page(path: Path) -> None:
    """A PDF of one page with a drawing and no text."""
    sheet = canvas.Canvas(str(path))
    sheet.rect(100, 100, 200, 200)
    sheet.save()
