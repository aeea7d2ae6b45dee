"""Tests of what a whole run measures."""

import json

import pytest

from benchmarks import run


@pytest.mark.parametrize(
    ("rate", "flags"), [(110.0, []), (400.0, []), (110.0, ["--only=ours-bf16"])]
)
def test_bfloat16_is_left_out_without_instructions_for_it(rate, flags, monkeypatch, tmp_path):
    measured = []

    def describe_machine(threads):
        return {"threads": threads, "matrix_gflops": {"float32": 120.0, "bfloat16": rate}}

    def measure(size, what, comparison, *_):
        measured.append((comparison.first, comparison.second))
        return {**run._heading(size, what, comparison), "reason": "not now"}

    monkeypatch.setattr(run, "describe_machine", describe_machine)
    monkeypatch.setattr(run, "_measure", measure)
    monkeypatch.setattr(run, "_program", lambda name, log, **_: {"reason": "not now"})
    run.main(["--sizes=small", f"--output_dir={tmp_path}", *flags])

    entries = json.loads((tmp_path / "results.json").read_text())["entries"]
    left_out = [e for e in entries if e["reason"] != "not now"]
    assert len(entries) == len(measured) + len(left_out)
    uses = [any("bf16" in row for row in pair) for pair in measured]
    if rate > 120 or flags:
        assert not left_out
        assert any(uses)
    else:
        assert not any(uses)
        assert all("bfloat16" in e["reason"] for e in left_out)
        assert {e["what"] for e in left_out} >= {"train", "log_prob", "sample"}
