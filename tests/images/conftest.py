from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.images.store import LocalImageStore

MakeStore = Callable[[], LocalImageStore]


@pytest.fixture
def store(tmp_path: Path) -> LocalImageStore:
    """An empty store."""
    return LocalImageStore(tmp_path / "store", aliases={}, insecure_registries=())
