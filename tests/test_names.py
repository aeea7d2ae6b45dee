"""What `import tfp_realnvp as tfr` gives."""

import importlib.metadata
import types

import pytest

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick


def test_dir_is_what_is_public():
    names = set(dir(tfr))
    assert {"FlowModel", "RealNVPImage", "log_prob", "data", "latents", "__version__"} <= names
    assert "FlowDensity" in names
    assert names.isdisjoint({"bijectors", "internal", "training", "importlib", "Any"})
    for name in names:
        assert getattr(tfr, name) is not None


@pytest.mark.parametrize("name", ["data", "evaluation", "latents", "outliers", "plots"])
def test_modules(name):
    module = getattr(tfr, name)
    assert isinstance(module, types.ModuleType) and module.__name__ == f"tfp_realnvp.{name}"
    assert all(hasattr(module, public) for public in module.__all__)


def test_version():
    assert tfr.__version__ == importlib.metadata.version("tfp_realnvp")


def test_unknown_name():
    with pytest.raises(AttributeError, match="'tfp_realnvp' has no attribute 'datasets'"):
        _ = tfr.datasets
