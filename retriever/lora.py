"""Low-rank adapters (Hu et al. 2021, "LoRA") through `peft`: the weights stay, ΔW = B·A beside each matrix learns.

`peft` is an extra: nothing here imports it before an adapter is asked for or found.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS = "adapter_model.safetensors"


def add_lora(transformer: Any, rank: int) -> None:
    """Adapters of this rank beside every linear layer; what was there no longer learns.

    At step 0 nothing changes (B = 0). A model that has adapters already keeps them.

    Raises:
        ModuleNotFoundError: peft isn't installed.
    """
    if rank < 1:
        raise ValueError(f"lora is the rank of the adapters, at least 1, got {rank}: None trains the whole model")
    if has_lora(transformer):
        return
    # A pooler is no part of the vectors, so an adapter there would never learn. No dropout: what is scored afresh must
    # agree with what the index holds.
    peft = _peft()
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", exclude_modules=".*pooler.*"
    )
    # Not transformers' own add_adapter, which wants a peft newer than transformers itself (5.24 wants 0.22).
    peft.inject_adapter_in_model(config, transformer)


def has_lora(transformer: Any) -> bool:
    return hasattr(transformer, "peft_config")


@contextmanager
def without_lora(transformer: Any) -> Iterator[None]:
    """The model as it was before adapters, to be saved whole."""
    if not has_lora(transformer):
        yield
        return
    adapted = [
        (parent, name, child)
        for parent in list(transformer.modules())
        for name, child in list(parent.named_children())
        if isinstance(getattr(child, "base_layer", None), nn.Module)
    ]
    for parent, name, child in adapted:
        setattr(parent, name, child.base_layer)
    try:
        yield
    finally:
        for parent, name, child in adapted:
            setattr(parent, name, child)


def save_lora(transformer: Any, folder: Path) -> None:
    """The adapters alone, in peft's own files, where there are any."""
    if not has_lora(transformer):
        return
    # Word embeddings have no adapter; peft would look for the base model on a hub to make sure of it.
    weights = _peft().get_peft_model_state_dict(transformer, save_embedding_layers=False)
    config = transformer.peft_config["default"]
    config.base_model_name_or_path = None  # the folder above, wherever it lies
    config.save_pretrained(str(folder))
    save_file(weights, folder / WEIGHTS)


def load_lora(transformer: Any, folder: Path) -> None:
    """Adapters that `save_lora` wrote, which learn on; nothing where there are none."""
    if not (folder / WEIGHTS).is_file():
        return
    peft = _peft()
    peft.inject_adapter_in_model(peft.LoraConfig.from_pretrained(str(folder)), transformer)
    peft.set_peft_model_state_dict(transformer, load_file(folder / WEIGHTS))


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("adapters need peft: pip install 'e2erag[lora]', or set lora=None") from error
    return peft
