"""`alexnet-exp dashboard`: a W&B workspace and a report, built from code."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console

from alexnet_exp.config.checks import check_rules
from alexnet_exp.config.schema import choice, flag, list_of, text
from alexnet_exp.errors import UserError, missing_extra
from alexnet_exp.files import write_atomically
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.wandb.internals import as_sent
from alexnet_exp.tracking.wandb.mode import base_url, has_api_key, require_wandb

RULES = {
    "project": text,
    "parts": list_of(choice("workspace", "report")),
    "name": text,
    "columns": list_of(text),
    "dry_run": flag,
}


def dashboard(config: dict[str, Any], run_dir: Path, command: str) -> dict[str, Any]:
    """Build a workspace and a report for a W&B project; save them there, or write what would be saved to a file.

    Args:
        config: Keys of conf/dashboard.yaml.
        run_dir: Where dashboard.json and result.json go.
        command: The command line, for the record.

    Returns:
        What result.json holds: the addresses, or the file.

    Raises:
        UserError: For an illegal setting, a package or an API key that is missing, or a server that refuses.
    """
    entity, project = _check(config)
    require_wandb()
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(f"dashboard needs {missing_extra('wandb-workspaces', 'dashboard')}")
    if not config["dry_run"] and not has_api_key(base_url()):
        raise UserError(
            "W&B has no API key: `wandb login` sets one, or say dry_run=true to write the dashboard to a file."
        )
    made = _build(entity, project, config)
    console, run = Console(soft_wrap=True, highlight=False), RunDirectory(run_dir)
    result: dict[str, Any] = {"status": "finished", "command": command, "project": f"{entity}/{project}"}
    with run.fresh():
        if config["dry_run"]:
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


def _check(config: dict[str, Any]) -> tuple[str, str]:
    """Return entity and project.

    Raises:
        UserError: For an illegal setting.
    """
    check_rules(config, RULES)
    if not config["parts"]:
        raise UserError("parts=[] asks for nothing: say parts=[workspace], parts=[report] or both.")
    found = re.fullmatch(r"([\w.-]+)/([\w. -]+)", config["project"])
    if not found:
        raise UserError(
            f"project={config['project']} must be ENTITY/PROJECT, as in the address of a W&B project."
        )
    return found[1], found[2]


def _build(entity: str, project: str, config: dict[str, Any]) -> dict[str, Any]:
    with warnings.catch_warnings():
        # wandb-workspaces is written for pydantic 1, and pydantic 2 tells everybody who imports it.
        warnings.simplefilter("ignore", DeprecationWarning)
        from alexnet_exp.runs.dashboard import panels

        make = {"workspace": panels.workspace, "report": panels.report}
        return {
            name: make[name](entity, project, config["name"], config["columns"]) for name in config["parts"]
        }


def _save(part: Any, name: str) -> str:
    """Save a workspace or report, and return its address."""
    try:
        part.save()
    except Exception as error:
        # Of wandb, its HTTP client or the server: whatever it is, the user can only read it.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"W&B did not take the {name}: {reason}") from error
    return str(part.url)
