"""GGUF files as base models: unpacked once with `transformers`, then kept as an ordinary model folder.

Unpacking SmolLM2-135M takes about 15 s on one core, nearly all of it in reading the file's header three times over and in
naming tensors, and it is the same every time. The unpacked folder is kept under the user's cache directory, by the file's SHA-256,
dtype and version of transformers, and loads in about a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from memgraft.cache import cache_folder
from memgraft.errors import GraftError
from memgraft.models import load_pretrained, one_line_errors, quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAGIC = b"GGUF"


def load_gguf(path: Path, *, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from a GGUF file.

    Args:
        path: an existing file.
        dtype: of the unpacked weights, "bfloat16" or "float32".

    Raises:
        GraftError: not a GGUF file, damaged, of an unknown architecture, or the `gguf` package is missing.
    """
    with one_line_errors(str(path)), path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise GraftError(f"{path} is not a GGUF file: give a .gguf file, or the folder that holds config.json")
    if importlib.util.find_spec("gguf") is None:
        raise GraftError(f"reading {path} needs the gguf package: pip install 'memgraft[gguf]'")

    import transformers
    from filelock import FileLock

    try:
        folder = cache_folder("gguf") / _sha256(path) / f"{dtype}-transformers-{transformers.__version__}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(f"{folder}.lock").acquire()
    except (OSError, RuntimeError):  # no home directory, or one that can't be written: unpack every time
        return _unpack(path, dtype)
    with held:
        if folder.is_dir():
            try:
                return load_pretrained(str(folder), dtype=dtype)
            except GraftError:  # damaged
                shutil.rmtree(folder, ignore_errors=True)
        unpacked = _unpack(path, dtype)
        kept = _keep(folder, *unpacked)
    return load_pretrained(str(folder), dtype=dtype) if kept else unpacked


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack(path: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options: dict[str, Any] = {"gguf_file": path.name}
    try:
        from transformers import GgufConfig
    except ImportError:  # before this class existed, GGUF weights were always unpacked
        pass
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    # One of the progress bars is not under the switch that `transformers` has for them.
    with contextlib.redirect_stderr(io.StringIO()):
        model, tokenizer = load_pretrained(str(path.parent), dtype=dtype, **options)
    _split_digits(tokenizer)
    return model, tokenizer


def _keep(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Write the unpacked model where the next load finds it, whole or not at all. Call with the folder's lock held.

    Returns:
        False where there is no room for it; then nothing is left behind.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        if shutil.disk_usage(folder.parent).free < 3 * model.get_memory_footprint():
            return False
        with quiet():
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        partial.rename(folder)
    except (OSError, SafetensorError):
        shutil.rmtree(partial, ignore_errors=True)
        return False
    return True


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    r"""Give a byte-level tokenizer back the splitting of digits that the conversion from GGUF loses.

    Where no token of the vocabulary holds a digit and anything else, the tokenizer was trained with every digit on its own. The
    converter only knows GPT-2's pattern, under which white space before a digit falls apart: "\n\n1" becomes three tokens, not two.
    On SmolLM2 that costs 16 nats in a shopping list of six numbered lines.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or (json.loads(backend.to_str())["pre_tokenizer"] or {}).get("type") != "ByteLevel":
        return
    special = set(tokenizer.all_special_tokens)
    if any(len(token) > 1 and re.search(r"[0-9]", token) for token in backend.get_vocab() if token not in special):
        return
    from tokenizers.pre_tokenizers import Digits, Sequence

    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
