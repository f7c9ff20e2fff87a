"""The real photographs of google/dreambooth."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dreambooth() -> Path:
    default = Path(__file__).parents[2] / "../shared/data/dreambooth"
    folder = Path(os.environ.get("DBRAY_DREAMBOOTH", default))
    if not (folder / "dataset").is_dir():
        pytest.skip("needs the dreambooth dataset; set DBRAY_DREAMBOOTH")
    return folder
