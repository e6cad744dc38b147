"""`alexnet-exp dashboard`: the requests to W&B, without an account."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet_exp.config.schema import rules_of
from alexnet_exp.errors import UserError
from alexnet_exp.runs.dashboard.command import dashboard
from alexnet_exp.runs.evaluate.settings import Evaluate
from alexnet_exp.tracking.wandb.logger import X_AXES
from alexnet_exp.tracking.wandb.media import confusion_panels
from tests.runs.evaluated_runs import alexnet_exp

pytestmark = pytest.mark.usefixtures("no_account")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None, reason="wandb-workspaces is not installed"
)


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    """Return dashboard.json of a dry run."""
    out = tmp_path / "out"
    words = ["me/my-project", "dry_run=true", "columns=[names.model,optimizer.lr]", f"hydra.run.dir={out}"]
    assert alexnet_exp("dashboard", *words) == 0
    return json.loads((out / "dashboard.json").read_text())


def panels_of(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the panels of the workspace and of the report."""
    sections = spec["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    blocks = spec["report"]["spec"]["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    return {
        "workspace": [panel for section in sections for panel in section["panels"]],
        "report": [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]],
    }


@needs_package
def test_workspace_and_report_have_the_same_panels(spec: dict[str, Any]):
    workspace, report = (
        [(panel["viewType"], panel["config"]) for panel in panels] for panels in panels_of(spec).values()
    )
    assert len(workspace) == 16
    assert workspace == report
    assert (spec["workspace"]["entity"], spec["workspace"]["project"]) == ("me", "my-project")
    assert spec["report"]["project"] == {"name": "my-project", "entityName": "me"}


@needs_package
def test_panels_use_keys_that_a_run_logs(spec: dict[str, Any]):
    recorded = {"train/loss_step", "images_per_second", "val/top1", "val/loss", "test/top1"}
    axes = {name: axis for name, axis in X_AXES.items() if not name.endswith("*")}
    lines = [p["config"] for p in panels_of(spec)["workspace"] if "Line Plot" in p["viewType"]]
    assert {line["groupBy"] for line in lines} == {"names.value.model", "names.value.data"}
    for line in lines:
        (metric,) = line["metrics"]
        assert metric in recorded
        assert line["xAxis"] == axes.get(metric, "epoch")
    bars = [p["config"]["metrics"] for p in panels_of(spec)["workspace"] if p["viewType"] == "Bar Chart"]
    assert {metric for bar in bars for metric in bar} <= recorded


@needs_package
def test_parallel_coordinates_have_an_axis_per_setting(spec: dict[str, Any]):
    (plot,) = [
        p["config"] for p in panels_of(spec)["workspace"] if p["viewType"] == "Parallel Coordinates Plot"
    ]
    accessors = [column["accessor"] for column in plot["columns"]]
    assert accessors == ["config:names.value.model", "config:optimizer.value.lr", "summary:val/top1"]
    assert [column.get("log") for column in plot["columns"]] == [None, True, None]


@needs_package
def test_the_confusion_chart_reads_the_table_that_a_run_logs(spec: dict[str, Any]):
    (chart,) = [p["config"] for p in panels_of(spec)["workspace"] if p["viewType"] == "Vega2"]
    logged = confusion_panels(np.eye(2, dtype=int), ["a", "b"])["confusion_matrix"]
    logged.set_key("confusion_matrix")
    expected = logged.spec.config_value["panel_config"]
    assert chart["panelDefId"] == expected["panelDefId"]
    assert chart["fieldSettings"] == expected["fieldSettings"]
    assert chart["stringSettings"] == expected["stringSettings"]
    assert json.dumps(logged.spec.table_key) in json.dumps(chart["userQuery"])


@needs_package
def test_the_confusion_matrices_of_all_evaluations_are_shown(spec: dict[str, Any]):
    splits, views = ("test", "val", "train"), ("centre", "flip", "flip_translate", "ten_crop")
    assert all(rules_of(Evaluate)["split"].legal(split) for split in splits)
    assert all(rules_of(Evaluate)["views"].legal(each) for each in views)
    (shown,) = [
        p["config"]["mediaKeys"]
        for p in panels_of(spec)["workspace"]
        if p["config"].get("chartTitle") == "From alexnet-exp evaluate"
    ]
    assert set(shown) == {f"evaluate/{split}_{each}/confusion_matrix" for split in splits for each in views}


@needs_package
def test_large_confusion_matrices_use_keys_that_a_run_logs(spec: dict[str, Any]):
    logged = confusion_panels(np.eye(101, dtype=int), [str(i) for i in range(101)])
    assert set(logged) == {"confusion_matrix", "confusion_mistakes"}
    panels = panels_of(spec)["workspace"]
    assert ["confusion_matrix"] in [panel["config"].get("mediaKeys") for panel in panels]
    tables = [json.dumps(panel["config"]) for panel in panels if panel["viewType"] == "Weave"]
    assert ['"confusion_mistakes"' in table for table in tables] == [True]


@needs_package
def test_parts_can_be_selected(tmp_path: Path):
    words = ["me/p", "dry_run=true", "parts=[report]", f"hydra.run.dir={tmp_path / 'out'}"]
    assert alexnet_exp("dashboard", *words) == 0
    assert list(json.loads((tmp_path / "out" / "dashboard.json").read_text())) == ["report"]


@needs_package
def test_without_an_api_key_the_error_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert alexnet_exp("dashboard", "me/p", f"hydra.run.dir={tmp_path / 'out'}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb login" in line
    assert "dry_run=true" in line
    assert not (tmp_path / "out").exists()


@needs_package
def test_a_rejected_request_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    from wandb_workspaces.workspaces import Workspace

    def refuse(self: Workspace) -> None:
        raise RuntimeError("permission\ndenied")

    monkeypatch.setattr(Workspace, "save", refuse)
    with pytest.raises(UserError, match="W&B rejected the workspace: permission denied"):
        dashboard(settings(), tmp_path / "out", "")


def settings(**changes: Any) -> dict[str, Any]:
    config = {"project": "me/p", "parts": ["workspace"], "name": "n", "columns": ["seed"], "dry_run": False}
    return config | changes


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb_workspaces" else find(name, *a)
    )
    with pytest.raises(UserError, match=r"wandb-workspaces: pip install -e '.*\[dashboard\]'"):
        dashboard(settings(dry_run=True), tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"project": "alone"}, "expected ENTITY/PROJECT"),
        ({"project": "a/b/c"}, "expected ENTITY/PROJECT"),
        ({"parts": []}, "selects nothing"),
        ({"parts": ["page"]}, "parts="),
        ({"columns": "seed"}, "columns="),
    ],
)
def test_errors_in_settings_are_one_line(tmp_path: Path, changes: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        dashboard(settings(**changes), tmp_path / "out", "")
