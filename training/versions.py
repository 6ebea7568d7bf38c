"""Versions that a result was made with."""

import importlib.metadata
import platform

_PACKAGES = ("vtfusion", "transformers", "torch", "datasets", "accelerate", "evaluate", "seqeval", "tokenizers")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}
