"""`alexnet-exp compare` over hand-made run directories."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.cli import main
from alexnet_exp.runs.compare.settings import choices, differing
from alexnet_exp.tracking.run_reader import find_runs
from tests.runs.made_runs import make_run


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two learning rates, two seeds each; a failed, a killed and an untested run."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep"
    job = 0
    for lr, top1 in ((0.1, 0.80), (0.01, 0.90)):
        for seed in (1, 2):
            typed = [f"optimizer.lr={lr}", f"seed={seed}"]
            value = top1 + seed / 100
            make_run(folder / str(job), value, val=[0.5, value], typed=typed, seed=seed, optimizer={"lr": lr})
            job += 1
    make_run(folder / "4", status="failed", typed=["optimizer.lr=9"], optimizer={"lr": 9.0})
    make_run(folder / "5", status=None, val=[0.3, 0.4], typed=["optimizer.lr=1"], optimizer={"lr": 1.0})
    make_run(folder / "10", val=[0.7, 0.6], typed=["optimizer.lr=0.5"], optimizer={"lr": 0.5})
    return folder


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(["compare", *arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    return json.loads(compare(capsys, *arguments, "format=json", "page=false"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["compare", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not Path("outputs/compare").exists()
    return err


def test_the_jobs_of_a_sweep_are_listed_best_first(sweep: Path, capsys: pytest.CaptureFixture[str]):
    runs = as_json(capsys, str(sweep))["runs"]
    assert [run["run"] for run in runs] == ["3", "2", "1", "0", "10", "5", "4"]
    assert [run["status"] for run in runs[4:]] == ["finished", "unfinished", "failed"]
    assert [run["best"] for run in runs] == [True] + 6 * [False]
    assert runs[0] | {"path": ""} == {
        "run": "3", "path": "", "status": "finished", "metric": "test/top1", "value": 0.92, "images": None,
        "best": True, "epochs": 2, "images_per_second": 1234.5, "group": 1,
        "settings": {"optimizer.lr": 0.01, "seed": 2},
    }  # fmt: skip


def test_untested_run_is_scored_by_its_best_validation(sweep: Path, capsys: pytest.CaptureFixture[str]):
    runs = {run["run"]: run for run in as_json(capsys, str(sweep))["runs"]}
    assert (runs["10"]["metric"], runs["10"]["value"]) == ("val/top1", 0.7)
    assert (runs["5"]["metric"], runs["5"]["value"], runs["5"]["epochs"]) == ("val/top1", 0.4, 2)
    assert runs["5"]["images_per_second"] == 150.0
    assert (runs["4"]["metric"], runs["4"]["value"]) == (None, None)


def test_seeds_of_one_configuration_are_grouped(sweep: Path, capsys: pytest.CaptureFixture[str]):
    groups = as_json(capsys, str(sweep))["groups"]
    first = groups[0]
    assert (first["n"], first["runs"], first["best"]) == (2, ["2", "3"], True)
    assert first["mean"] == pytest.approx(0.915)
    assert first["sd"] == pytest.approx(0.0070711, abs=1e-7)
    # 12.7062 * 0.0070711 / sqrt(2)
    assert first["interval"] == pytest.approx([0.915 - 0.063531, 0.915 + 0.063531], abs=1e-6)
    assert first["settings"] == {"optimizer.lr": 0.01}
    assert [group["interval"] is None for group in groups] == [False, False, True, True, True]


def test_run_that_locks_its_directory_is_running(sweep: Path, capsys: pytest.CaptureFixture[str]):
    with open(sweep / "5" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        runs = {run["run"]: run["status"] for run in as_json(capsys, str(sweep))["runs"]}
    assert runs["5"] == "running"
    assert {run["run"]: run["status"] for run in as_json(capsys, str(sweep))["runs"]}["5"] == "unfinished"


def test_any_logged_metric_can_rank_runs(sweep: Path, capsys: pytest.CaptureFixture[str]):
    runs = as_json(capsys, str(sweep), "metric=val/loss")["runs"]
    assert runs[0]["run"] == "3"
    assert runs[0]["value"] == pytest.approx(0.08)
    assert {run["run"]: run["value"] for run in runs}["10"] == pytest.approx(0.3)  # of the best epoch


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("optimizer.lr", ["2", "3", "0", "1", "10", "5", "4"]),
        ("-optimizer.lr", ["4", "5", "10", "0", "1", "2", "3"]),
        ("name", ["0", "1", "10", "2", "3", "4", "5"]),
        ("-test/top1", ["3", "2", "1", "0", "4", "5", "10"]),
        ("-metric", ["3", "2", "1", "0", "4", "5", "10"]),
    ],
)
def test_runs_are_sorted_as_asked(
    sweep: Path, capsys: pytest.CaptureFixture[str], sort: str, expected: list[str]
):
    assert [run["run"] for run in as_json(capsys, str(sweep), f"sort={sort}")["runs"]] == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("optimizer.lr>0.01 and status=finished", {"0", "1", "10"}),
        ("status=failed or val/top1<=0.4", {"4", "5"}),
        ("test/top1>0.9", {"2", "3"}),
        ("epochs=2 and seed=0", {"5", "10"}),
    ],
)
def test_runs_are_filtered_as_asked(
    sweep: Path, capsys: pytest.CaptureFixture[str], where: str, expected: set[str]
):
    assert {run["run"] for run in as_json(capsys, str(sweep), f"where={where}")["runs"]} == expected


def test_config_file_names_replace_the_settings_they_imply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, size in (("alexnet_cifar", 32), ("alexnet", 227)):
        for seed in (0, 1):
            model, data = {"input_size": size, "lrn": {"k": size / 2}}, {"image_size": size}
            make_run(
                tmp_path / f"{name}{seed}", 0.5, typed=[f"model={name}", f"seed={seed}"], seed=seed,
                model=model, data=data,
            )  # fmt: skip
    found = as_json(capsys, str(tmp_path))
    assert found["runs"][0]["settings"].keys() == {"model", "seed"}
    assert {run["settings"]["model"] for run in found["runs"]} == {"alexnet", "alexnet_cifar"}
    assert {run["run"] for run in as_json(capsys, str(tmp_path), "where=model=alexnet")["runs"]} == {
        "alexnet0",
        "alexnet1",
    }


def test_typed_setting_is_listed_beside_the_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, size in (("a", 32), ("b", 48)):
        typed = [f"model={name}", f"model.input_size={size}"]
        make_run(tmp_path / name, 0.5, typed=typed, model={"input_size": size})
    settings = [run["settings"] for run in as_json(capsys, str(tmp_path))["runs"]]
    assert settings == [{"model": "a", "model.input_size": 32}, {"model": "b", "model.input_size": 48}]


def test_one_batch_is_distinguished_from_all_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, limit in (("one", 1), ("all", 1.0)):
        make_run(tmp_path / name, 0.5, trainer={"limit_train_batches": limit})
    lines = compare(capsys, str(tmp_path), "page=false").splitlines()
    assert {tuple(line.split()[-2:]) for line in lines if "limit" in line} == {
        ("one", "trainer.limit_train_batches=1"),
        ("all", "trainer.limit_train_batches=1.0"),
    }


def test_configurations_without_distinguishing_settings_are_described_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def configurations(folder: str) -> list[str]:
        groups, _, _ = compare(capsys, str(tmp_path / folder), "page=false").partition("\n\n")
        return [re.split(r"  +", line.strip())[-1] for line in groups.splitlines()[1:]]

    for seed in (0, 1):
        make_run(tmp_path / "sweep" / str(seed), 0.5, seed=seed)
        make_run(tmp_path / "many" / f"b{seed}", 0.5, seed=seed, data={str(i): 0 for i in range(7)})
    make_run(tmp_path / "many" / "a", 0.4, data={str(i): 1 for i in range(7)})
    assert configurations("sweep") == ["the same for all runs"]
    assert configurations("many")[0] == "as most runs"


def test_recorded_config_names_describe_a_run(tmp_path: Path):
    typed = ["experiment=baseline", "seed=1"]
    recorded = {"experiment": "baseline", "model": "mine", "data": "stripes", "debug": "none"}
    make_run(tmp_path / "new", 0.5, typed=typed, choices=recorded)
    make_run(tmp_path / "old", 0.5, typed=typed)
    make_run(tmp_path / "shipped", 0.5, typed=["experiment=readme001"])
    new, old, shipped = find_runs([tmp_path])
    assert choices(new) == {"experiment": "baseline", "model": "mine", "data": "stripes"}
    assert choices(old) == {"experiment": "baseline"}  # files that do not exist here are not guessed
    assert (choices(shipped)["model"], choices(shipped)["data"]) == ("alexnet_lrn", "folder")
    assert not [key for key in differing([new, old]) if key.startswith("choices")]


def test_secrets_are_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a", "b"):
        make_run(tmp_path / name, 0.5, data={"url": f"s3://me:hunter2{name}@host/{name}"})
    assert "hunter2" not in json.dumps(as_json(capsys, str(tmp_path))["runs"][0]["settings"])


def test_csv_has_a_line_for_each_run(sweep: Path, capsys: pytest.CaptureFixture[str]):
    lines = list(csv.DictReader(io.StringIO(compare(capsys, str(sweep), "format=csv", "page=false"))))
    assert [line["run"] for line in lines] == ["3", "2", "1", "0", "10", "5", "4"]
    assert lines[0]["optimizer.lr"] == "0.01"
    assert float(lines[0]["group_mean"]) == pytest.approx(0.915)
    assert lines[-1]["value"] == lines[-1]["group_low"] == ""


def test_csv_has_settings_that_only_some_runs_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_run(tmp_path / "best", 0.9, data={"name": "digits"})
    make_run(tmp_path / "other", 0.5, data={"name": "folder", "root": "photos"})
    lines = list(csv.DictReader(io.StringIO(compare(capsys, str(tmp_path), "format=csv", "page=false"))))
    assert [(line["run"], line["data.name"], line["data.root"]) for line in lines] == [
        ("best", "digits", ""),
        ("other", "folder", "photos"),
    ]


def test_markdown_rows_have_a_cell_per_column(sweep: Path, capsys: pytest.CaptureFixture[str]):
    lines = compare(capsys, str(sweep), "format=markdown", "page=false").splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in tables[:7]} == {6}
    assert {line.count("|") for line in tables[7:]} == {7}
    assert "| 91.50 % * | 0.71 | 85.15 to 97.85 % | 2 | optimizer.lr=0.01 |" in tables


def test_file_extension_selects_the_table_format(sweep: Path, capsys: pytest.CaptureFixture[str]):
    said = compare(capsys, str(sweep), "out=a table.csv", "page=false")
    assert said == "table: a table.csv\n"
    assert Path("a table.csv").read_text().count("\n") == 8


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40])
def test_the_table_fits_the_terminal(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
):
    monkeypatch.setenv("COLUMNS", str(width))
    out = compare(capsys, str(sweep), "page=false")
    assert max(map(len, out.splitlines())) <= width
    words = "".join(out.split())
    for needed in ("91.50%*", "92.00%*", "70.00%val/top1", "failed", "unfinished", "optimizer.lr=0.01"):
        assert needed in words


def test_several_folders_and_awkward_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = ["a folder, with=signs", "it's [red]here[/red]", "plain"]
    paths = [str(make_run(tmp_path / name, 0.5, seed=i)) for i, name in enumerate(names)]
    assert {run["run"] for run in as_json(capsys, *paths)["runs"]} == set(names)
    assert "[red]here[/red]" in compare(capsys, *paths, "page=false")
    assert len(as_json(capsys, *paths, str(tmp_path))["runs"]) == 3  # found twice, counted once
    assert len(as_json(capsys, f"runs={tmp_path}")["runs"]) == 3


@pytest.mark.parametrize("kind", ["table", "markdown"])
def test_names_cannot_inject_terminal_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str):
    names = ("\x1b[31mred\nline", "[red]plain[/red]", os.fsdecode(b"caf\xe9"))
    for seed, name in enumerate(names):
        make_run(tmp_path / name, 0.5, seed=seed, data={"root": f"\x1b]0;{seed}\x07"})
    out = compare(capsys, str(tmp_path), f"format={kind}", "page=false")
    assert "\x1b" not in out and "\x07" not in out
    for shown in (r"\x1b[31mred\nline", "[red]plain[/red]", r"caf\udce9", r"data.root=\x1b]0;1\x07"):
        assert shown in out


def test_name_that_is_not_utf8_does_not_break_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "runs" / os.fsdecode(b"caf\xe9"), 0.5)
    make_run(tmp_path / "runs" / "b", 0.5)
    (run / "report.html").touch()
    assert main(["compare", str(tmp_path / "runs"), "format=json", f"hydra.run.dir={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert {entry["run"] for entry in json.loads(out)["runs"]} == {run.name, "b"}
    assert r"caf\udce9" in compare(capsys, str(tmp_path / "runs"), "format=csv", "page=false")
    assert 'href="../runs/caf%E9/report.html"' in (tmp_path / "out" / "compare.html").read_text()


def test_page_and_result_get_their_own_directory(sweep: Path, capsys: pytest.CaptureFixture[str]):
    said = compare(capsys, "sweep")
    (folder,) = Path("outputs/compare").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["compare.html", "result.json"]
    assert f"page:  {folder / 'compare.html'}\n" in said
    assert str(sweep.parent) not in said + (folder / "compare.html").read_text()
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert len(result["runs"]) == 7


def test_broken_run_does_not_break_the_table(sweep: Path, capsys: pytest.CaptureFixture[str]):
    (sweep / "3" / "result.json").write_text('{"status": "fin')
    (sweep / "2" / "overrides.yaml").write_text("- [")
    (sweep / "1" / "config.yaml").write_text("a: [")
    assert main(["compare", str(sweep), "format=json", "page=false"]) == 0
    out, err = capsys.readouterr()
    runs = {run["run"]: run["status"] for run in json.loads(out)["runs"]}
    assert (runs["3"], runs["2"]) == ("unfinished", "finished")
    assert "1" not in runs
    assert err == f"warning: {sweep / '1' / 'config.yaml'} cannot be read: its run is skipped\n"


def test_unreadable_folder_is_a_warning(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    locked = sweep / "locked"
    locked.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked)  # root can read everything
    assert main(["compare", str(sweep), "format=json", "page=false"]) == 0
    assert (
        capsys.readouterr().err == f"warning: {locked / 'config.yaml'} cannot be read: its run is skipped\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No runs given: try alexnet-exp compare outputs/runs."),
        (["nowhere"], "nowhere: there is no such directory."),
        (["empty"], "empty holds no training run"),
        (["sweep", "metric=test/top2"], "metric=test/top2: no run has logged it. Did you mean test/top1"),
        (["sweep", "sort=optimiser.lr"], "no run has a setting or metric optimiser.lr. Did you mean"),
        (["sweep", "where=optimizer.lr>fast"], "invalid where=optimizer.lr>fast: expected a number after >"),
        (["sweep", "where=lr>1"], "no run has a setting or metric lr."),
        (["sweep", "where=seed=77"], "matches none of the 7 runs"),
        (["sweep", "format=xml"], "invalid format='xml': expected one of table, csv"),
        (["sweep", "out=table.txt"], "set format=csv, markdown or json"),
        (["sweep", "out=nowhere/table.csv", "page=false"], "nowhere/table.csv cannot be written"),
        (["sweep", "sorted=seed"], "There is no setting sorted. Did you mean sort,"),
    ],
)
def test_mistake_is_reported_in_one_line(
    sweep: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
):
    Path("empty").mkdir()
    assert said in refused(capsys, *arguments)


def test_comparing_imports_no_torch(sweep: Path):
    code = (
        "import sys; from alexnet_exp.cli import main; main(['compare', 'sweep']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'wandb', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_run_that_failed_early_does_not_differ_in_auto_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, lr, chosen in (("a", 0.1, False), ("b", 0.2, False), ("killed", 0.3, "auto")):
        make_run(tmp_path / name, 0.5, optimizer={"lr": lr}, compile=chosen, typed=[f"optimizer.lr={lr}"])
    assert [set(run["settings"]) for run in as_json(capsys, str(tmp_path))["runs"]] == 3 * [{"optimizer.lr"}]
    for name, fraction in (("split", 0.2), ("before it was split", "auto")):
        data = {"data": {"val_fraction": fraction}, "optimizer": {"lr": 0.1}, "compile": False}
        make_run(tmp_path / "folder" / name, 0.5, **data)
    assert [run["settings"] for run in as_json(capsys, str(tmp_path / "folder"))["runs"]] == [{}, {}]
    make_run(tmp_path / "compiled", 0.5, optimizer={"lr": 0.1}, compile=True, typed=["compile=true"])
    assert all("compile" in run["settings"] for run in as_json(capsys, str(tmp_path))["runs"])


FIGURE = {"metric": "test/top1", "value": 0.9, "epoch": "best", "source": "Table 1"}


def test_published_value_is_shown_beside_the_mean_and_does_not_split_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, top1 in enumerate((0.90, 0.92)):
        make_run(tmp_path / "runs" / str(seed), top1, seed=seed, published=[FIGURE] if seed == 0 else None)
    (group,) = as_json(capsys, "runs")["groups"]
    assert (group["n"], group["published"], group["settings"]) == (2, [FIGURE], {})
    markdown = compare(capsys, "runs", "format=markdown", "page=false")
    compare(capsys, "runs")
    assert "| 90.00 % (best epoch) | 91.00 % | +1.00 | 2 | the same for all runs | Table 1 |" in " ".join(
        markdown.replace("\N{NO-BREAK SPACE}", " ").split()
    )
    (page,) = Path("outputs/compare").glob("*/compare.html")
    assert "difference (points)" in page.read_text(encoding="utf-8")


def test_the_number_of_images_behind_the_values_is_said_once_or_in_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        make_run(tmp_path / "same" / str(seed), 0.9, seed=seed, images={"train": 70, "val": 8, "test": 355})
    assert "Each value is measured on 355 test images." in compare(capsys, "same")
    (page,) = Path("outputs/compare").glob("*/compare.html")
    assert "measured on 355 test images" in page.read_text(encoding="utf-8")
    # One count that is unknown, or of a stand-in, and no sentence can speak of all.
    make_run(tmp_path / "same" / "old", 0.6, seed=4)
    out = compare(capsys, "same", "format=markdown", "page=false")
    assert "| old | 60.00 % | – |" in out and "Each value" not in out
    (tmp_path / "same" / "old").rename(tmp_path / "old")
    make_run(tmp_path / "same" / "untested", val=[0.5], seed=4, images={"val": 355})
    out = compare(capsys, "same", "format=markdown", "page=false")
    assert "| untested | 50.00 % val/top1 | 355 |" in out and "Each value" not in out
    make_run(tmp_path / "same" / "failed", seed=5, status="failed")  # without a value
    (tmp_path / "same" / "untested").rename(tmp_path / "untested")
    assert "Each value is measured on 355 test images." in compare(capsys, "same")
    make_run(tmp_path / "same" / "larger", 0.8, seed=2, images={"test": 1000})
    limited = {"limit_test_batches": 2, "max_epochs": 2}
    make_run(tmp_path / "same" / "limited", 0.7, seed=3, images={"test": 355}, trainer=limited)
    out = compare(capsys, "same", "format=markdown", "page=false")
    assert "| run | test/top1 | images | epochs |" in out and "Each value" not in out
    for row in ("| 0 | 90.00 % * | 355 |", "| larger | 80.00 % | 1,000 |", "| limited | 70.00 % | – |"):
        assert row in out


def test_a_table_of_validation_values_alone_is_headed_by_their_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for fold, count in enumerate((8, 9)):
        data = {"folds": 2, "fold": fold}
        make_run(tmp_path / "folds" / str(fold), val=[0.5, 0.75], data=data, images={"val": count})
    out = compare(capsys, "folds", "format=markdown", "page=false")
    assert "| mean val/top1 | sd |" in out and "| run | val/top1 | images |" in out
    assert "75.00 % val/top1" not in out
    assert "No run has test/top1: the values are the best val/top1 of each run." in out
    compare(capsys, "folds")
    (page,) = Path("outputs/compare").glob("*/compare.html")
    heads = re.findall(r'<th scope="col">(.*?)</th>', page.read_text(encoding="utf-8"))
    assert "mean val/top1" in heads and "test/top1" not in "".join(heads)
