"""The wheel: its files, and the README's first example in an environment that has it installed."""

import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

pytestmark = [pytest.mark.full, pytest.mark.slow]

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # A build in the checkout would also pack deleted modules that an earlier build left there.
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, source)
    shutil.copytree(_ROOT / "tfp_realnvp", source / "tfp_realnvp")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", output, source], check=True)
    [path] = output.glob("tfp_realnvp-*.whl")
    return path


def test_the_wheel_has_the_files_of_the_package(wheel):
    modules = {path.relative_to(_ROOT).as_posix() for path in _ROOT.glob("tfp_realnvp/**/*.py")}
    assert "tfp_realnvp/bijectors/squeeze.py" in modules
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        preset_sizes = [
            item.compress_size for item in archive.infolist() if "/presets/" in item.filename
        ]
    files = {path for path in (_ROOT / "tfp_realnvp/presets").glob("*/*") if path.is_file()}
    presets = {path.relative_to(_ROOT).as_posix() for path in files}
    assert "tfp_realnvp/presets/digits/model.weights.h5" in presets
    assert names == modules | presets | {"tfp_realnvp/py.typed"}
    assert sum(preset_sizes) < 4_000_000


def test_the_example_of_the_readme_runs_with_the_wheel(wheel, tmp_path):
    # A new environment that shares the dependencies of this one. Python does not process `.pth`
    # files, such as that of an editable install, in folders that are listed in a `.pth` file.
    venv.create(tmp_path / "env", symlinks=True, with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = pathlib.Path(
        subprocess.run(
            [python, "-c", query], check=True, capture_output=True, text=True
        ).stdout.strip()
    )
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)

    readme = (_ROOT / "README.md").read_text()
    [example] = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[:1]
    script = tmp_path / "example.py"
    modules = ("data", "latents", "outliers", "plots", "tables")
    lazy = [f"tfp_realnvp.{name}" for name in modules]
    script.write_text(
        f"import sys\nimport tfp_realnvp\nassert sys.modules.keys().isdisjoint({lazy})\n"
        "import tensorflow as tf\n"
        "tf.config.optimizer.set_experimental_options({'disable_meta_optimizer': True})\n"
        f"{example}\nprint(tfr.__file__)\n"
    )
    # Isolated mode: neither PYTHONPATH nor the working directory provides the package.
    run = subprocess.run(
        [python, "-I", script], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert pathlib.Path(run.stdout.splitlines()[-1]) == site_packages / "tfp_realnvp/__init__.py"
