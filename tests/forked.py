"""Runs code in new processes, which are forked from one that has imported the packages alone."""

import multiprocessing
import pathlib

_BEFORE = """
import os

os.chdir({folder!r})
for stream in (1, 2):
    os.dup2(os.open({output!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
"""
_SCRIPT = """
import os, pathlib, runpy, sys

os.environ.update({environment})
sys.argv = {arguments}
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(path, *arguments, **environment):
    """Returns code that runs a script."""
    arguments = [str(path), *map(str, arguments)]
    return _SCRIPT.format(arguments=arguments, environment=environment)


def context():
    """Returns the context of new processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tfp_realnvp.tables"])
    return context


def start(code, folder, output):
    """Starts a process of `code` in a folder; its output is appended to a file."""
    code = _BEFORE.format(folder=str(folder), output=str(output)) + code
    process = context().Process(target=exec, args=(code, {"__name__": "__main__"}))
    process.start()
    return process


def run(code, folder):
    """Returns the exit code and the output of `code`, which runs in a folder."""
    output = pathlib.Path(f"{folder}.txt")
    process = start(code, folder, output)
    process.join()
    return process.exitcode, output.read_text()
