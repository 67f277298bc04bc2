"""For every test of the media room."""

from __future__ import annotations

import pytest
from pool_scenes import leave_out_children_of_others


@pytest.fixture(autouse=True)
def _only_own_children() -> None:
    leave_out_children_of_others()
