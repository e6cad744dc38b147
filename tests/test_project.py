"""Project files agree with the package: dependencies, pinned tools, citation, and how extras are installed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from alexnet_exp import errors
from alexnet_exp.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SOURCES = [*(ROOT / "alexnet_exp").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py"), ROOT / "train.py"]


def name_of(requirement: str) -> str:
    """Return the normalised name of a package: PyYAML>=6 is pyyaml."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]


def imported() -> set[str]:
    """Return the packages that the package imports anywhere, at module level or inside functions."""
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"alexnet_exp"}


def test_every_import_of_the_package_is_a_direct_dependency() -> None:
    extras = [each for name, packages in EXTRAS.items() if name not in ("all", "dev") for each in packages]
    declared = {name_of(each) for each in PROJECT["dependencies"] + extras}
    installed = metadata.packages_distributions()
    missing = {
        module
        for module in imported()
        if not declared & {name_of(each) for each in installed.get(module, [module])}
    }
    assert not missing


def test_every_core_dependency_is_imported() -> None:
    installed = metadata.packages_distributions()
    used = {name_of(each) for module in imported() for each in installed.get(module, [module])}
    assert {name_of(each) for each in PROJECT["dependencies"]} <= used


# --------------------------------------------------------------------------------------------- extras


def installed_at(monkeypatch: pytest.MonkeyPatch, root: Path, *files: str) -> None:
    """Pretend that errors.py is in a package below `root`, next to these files and folders."""
    (root / "alexnet_exp").mkdir(parents=True)
    for name in files:
        (root / name).mkdir() if name == "conf" else (root / name).touch()
    monkeypatch.setattr(errors, "__file__", str(root / "alexnet_exp" / "errors.py"))


def test_an_extra_of_a_checkout_is_installed_from_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_at(monkeypatch, tmp_path / "my lab", "pyproject.toml", "conf")
    monkeypatch.chdir(tmp_path / "my lab")
    assert errors.missing_extra("onnx", "export") == "onnx: pip install -e '.[export]'"
    monkeypatch.chdir(tmp_path)
    assert errors.missing_extra("onnx", "export") == f"onnx: pip install -e '{tmp_path}/my lab[export]'"


def test_an_extra_of_an_installed_package_is_installed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_at(monkeypatch, tmp_path / "site-packages")
    assert errors.missing_extra("onnx", "export") == "onnx: pip install 'alexnet-exp[export]'"


def test_messages_leave_the_command_to_missing_extra_and_name_extras_that_exist() -> None:
    text = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    assert [path.name for path, code in text.items() if re.search(r"alexnet[-_]exp\[\{", code)] == [
        "errors.py"
    ]
    asked = [
        extra for code in text.values() for extra in re.findall(r'missing_extra\(.+, ["\'](\w+)["\']\)', code)
    ]
    assert len(asked) >= 8
    assert set(asked) <= set(EXTRAS)


# ------------------------------------------------------------------------------ files of other tools


def test_pre_commit_runs_the_ruff_that_make_lint_runs() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    repos: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in repos if repo["repo"] != "local"}
    assert revisions == {"ruff-pre-commit": f"v{pinned['ruff']}"}


def test_pre_commit_has_every_linter_of_make_lint() -> None:
    lint = re.findall(r"\$\(BIN\)/([\w-]+(?: (?:check|format))?)", _recipe("lint"))
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert sorted(
        hook.get("entry", hook["id"]).removeprefix(".venv/bin/").replace("-", " ") for hook in hooks
    ) == (sorted(name.replace("-", " ") for name in lint))


def _recipe(target: str) -> str:
    return re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]  # type: ignore[index]


def test_the_workflow_tests_the_oldest_python_with_make_test() -> None:
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]["test"]
    assert PROJECT["requires-python"].removeprefix(">=") == job["strategy"]["matrix"]["python-version"][0]
    assert any(step.get("run", "").startswith("make test") for step in job["steps"])


def test_the_citation_agrees_with_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])
    assert citation["authors"] == PROJECT["authors"]
    assert citation["title"].startswith(PROJECT["name"])


def test_the_package_has_a_py_typed_marker() -> None:
    assert (ROOT / "alexnet_exp" / "py.typed").is_file()  # the wheel contains every file of the package
