"""README.md and the pages it moved to tell the truth: commands run, files exist, names are names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.cli import main
from alexnet_exp.config.compose import options
from alexnet_exp.zoo import list_models
from tests.data.makers import write_cifar10, write_folder, write_mnist
from tests.documents import VERB, arguments_of, blocks_of, brief, download_nothing, exit_code, shortened

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
] + sorted((ROOT / "docs").glob("*.md"))
RUN = "outputs/runs/first"  # README's example of a run directory
# Pages whose commands need data sets, and files that the page itself shows.
READ = [
    README,
    *((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("data", "extending", "photos")),
]

BLOCKS = [block for text in READ for block in blocks_of(text)]
COMMANDS = list(dict.fromkeys(
    line for block in BLOCKS if block.language in ("bash", "sh") and not block.reason
    for line in block.text.splitlines() if VERB.match(line)
))  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader would have it: tiny data sets, their own files, and nothing else."""
    write_cifar10(tmp_path / "data")
    write_mnist(tmp_path / "data")
    write_folder(
        tmp_path / "photos", {f"{split}/{name}": 3 for split in ("train", "val") for name in ("cat", "dog")}
    )
    write_folder(tmp_path / "unsorted", {"cat": 5, "dog": 5})
    write_folder(tmp_path, {"new": 2})
    for block in BLOCKS:
        if block.file:
            path = tmp_path / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("ALEXNET_DATA_DIR", raising=False)
    download_nothing(monkeypatch)
    return tmp_path


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that README's later commands start from."""
    folder = tmp_path_factory.mktemp("first")
    settings = [f"hydra.run.dir={folder / RUN}"]
    assert main(["train", *settings, *shortened(settings)]) == 0
    return folder / RUN


def _cases() -> list[Any]:
    """All commands; of the sweeps, only the resumed one is fast enough, and it starts a sweep itself."""
    slow = [line for line in COMMANDS if " -m " in line and "sweep.resume=" not in line]
    return [
        pytest.param(line, marks=[pytest.mark.slow] if line in slow else [], id=line) for line in COMMANDS
    ]


@pytest.mark.parametrize("command", _cases())
def test_a_command_of_the_readme_runs(
    command: str,
    project: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = arguments_of(command)
    if "tensorboard" in command:
        pytest.importorskip("tensorboard")
    if str(Path(RUN).parent) in command and f"hydra.run.dir={RUN}" not in command:
        shutil.copytree(request.getfixturevalue("first_run"), project / RUN)
    trains = arguments[0] == "train" and not {"--help", "--cfg"} & set(arguments)
    if arguments[0] == "benchmark":
        arguments += brief(arguments)
    longer = ["trainer.max_epochs=2"] if "resume=" in command or "ckpt=" in command else []
    arguments += [*(shortened(arguments[1:]) if trains else []), *longer]
    arguments = [each.replace("seed=0,1", "seed=0") for each in arguments]
    if "sweep.resume=" in command:  # resumes the sweep of the previous command
        assert exit_code([each.replace("sweep.resume=", "hydra.sweep.dir=") for each in arguments]) == 0
    code = exit_code(arguments)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    if trains:
        assert ("compare.html" if "-m" in arguments else "report.html") in printed.out
        assert list(project.glob("outputs/**/result.json"))


def test_the_readme_has_commands_to_test() -> None:
    assert len(COMMANDS) > 30
    assert "python train.py model=alexnet_lrn data=cifar10 trainer.devices=2" in COMMANDS


PYTHON = [block.text for block in BLOCKS if block.language == "python" and not block.reason]


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[0])
def test_a_python_example_of_the_readme_runs(
    code: str, project: Path, first_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(first_run, project / RUN)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    if "logits" in names:
        assert names["logits"].shape == (1, 10)
        assert "alexnet_lrn" in capsys.readouterr().out
        assert len(names["prediction"].classes) == 3


# ------------------------------------------------------------------------------------------------ names


def test_every_option_that_the_pages_name_exists() -> None:
    groups = "model|data|augment|optimizer|scheduler|trainer|callbacks|logger|experiment|sweep|debug|paths"
    own = {
        (Path(block.file).parts[1], Path(block.file).stem)
        for block in BLOCKS
        if (block.file or "").endswith("yaml")
    }
    for group, names in re.findall(rf"(?<![\w.])({groups})=\[?([a-z][a-z0-9_,]*)", "".join(READ)):
        for name in names.rstrip(",").split(","):
            assert name in options(group) or (group, name) in own, f"{group}={name}"


def test_the_table_of_groups_lists_every_option() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|[^|]+\|$", README, re.MULTILINE))
    for group in (
        "data",
        "augment",
        "optimizer",
        "scheduler",
        "trainer",
        "callbacks",
        "logger",
        "debug",
        "sweep",
    ):
        assert sorted(re.findall(r"`(\w+)`", rows[group])) == options(group), group


def test_the_table_of_models_lists_every_model_with_its_size() -> None:
    from alexnet_exp.runs.models import describe

    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d,]+) \|", page, re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == list_models()
    for name, size, parameters in rows:
        known = describe(name)
        assert (int(size), int(parameters.replace(",", ""))) == (known["input_size"], known["parameters"]), (
            name
        )


# ------------------------------------------------------------------------------------------------ files


def _tree() -> dict[str, str]:
    """Return the paths in ARCHITECTURE's file tree, and what it says of each."""
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    block = next(b.text for b in blocks_of(page) if b.language == "text" and b.text.startswith("train.py"))
    folders: list[str] = []
    paths = {}
    for line in block.splitlines():
        depth, (name, *words) = (len(line) - len(line.lstrip())) // 2, line.split()
        paths["".join([*folders[:depth], name])] = " ".join(words)
        if name.endswith("/"):
            folders[depth:] = [name]
    return paths


def test_every_path_of_the_tree_exists_and_has_a_line() -> None:
    for path, words in _tree().items():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
        assert words, path


def test_every_name_in_the_table_of_places_is_defined_in_its_file() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\|.*?\|(.*)\|$", page.partition("## Where is ...?")[2].partition("\n## ")[0], re.MULTILINE
    )
    places = [
        found
        for row in rows
        for found in re.findall(r"((?:`[\w.]+`(?:, then )?)*)(?: in )?`([\w/]+\.py)`", row)
    ]
    assert len(places) > 10
    for names, path in places:
        code = (ROOT / "alexnet_exp" / path).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names.replace(", then", "")):
            assert re.search(rf"^ *(?:def|class) {name}\b|^{name}\b.*=", code, re.MULTILINE), (name, path)


def test_every_folder_of_the_package_is_in_the_tree() -> None:
    modules = [path.relative_to(ROOT) for path in (ROOT / "alexnet_exp").rglob("*.py")]
    assert not {f"{module.parent.as_posix()}/" for module in modules} - set(_tree())


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
