"""`alexnet-exp reproduce`, with runs made by hand in place of training, and one that trains."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alexnet_exp.cli import main
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.errors import UserError
from alexnet_exp.runs.reproduce import command
from alexnet_exp.runs.reproduce.evidence import Evidence, Figure, differing, figures
from alexnet_exp.runs.reproduce.rows import Row, chosen, data_of, names, row, seconds_of
from alexnet_exp.sweeps.job import FAILED, FINISHED, WAITING, Job
from alexnet_exp.tracking.run_directory import RunDirectory
from alexnet_exp.tracking.run_reader import find_runs

ENTRY = {"metric": "test/top1", "value": 0.74, "epoch": "final", "source": "a page"}


def evidence(seed: int, top1: float, commit: str = "a" * 40, **more: Any) -> Evidence:
    git = {"commit": commit, "dirty": False}
    return Evidence({"seed": seed, "metrics": {"test/top1": top1}, "git": git, "versions": {}, **more})


def verdict(*values: float, published: float = 0.74, **more: Any) -> str:
    runs = [evidence(seed, value) for seed, value in enumerate(values)]
    return Figure("x", {**ENTRY, "value": published, **more}, runs).verdict


def test_a_verdict_is_one_of_three() -> None:
    assert verdict(0.75) == verdict(0.73) == verdict(0.70, 0.78) == "within 1 point"
    # Mean .72, sd .02, n = 3: t = 4.303, so the interval is .72 -+ .0497.
    assert verdict(0.70, 0.72, 0.74, published=0.7696) == "within interval"
    assert verdict(0.70, 0.72, 0.74, published=0.7698) == "missed: -4.98 points; cause not known yet"
    assert verdict(0.70, cause="initialisation") == "missed: -4.00 points; initialisation"
    assert verdict(0.76) == "missed: +2.00 points; cause not known yet"
    assert verdict() == "not yet measured"


def test_seeds_of_several_commits_are_pooled_with_a_note_but_not_other_settings() -> None:
    found = [evidence(0, 0.7), evidence(1, 0.8, commit="b" * 40), evidence(1, 0.74, commit="b" * 40)]
    changed = Evidence(evidence(2, 0.1).result, ("trainer.max_epochs=1",))
    pooled, other = figures("x", [ENTRY], [*found, changed])
    assert (pooled.ours.n, pooled.ours.mean) == (2, pytest.approx(0.72))  # of one seed the last counts
    assert pooled.notes == ["seeds of 2 commits: aaaaaaa (0); bbbbbbb (1)"]
    assert other.verdict == "missed: settings differ from the published ones: trainer.max_epochs=1"


def test_a_resumed_run_has_taken_at_least_as_long_as_its_images() -> None:
    facts = {"epochs": 10, "images": {"train": 1000}, "images_per_second": 50.0}
    assert evidence(0, 0.7, seconds=20.0, **facts).seconds == 200
    assert evidence(0, 0.7, seconds=300.0, **facts).seconds == 300


def test_runs_stay_in_their_folder_whether_a_setting_is_marked_as_added_or_not(tmp_path: Path) -> None:
    setting = "optimizer.layers.fc8.weight_decay=0"
    unmarked, marked, other = (Row("x", (s,), {}) for s in (setting, f"++{setting}", f"~{setting}"))
    before = tmp_path / f"x-{hashlib.sha256(setting.encode()).hexdigest()[:6]}"
    assert command.place_of(unmarked, tmp_path) == command.place_of(marked, tmp_path) == before
    assert command.place_of(other, tmp_path) != before


def test_the_cost_is_that_of_the_published_table() -> None:
    # From the layer sizes: 12.35 M multiply-adds, 50,000 images, 10 epochs.
    assert row("convnet_80sec").flop == pytest.approx(6 * 12_354_176 * 500_000)
    assert row("stride4_mnist").images == 5 * 58_000
    assert row("convnet_80sec", ["trainer.limit_train_batches=2"]).images == 10 * 256
    assert row("convnet_80sec", ["data=digits"]).images is None


def test_names_and_groups_select_rows() -> None:
    assert [each.name for each in chosen(["stride4_mnist", "mnist"])] == ["stride4_mnist"]
    assert {"convnet_80sec", "tf_tutorial", "icpm"} <= set(names())
    assert not {"cifar10_fast", "lrn_folder", "none"} & set(names())
    of = {name: data_of(name) for name in names()}
    assert of["caffe_cifar_quick"] == of["convnet_11pct"] == "cifar10" and of["zfnet_imagenet"] == "imagenet"
    with pytest.raises(
        UserError, match=r"Unknown published result 'convnet_80sek'\. Did you mean convnet_80sec"
    ):
        chosen(["convnet_80sek"])
    with pytest.raises(UserError, match="experiment=cifar10_fast has no published figure"):
        chosen(["cifar10_fast"])


@pytest.mark.parametrize(("text", "seconds"), [("90min", 5400), ("2h", 7200), ("1.5 h", 5400), ("30s", 30)])
def test_a_budget_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["2", "h", "two hours", "-1h"])
def test_a_budget_without_them_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="such as 90min or 2h"):
        seconds_of(text)


# ------------------------------------------------------------------------------------------------ the verb


class Trained:
    """In place of the pool: what each job would leave, top1 by its seed; a seed without one fails."""

    top1: ClassVar[dict[int, float]] = {}
    ran: ClassVar[list[str]] = []

    def __init__(self, jobs: list[Job], *_: Any) -> None:
        self.jobs = jobs

    def run(self) -> None:
        for job in self.jobs:
            if job.state != WAITING:
                continue
            Trained.ran.append(" ".join(job.overrides))
            seed = int(job.overrides[-1].removeprefix("seed="))
            if seed not in self.top1:
                job.state, job.why = FAILED, "killed by SIGKILL"
                continue
            write_run(job.directory, job.overrides, self.top1[seed])
            job.state = FINISHED


def write_run(folder: Path, overrides: list[str], top1: float, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = plain(compose("train", overrides)) | {"choices": {"experiment": overrides[0].partition("=")[2]}}
    run = RunDirectory(folder)
    run.write_settings(config, overrides)
    (folder / "metrics.csv").write_text(
        f"epoch,step,lr,train/top1,test/top1\n1,5,0.1,,\n1,9,,0.5,\n1,9,,,{top1}\n"
    )
    result = evidence(config["seed"], top1).result
    run.write_result(
        {"status": "finished", "epochs": 10, "images": {"train": 50_000}, "seconds": 60.0, **result, **more}
    )


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Trained]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "Pool", Trained)
    Trained.top1, Trained.ran = {0: 0.742, 1: 0.746}, []
    return Trained


def said(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, str]:
    code = main(["reproduce", *typed])
    out, err = capsys.readouterr()
    return code, " ".join((out + err).replace("\N{NO-BREAK SPACE}", " ").split())


def test_repeating_the_command_runs_what_has_not_finished(
    trained: type[Trained], capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, "convnet_80sec", "seeds=3", "logger=none")
    assert code == 1
    assert "convnet_80sec test/top1 74.00 % 74.40 % 0.28 71.86 to 76.94 % 2 +0.40 within 1 point" in text
    assert "seed=2 failed: killed by SIGKILL" in text
    trained.ran, trained.top1 = [], {2: 0.744, 3: 0.744}
    code, text = said(capsys, "convnet_80sec", "seeds=4", "logger=csv")
    assert (code, trained.ran) == (0, [f"experiment=convnet_80sec seed={seed}" for seed in (2, 3)])
    assert " 4 +0.40 within 1 point" in text
    page = Path("outputs/reproduce/reproduce.html").read_text(encoding="utf-8")
    assert "within 1 point" in page and "alexnet-exp reproduce convnet_80sec seeds=4" in page


def test_other_settings_get_their_own_folder_and_are_named(
    trained: type[Trained], capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "convnet_80sec", "seeds=1")
    said(capsys, "convnet_80sec", "seeds=1", "trainer.max_epochs=1", "data=digits")
    page = Path("outputs/reproduce/reproduce.html").read_text(encoding="utf-8")
    assert "missed: settings differ from the published ones: trainer.max_epochs=1 data=digits" in page
    assert len(list(Path("outputs/reproduce").glob("convnet_80sec*"))) == 2
    _, text = said(capsys, "convnet_80sec", "seeds=1", "trainer.max_epochs=10")  # as published
    assert "within 1 point" in text


def test_a_budget_selects_the_cheapest_that_fit(
    trained: type[Trained], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"convnet_80sec": 500.0, "convnet_19pct": 500.0}  # 1,000 and 14,000 seconds a seed
    monkeypatch.setattr(command, "measured_rates", lambda rows: rates)
    code, text = said(capsys, "convnet_19pct", "convnet_80sec", "seeds=2", "budget=1h")
    assert code == 0 and "convnet_19pct does not fit into budget=1h" in text
    assert trained.ran == [f"experiment=convnet_80sec seed={seed}" for seed in (0, 1)]
    assert "not yet measured 5.2e+14 FLOP, about 3.9 h" in text


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["convnet_80sek"], "Did you mean convnet_80sec"),
        (["convnet_80sec", "seed=4"], "use seeds=N, which runs seeds 0 to N - 1"),
        (["convnet_80sec", "seeds=0"], "an integer >= 1"),
        (["convnet_80sec", "budget=2"], "such as 90min or 2h"),
        (["paper_imagenet"], "needs ImageNet: set data.root=DIR"),
        (["record"], "No runs given"),
        (["convnet_80sec", "optimizer.lr=-1"], "optimizer.lr=-1"),
    ],
)
def test_a_mistake_is_one_line(
    typed: list[str], message: str, trained: type[Trained], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", *typed]) == 1
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
    assert trained.ran == []


def test_a_list_has_all_results_and_trains_nothing(
    trained: type[Trained], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates(rows: list[Row]) -> dict[str, float]:
        return {each.name: 1000.0 for each in rows}

    monkeypatch.setattr(command, "measured_rates", rates)
    code, text = said(capsys, "list", "convnet_80sec", "stride4_mnist")
    assert code == 0 and "convnet_80sec cifar10 74.00 % test/top1 500 k 3.7e+13 about 8.3 min 3 0" in text
    assert text.index("stride4_mnist") < text.index("convnet_80sec")
    assert trained.ran == [] and not Path("outputs").exists()


# ------------------------------------------------------------------------------------------------ records


def test_a_record_has_the_results_of_a_run_without_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "runs"
    typed = (
        f"python train.py experiment=convnet_80sec seed=1 hydra.run.dir={home}/1 data.data_dir=/data/of/mine"
    )
    hardware = {"platform": "Linux-6.1-of-somebody", "processor": "CPU"}
    facts = {
        "command": typed,
        "hardware": hardware,
        "wandb": {"url": "https://wandb.ai/me"},
        "splits": {"a": str(home)},
    }
    write_run(home / "1", ["experiment=convnet_80sec", "seed=1"], 0.75, **facts)
    assert main(["reproduce", "record", str(home), f"out={tmp_path / 'results'}"]) == 0
    folder = tmp_path / "results" / "convnet_80sec" / "seed-1"
    text = (folder / "result.json").read_text(encoding="utf-8")
    kept = json.loads(text)
    assert (kept["experiment"], kept["metrics"]) == ("convnet_80sec", {"test/top1": 0.75})
    assert kept["command"] == "python train.py experiment=convnet_80sec seed=1"
    assert kept["hardware"] == {"platform": "Linux", "processor": "CPU"}
    assert str(tmp_path) not in text and "wandb" not in text
    metrics = (folder / "metrics.csv").read_text(encoding="utf-8")
    assert metrics == "epoch,step,train/top1,test/top1\n1,9,0.5,\n1,9,,0.75\n"


def test_only_a_finished_run_with_the_published_settings_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "changed", ["experiment=convnet_80sec", "optimizer.lr=1"], 0.1)
    write_run(tmp_path / "failed", ["experiment=convnet_80sec"], 0.1, status="failed")
    for name, message in {
        "changed": "(optimizer.lr=1): record unmodified runs only",
        "failed": "is failed",
    }.items():
        assert main(["reproduce", "record", str(tmp_path / name), f"out={tmp_path / 'out'}"]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_location_and_trackers_of_a_run_are_not_differences(tmp_path: Path) -> None:
    apart = ["trainer=cpu", "logger=csv", "data.download=false", "callbacks.progress_bar.enabled=false"]
    write_run(tmp_path / "0", ["experiment=convnet_80sec", "seed=3", *apart], 0.75)
    write_run(tmp_path / "1", ["experiment=convnet_80sec", "callbacks.ema.enabled=true"], 0.75)
    same, other = find_runs([tmp_path])
    published = ("experiment=convnet_80sec",)
    assert differing(same, published) == ()
    assert differing(other, published) == ("callbacks.ema.enabled=true",)


def test_what_was_chosen_for_an_automatic_setting_is_not_a_difference(tmp_path: Path) -> None:
    published = ("experiment=lrn_folder",)
    for name, typed in {"as published": [], "typed": ["data.val_fraction=0.3"]}.items():
        write_run(tmp_path / name, [*published, "data.root=photos", *typed], 0.75)
        config = tmp_path / name / "config.yaml"
        text = config.read_text(encoding="utf-8")
        assert ("val_fraction: auto" in text) == (not typed)
        config.write_text(text.replace("val_fraction: auto", "val_fraction: 0.2"), encoding="utf-8")
    same, other = find_runs([tmp_path])
    assert differing(same, published) == ()
    assert differing(other, published) == ("data.val_fraction=0.3",)


@pytest.mark.slow
def test_a_seed_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [
        "data=digits",
        "trainer=cpu",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=2",
        "logger=none",
    ]
    code, text = said(capsys, "caffe_cifar_quick", "seeds=1", *short)
    assert code == 0 and "missed: settings differ" in text
    assert "1 jobs, 1 of them finished before" in said(capsys, "caffe_cifar_quick", "seeds=1", *short)[1]
