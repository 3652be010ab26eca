"""The members of a room: a file is a member, its name is its public name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType


def names(room: ModuleType) -> list[str]:
    """Return the public names of a room without importing its members."""
    return sorted(found.name for found in pkgutil.iter_modules(room.__path__))


def members(room: ModuleType) -> dict[str, Any]:
    """Import the members of a room and return them by name. tests/test_registry.py checks what each one offers."""
    return {name: importlib.import_module(f"{room.__name__}.{name}") for name in names(room)}
