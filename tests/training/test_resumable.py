"""A run goes on from a checkpoint that has all of its state, in the right form, and from no other."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from alexnet_exp.errors import UserError
from alexnet_exp.runs.fit import Fit, assemble, fit_to_data, prepare_data
from alexnet_exp.training.restart import restoring
from alexnet_exp.training.resumable import check_resumable, unlike
from tests.fuzz.refusal import check_sentence
from tests.training.small_runs import DROPOUT, checkpoint, resume, same, settings, train_until

FULL = [
    *DROPOUT, "test=false", "trainer.max_epochs=2", "scheduler=cosine", "callbacks.early_stopping.enabled=true",
    "callbacks.ema.enabled=true", "callbacks.checkpoint.every_n_steps=5",
]  # fmt: skip
STATE = ("pytorch-lightning_version", "epoch", "global_step", "optimizer_states", "lr_schedulers", "callbacks",
         "current_model_state", "averaging_state", "train_sums", "validated", "reported")  # fmt: skip
GONE = object()
WRONG = [GONE, None, [], {}, "x", -1]


def made(folder: Path, *overrides: str) -> Fit:
    """Put a run together as far as its first step."""
    config, typed = settings(*overrides)
    data = prepare_data(config)
    fit_to_data(config, data, typed)
    return assemble(config, data, folder, [], Console(quiet=True))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended in its second epoch, its checkpoint of step 10 from the middle of that; not to be changed."""
    directory = tmp_path_factory.mktemp("stopped") / "run"
    train_until(directory, 11, *FULL)
    return directory


@pytest.fixture(scope="module")
def whole(stopped: Path) -> dict[str, Any]:
    """The checkpoint of step 10."""
    return checkpoint(stopped)


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """The run that is to go on."""
    return made(tmp_path_factory.mktemp("fit"), *FULL)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in nested dictionaries and lists."""
    yield way
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield from places(each, (*way, key))


def changed(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """Return a copy in which the value at the end of a way is another, or gone."""
    if not way:
        return new
    found = copy.copy(value)
    inner = changed(value[way[0]], way[1:], new)
    if inner is not GONE:
        found[way[0]] = inner
    else:
        del found[way[0]]
    return found


def is_let_through(fit: Fit, saved: dict[str, Any]) -> bool:
    try:
        check_resumable(fit.trainer, fit.classifier, saved, Path("a.ckpt"))
    except UserError as error:
        check_sentence(error, "a.ckpt ")
        return False
    return True


def at(value: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        value = value[key]
    return value


def test_what_a_run_writes_is_let_through(fit: Fit, whole: dict[str, Any]) -> None:
    assert is_let_through(fit, whole)


HARMLESS: dict[str, tuple[Any, ...]] = {  # values of keys
    "stopping_reason_message": (GONE, *WRONG),  # a text for people
    "best": (None,),  # there is none yet
    "dampening": (GONE,),  # these are then what the settings say
    "maximize": (GONE,),
    "amsgrad": (GONE,),
    "decoupled_weight_decay": (GONE,),
    "mode_worse": (-1,),
    "foreach": (GONE,),  # ways to compute the same
    "fused": (GONE, None),
    "differentiable": (GONE, None),
    "capturable": (GONE, None),
    "_is_initial": (GONE,),  # flags of this version of torch
    "_get_lr_called_within_step": (GONE,),
}


@pytest.mark.parametrize("part", [*STATE, "loops"])
def test_a_state_that_lacks_anything_or_has_it_in_another_form_is_refused(
    fit: Fit, whole: dict[str, Any], part: str
) -> None:
    start = ("loops", "fit_loop") if part == "loops" else (part,)
    assert let_through(fit, whole, start) == []


def test_the_state_of_another_optimizer_and_schedule_is_held_to_its_form_too(tmp_path: Path) -> None:
    typed = [*FULL, "optimizer=adam", "optimizer.bias_lr_factor=2", "scheduler=plateau"]
    train_until(tmp_path, 6, *typed)
    fit, whole = made(tmp_path, *typed), checkpoint(tmp_path)
    assert is_let_through(fit, whole)
    for part in ("optimizer_states", "lr_schedulers"):
        assert let_through(fit, whole, (part,)) == []


def let_through(fit: Fit, whole: dict[str, Any], start: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], Any]]:
    """Return what can be changed below a place without a refusal, and matters."""
    tried, through = 0, []
    for way in places(at(whole, start), start):
        for new in WRONG:
            if new is not GONE and same_plain(at(whole, way), new):
                continue
            tried += 1
            if is_let_through(fit, changed(whole, way, new)):
                through.append((way, new))
    assert tried >= 5
    return [(way, new) for way, new in through if not is_harmless(way[-1], new)]


def same_plain(old: Any, new: Any) -> bool:
    return type(old) is type(new) and bool(old == new)


def is_harmless(key: Any, new: Any) -> bool:
    return any(new is known or same_plain(new, known) for known in HARMLESS.get(key, ()))


def test_what_a_group_of_parameters_lacks_is_taken_from_the_settings(stopped: Path, tmp_path: Path) -> None:
    for name in ("all", "some"):
        shutil.copytree(stopped, tmp_path / name)
    saved = checkpoint(stopped)
    group = saved["optimizer_states"][0]["param_groups"][0]
    del group["dampening"], group["maximize"]
    torch.save(saved, tmp_path / "some" / "checkpoints" / "last.ckpt")
    for name in ("all", "some"):
        resume(tmp_path / name)
    ends = [checkpoint(tmp_path / name) for name in ("all", "some")]
    assert all(end["global_step"] == 14 for end in ends)
    assert same(*[(end["state_dict"], end["optimizer_states"]) for end in ends])


# What Lightning meets where the check has overlooked something.
RESTORED: dict[str, dict[str, Any]] = {
    "pytorch-lightning_version": {"pytorch-lightning_version": "x"},
    "weights, sums or metrics": {"train_sums": "x"},
    "callbacks": {"callbacks": {"EMAWeightAveraging": {"x": 1}}},
    "loops": {"loops": {"fit_loop": {"epoch_progress": {}}}},
    "optimizer_states": {"optimizer_states": [{"state": {}, "param_groups": []}]},
    "lr_schedulers": {"lr_schedulers": [{"x": 1}]},
    "loops or rates": {"lr_schedulers": [{"lr_lambdas": [], "last_epoch": "x"}], "run_length": None},
}


@pytest.mark.parametrize("part", RESTORED)
def test_what_fails_while_it_is_restored_is_named_in_one_line(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr("alexnet_exp.runs.fit.check_resumable", lambda *_: None)
    shutil.copytree(stopped, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    torch.save(checkpoint(stopped) | RESTORED[part], file)
    with pytest.raises(UserError) as caught:
        resume(tmp_path / "run")
    assert str(caught.value).startswith(f"{file} cannot be gone on from: its {part} cannot be restored (")
    assert "\n" not in str(caught.value)


def test_a_refusal_is_not_turned_into_another() -> None:
    with pytest.raises(UserError, match=r"^There is no room\.$"), restoring("a.ckpt", "weights"):
        raise UserError("There is no room.")
    with pytest.raises(RuntimeError), restoring("a.ckpt", "weights"):
        raise RuntimeError("not the file's fault")


OTHERS = [
    (0.5, 2, True), (1, 1.0, True), (1, True, False), (True, True, True), (True, None, False), (None, None, True),
    (None, [], False), (0.5, float("nan"), False), (0.5, -1, False), (float("inf"), -1, True), ([1, 2], [1], False),
    (float("inf"), float("nan"), False), ((1, 2), [1, 2], False), ("min", "max", False),
    ({"a": 1}, {"a": 1, "b": 2}, True), ({"a": 1}, {"b": 2}, False), ({"a": 1}, [1], False),
    (torch.zeros(2), torch.ones(2), True), (torch.zeros(2), torch.ones(3), False), (torch.zeros(2), [0.0, 0.0], False),
    (torch.zeros(2), torch.zeros(2, dtype=torch.long), False), (1, 10**30, False), (1.0, 1e30, True),
    (1.0, float("inf"), False), (1.0, 10**400, False),
]  # fmt: skip


@pytest.mark.parametrize(("own", "found", "alike"), OTHERS)
def test_values_are_alike_in_form_or_not(own: Any, found: Any, alike: bool) -> None:
    assert (not list(unlike(own, found, "value"))) is alike
    assert (not list(unlike({"a": [own]}, {"a": [found]}, "value"))) is alike


def test_counts_are_whole() -> None:
    assert list(unlike({"steps": 3}, {"steps": 3.5}, "loops", whole=True)) == ["loops.steps"]
    assert list(unlike({"steps": 3}, {"steps": 3.5}, "rates")) == []
