"""The package's front door."""

from __future__ import annotations

import subprocess
import sys

import pytest

import memgraft


def run(program: str) -> None:
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", program], check=True)


def test_importing_the_package_imports_no_heavy_library() -> None:
    run("import sys, memgraft; assert not {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)")


@pytest.mark.parametrize("name", memgraft.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(memgraft, name) is not None
    assert name in dir(memgraft)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'grapht'"):
        memgraft.grapht  # noqa: B018


@pytest.mark.parametrize("first", ["memgraft.graft", "from memgraft.grafted import GraftedModel"])
def test_graft_is_the_function_whatever_was_imported_before(first: str) -> None:
    run(f"import memgraft; {first}; assert callable(memgraft.graft) and memgraft.graft.__module__ == 'memgraft.grafting'")
