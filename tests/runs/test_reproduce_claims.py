"""`alexnet-exp reproduce` of a claim: two forms of a network, runs made by hand in place of training."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alexnet_exp.cli import main
from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.runs.reproduce import command, effects
from alexnet_exp.runs.reproduce.effects import Effect, Trial, epochs_until
from alexnet_exp.runs.reproduce.evidence import Evidence
from alexnet_exp.runs.reproduce.rows import CLAIMS, chosen, claim
from alexnet_exp.runs.reproduce.show import cells
from alexnet_exp.settings import assigned
from alexnet_exp.sweeps.job import FINISHED, WAITING, Job
from alexnet_exp.tracking.run_directory import RunDirectory

RELU, TANH = "[max_pool,relu]", "[max_pool,tanh]"


@pytest.mark.parametrize(
    ("accuracies", "epochs"),
    [([0.5, 0.7, 0.8], 2.5), ([0.5, 0.75, 0.9], 2.0), ([0.8], 1.0), ([0.5, 0.7], None), ([], None)],
)
def test_the_epochs_until_an_accuracy_are_interpolated(accuracies: list[float], epochs: float | None) -> None:
    assert epochs_until(accuracies, 0.75) == (None if epochs is None else pytest.approx(epochs))


@pytest.mark.parametrize("name", CLAIMS)
def test_every_run_of_a_claim_has_legal_settings(name: str) -> None:
    known = claim(name)
    jobs = known.jobs(2, {})
    if known.rates:
        jobs += known.jobs(2, dict.fromkeys(known.forms, known.rates[0]))
    assert len(jobs) == known.runs(2) and len({tuple(job) for job in jobs}) == len(jobs)
    for job in (jobs[0], jobs[-1]):
        check_config(plain(compose("train", job)))
    assert known.flop and known.data == "cifar10"


def test_the_forms_of_a_claim_differ_in_nothing_but_what_is_claimed() -> None:
    def models(name: str) -> list[dict[str, Any]]:
        known = claim(name)
        return [plain(compose("train", [*known.selection, *known.of(f, "")]))["model"] for f in known.forms]

    relu, tanh = models("fig1")
    assert [layer["then"] for layer in tanh["features"].values() if "tanh" in layer["then"]] == [
        ["max_pool", "tanh"], ["tanh", "avg_pool"], ["tanh", "avg_pool"],
    ]  # fmt: skip
    assert "relu" not in str(tanh["features"]) and str(tanh).replace("tanh", "relu") == str(relu)
    without, with_lrn = models("lrn_80sec")
    assert (without["lrn"].pop("alpha"), with_lrn["lrn"].pop("alpha")) == (0.0, 1e-3)
    assert without == with_lrn


def trial(form: str, seed: int, top1: float, *accuracies: float, rate: str = "") -> Trial:
    return Trial(form, rate, Evidence({"seed": seed, "metrics": {"test/top1": top1}}), accuracies)


def test_accuracies_are_compared_seed_by_seed_as_a_difference() -> None:
    without = [trial("without LRN", seed, value) for seed, value in enumerate((0.70, 0.72, 0.74))]
    with_lrn = [trial("with LRN", seed, value) for seed, value in enumerate((0.715, 0.737))]
    found = Effect(claim("lrn_80sec"), [*without, *with_lrn])
    assert found.by_seed == {0: pytest.approx(0.015), 1: pytest.approx(0.017)}
    assert found.difference == pytest.approx(-0.004) and found.verdict == "within 1 point"
    assert [found.text(value) for value in found.by_seed.values()] == ["+1.50", "+1.70"]


def test_the_interval_of_a_difference_of_accuracies_may_reach_below_zero() -> None:
    without = [trial("without LRN", seed, 0.7) for seed in range(2)]
    with_lrn = [trial("with LRN", seed, value) for seed, value in enumerate((0.70, 0.71))]
    found = Effect(claim("lrn_80sec"), [*without, *with_lrn])
    # 12.7062 * 0.0070711 / sqrt(2) on both sides of 0.005
    assert found.ours.interval == pytest.approx((0.005 - 0.063531, 0.005 + 0.063531), abs=1e-6)
    assert cells(found)[2:6] == ["2 points", "0.50 points", "0.71", "-5.85 to 6.85"]


def test_rates_without_a_finished_run_and_a_threshold_not_reached_are_said() -> None:
    low, middle, high = sorted(claim("fig1").rates, key=float)
    relu = [trial("ReLU", 0, 0.0, 0.5, 0.8, rate=middle), trial("ReLU", 0, 0.0, 0.7, 0.8, rate=low)]
    tanh = [trial("tanh", 0, 0.0, 0.5, rate=high), trial("tanh", 0, 0.0, 0.6, rate=middle)]
    found = Effect(claim("fig1"), [*relu, *tanh])
    assert found.best == {"ReLU": low, "tanh": middle} and found.verdict == "not yet measured"
    assert found.notes == [
        "tanh, seed 0: threshold not reached in 1 epochs, so the seed does not count",
        f"ReLU: no finished run at lr={high}",
        f"tanh: no finished run at lr={low}",
        f"ReLU: lr={low} is the lowest rate tried; a lower one may be faster",
    ]


# ------------------------------------------------------------------------------------------------ the verb


class Trained:
    """In place of the pool: each job reaches 75 % after as many epochs as its form, rate and seed give."""

    epochs: ClassVar[dict[tuple[str, str], int]] = {}
    ran: ClassVar[list[str]] = []

    def __init__(self, jobs: list[Job], *_: Any) -> None:
        self.jobs = jobs

    def run(self) -> None:
        for job in self.jobs:
            if job.state == WAITING:
                typed = assigned(job.overrides)
                form, rate = typed["model.features.conv1.then"], typed["optimizer.lr"]
                Trained.ran.append(f"{form[10:-1]} {rate} {typed['seed']}")
                write_run(job.directory, job.overrides, self.epochs[form, rate] + int(typed["seed"]))
                job.state = FINISHED


@functools.cache
def composed_without_seed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return plain(compose("train", list(overrides)))


def write_run(folder: Path, overrides: list[str], epochs: int) -> None:
    """Write a run of at most 40 epochs that reaches 75 % exactly after `epochs`."""
    folder.mkdir(parents=True, exist_ok=True)
    own = tuple(o for o in overrides if not o.startswith("seed="))
    seed = int(assigned(overrides).get("seed", 0))
    config = composed_without_seed(own) | {"choices": {"experiment": "none", "sweep": "fig1"}, "seed": seed}
    run = RunDirectory(folder)
    run.write_settings(config, overrides)
    accuracies = [0.75 * epoch / epochs for epoch in range(1, min(epochs, 40) + 1)]
    rows = [f"{epoch},{epoch},{accuracy}\n" for epoch, accuracy in enumerate(accuracies, start=1)]
    (folder / "metrics.csv").write_text("epoch,step,train/top1\n" + "".join(rows))
    result = {"seed": seed, "metrics": {"train/top1": accuracies[-1]}, "epochs": len(accuracies)}
    facts = {"images": {"train": 50_000}, "seconds": 60.0, "git": {"commit": "a" * 40}, "versions": {}}
    run.write_result({"status": "finished", **result, **facts})


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Trained]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "Pool", Trained)
    low, middle, high = sorted(claim("fig1").rates, key=float)
    # The other seeds of ReLU take the middle rate, those of tanh the low one.
    Trained.epochs = {(RELU, low): 9, (RELU, middle): 4, (RELU, high): 6} | {
        (TANH, low): 20, (TANH, middle): 50, (TANH, high): 60,
    }  # fmt: skip
    Trained.ran = []
    return Trained


def said(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, str]:
    code = main(["reproduce", *typed])
    out, err = capsys.readouterr()
    return code, " ".join((out + err).replace("\N{NO-BREAK SPACE}", " ").split())


def test_the_first_seed_finds_the_rates_and_the_others_take_the_best(
    trained: type[Trained], capsys: pytest.CaptureFixture[str]
) -> None:
    low, middle, _ = sorted(claim("fig1").rates, key=float)
    code, text = said(capsys, "fig1", "seeds=3", "logger=none")
    assert code == 0
    first = [f"{form} {rate} 0" for rate in claim("fig1").rates for form in ("relu", "tanh")]
    assert trained.ran == [*first, f"relu {middle} 1", f"relu {middle} 2", f"tanh {low} 1", f"tanh {low} 2"]
    # 20 / 4, 21 / 5 and 22 / 6: mean 4.289, sd .671; t = 4.303, so the interval is 4.289 -+ 1.667.
    assert (
        "fig1 epochs, tanh / ReLU 6 times 4.29 times 0.67 2.62 to 5.96 3 -1.71 missed: -1.71; cause" in text
    )
    assert f"tanh: lr={low} is the lowest rate tried" in text
    page = (
        Path("outputs/reproduce/reproduce.html")
        .read_text(encoding="utf-8")
        .replace("\N{NO-BREAK SPACE}", " ")
    )
    for part in (
        CLAIMS["fig1"].text,
        "Krizhevsky et al. 2012, Fig. 1",
        "Training error",
        "&gt; 40",
        "10 runs",
    ):
        assert part in page, part
    trained.ran = []
    said(capsys, "fig1", "seeds=4", "logger=none")
    assert trained.ran == [f"relu {middle} 3", f"tanh {low} 3"]


def test_other_settings_are_no_verdict_on_the_claim(
    trained: type[Trained], capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "fig1", "seeds=1", "data=digits")
    page = Path("outputs/reproduce/reproduce.html").read_text(encoding="utf-8")
    assert "missed: settings differ from the published ones: data=digits" in page


def test_a_list_has_the_claims(
    trained: type[Trained], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measured_rates", lambda rows: dict.fromkeys((r.name for r in rows), 1e3))
    code, text = said(capsys, "list", "claims")
    assert code == 0 and trained.ran == []
    assert {"fig1", "lrn_80sec", "lrn_13_11"} <= set(text.split())
    assert [each.name for each in chosen(["claims", "fig1"])] == list(CLAIMS)


def test_records_of_a_claim_give_what_its_runs_give(
    trained: type[Trained], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    low, middle, _ = sorted(claim("fig1").rates, key=float)
    said(capsys, "fig1", "seeds=2")
    assert main(["reproduce", "record", "outputs/reproduce/fig1", "out=results"]) == 0
    folders = {folder.name for folder in Path("results/fig1").iterdir()}
    assert len(folders) == 8 and {f"relu-{middle}-seed-1", f"tanh-{low}-seed-1"} <= folders
    found = Effect(claim("fig1"), effects.of_records(Path("results/fig1")))
    assert found.by_seed == {0: pytest.approx(5.0), 1: pytest.approx(4.2)}
    changed = ["sweep=fig1", f"model.features.conv1.then={RELU}", f"optimizer.lr={low}", "data.batch_size=7"]
    write_run(tmp_path / "changed", changed, 3)
    assert main(["reproduce", "record", str(tmp_path / "changed")]) == 1
    assert "differs from sweep=fig1" in capsys.readouterr().err
