"""What the tests of tables share."""

import numpy as np
import pytest

from tfp_realnvp.tables import simple_densities, stack


@pytest.fixture
def no_flows(monkeypatch):
    """Leaves out flows, whose graphs take most of the time of a small fit."""
    monkeypatch.setattr(stack, "_MIN_ROWS_OF_FLOWS", np.inf)


@pytest.fixture
def few_components(monkeypatch):
    """Leaves out mixtures of many normal distributions, for tests of what a fit takes."""
    monkeypatch.setattr(simple_densities, "_NUM_COMPONENTS", (1, 2))
