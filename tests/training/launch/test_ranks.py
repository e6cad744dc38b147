"""What the other ranks of a run receive, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alexnet_exp.training.launch.ranks import Ranks

PASSWORD = "hunter22-typed-password"
SETTINGS: dict[str, Any] = {
    "url": f"s3://user:{PASSWORD}@host/images",
    "callbacks": {"client": {"password": f"{PASSWORD}: ${{not a reference}}", "ports": [1, 2]}},
    "classes": {10: "ten", 2: "two", "2": "text"},
    "features": {"conv2": None, "conv1": True},
    "numbers": [1e-5, 0.1 + 0.2, 1e16, float("inf"), -3, "1e-4", "yes", "null", "2026-01-01", ""],
    "path": "caf\udce9 \u2603 \U0001f600\nline\ttab \x07",
}


class EchoRanks(Ranks):
    module = "tests.training.launch.echo_rank"


def test_every_rank_receives_the_settings_unchanged_and_secrets_go_nowhere_else(tmp_path: Path):
    overrides = [f"+callbacks.client.password={PASSWORD}"]
    with EchoRanks(tmp_path, 3) as ranks:
        ranks.go(SETTINGS, overrides)
    for rank in (1, 2):
        said = json.loads((tmp_path / f"rank-{rank}").read_text())
        assert said["settings"] == repr([SETTINGS, overrides])
        assert PASSWORD not in json.dumps([said["arguments"], said["environment"]])


def test_a_rank_receives_nothing_if_rank_0_exits(tmp_path: Path):
    with EchoRanks(tmp_path, 2) as ranks:
        for child in ranks._children:
            assert child.stdin is not None
            child.stdin.write(b"12\n- half")
            child.stdin.close()
    assert json.loads((tmp_path / "rank-1").read_text())["settings"] == "None"
