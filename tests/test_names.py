"""What `import tfp_realnvp as tfr` gives."""

import importlib.metadata
import inspect

import pytest

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick


def test_dir_is_what_is_public():
    names = set(dir(tfr))
    assert {"FlowModel", "RealNVPImage", "log_prob", "data", "latents", "__version__"} <= names
    assert "FlowDensity" in names
    assert names.isdisjoint({"bijectors", "internal", "training", "importlib", "Any"})
    assert all(getattr(tfr, name) is not None for name in names)


def test_arguments_are_alike_in_all_functions():
    modules = [tfr, *(getattr(tfr, name) for name in tfr._MODULES)]
    functions = [vars(module)[name] for module in modules for name in module.__all__]
    found = set()
    for function in filter(inspect.isfunction, functions):
        for parameter in inspect.signature(function).parameters.values():
            found.add(parameter.name)
            if parameter.name in ("seed", "batch_size"):
                is_required = parameter.default is parameter.empty
                is_keyword = parameter.kind is parameter.KEYWORD_ONLY
                assert is_required or is_keyword, f"{function.__name__}: {parameter}"
    assert {"seed", "batch_size", "num_samples"} <= found
    assert found.isdisjoint({"num_draws", "num_images", "num", "random_seed"})


def test_version():
    assert tfr.__version__ == importlib.metadata.version("tfp_realnvp")


def test_unknown_name():
    with pytest.raises(AttributeError, match="'tfp_realnvp' has no attribute 'datasets'"):
        _ = tfr.datasets
