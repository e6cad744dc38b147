"""`alexnet-exp dashboard`: create a W&B workspace and report from code."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console

from alexnet_exp.config.schema import checked, choice, flag, group, list_of, setting, text
from alexnet_exp.errors import UserError, missing_extra
from alexnet_exp.files import write_atomically
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.wandb.internals import as_sent
from alexnet_exp.tracking.wandb.mode import base_url, has_api_key, require_wandb


@group
class Dashboard:
    """Keys of conf/dashboard.yaml."""

    project: str = setting(text)  # ENTITY/PROJECT
    parts: list[str] = setting(list_of(choice("workspace", "report")))
    name: str = setting(text)
    columns: list[str] = setting(list_of(text))
    dry_run: bool = setting(flag)


def dashboard(config: dict[str, Any], run_dir: Path, command: str) -> dict[str, Any]:
    """Create a workspace and a report in a W&B project, or write them to a file with `dry_run`.

    Args:
        config: Keys of conf/dashboard.yaml.
        run_dir: Directory of dashboard.json and result.json.
        command: The command line, for the record.

    Returns:
        The content of result.json: URLs, or the file.

    Raises:
        UserError: Illegal setting, missing package or API key, or W&B rejects the request.
    """
    settings = checked(Dashboard, config)
    entity, project = _place(settings)
    require_wandb()
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(f"dashboard needs {missing_extra('wandb-workspaces', 'dashboard')}")
    if not settings.dry_run and not has_api_key(base_url()):
        raise UserError(
            "W&B has no API key: run `wandb login`, or set dry_run=true to write the dashboard to a file."
        )
    made = _build(entity, project, settings)
    console, run = Console(soft_wrap=True, highlight=False), RunDirectory(run_dir)
    result: dict[str, Any] = {"status": "finished", "command": command, "project": f"{entity}/{project}"}
    with run.fresh():
        if settings.dry_run:
            path = run.path / "dashboard.json"
            sent = {name: as_sent(part) for name, part in made.items()}
            write_atomically(path, json.dumps(sent, indent=2, ensure_ascii=False, default=str) + "\n")
            console.print(f"dashboard: {os.path.relpath(path)}", markup=False)
            result["file"] = path.name
        else:
            result["urls"] = {}
            for name, part in made.items():
                result["urls"][name] = _save(part, name)
                console.print(f"{name}: {result['urls'][name]}", markup=False)
        run.write_result(result)
    return result


def _place(settings: Dashboard) -> tuple[str, str]:
    """Return (entity, project).

    Raises:
        UserError: Illegal setting.
    """
    if not settings.parts:
        raise UserError("parts=[] selects nothing: set parts=[workspace], parts=[report] or both.")
    found = re.fullmatch(r"([\w.-]+)/([\w. -]+)", settings.project)
    if not found:
        raise UserError(
            f"invalid project={settings.project}: expected ENTITY/PROJECT, as in the URL of a W&B project."
        )
    return found[1], found[2]


def _build(entity: str, project: str, settings: Dashboard) -> dict[str, Any]:
    with warnings.catch_warnings():
        # wandb-workspaces uses pydantic 1's API, about which pydantic 2 warns on import.
        warnings.simplefilter("ignore", DeprecationWarning)
        from alexnet_exp.runs.dashboard import panels

        make = {"workspace": panels.workspace, "report": panels.report}
        return {name: make[name](entity, project, settings.name, settings.columns) for name in settings.parts}


def _save(part: Any, name: str) -> str:
    """Save a workspace or report; return its URL."""
    try:
        part.save()
    except Exception as error:
        # From wandb, its HTTP client or the server; there is no common base class.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"W&B rejected the {name}: {reason}") from error
    return str(part.url)
