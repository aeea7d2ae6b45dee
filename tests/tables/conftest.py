"""What the tests of tables share."""

import numpy as np
import pytest

from tfp_realnvp.tables import stack


@pytest.fixture
def no_flows(monkeypatch):
    """Leaves out flows, whose graphs take most of the time of a small fit."""
    monkeypatch.setattr(stack, "_MIN_ROWS_OF_FLOWS", np.inf)
