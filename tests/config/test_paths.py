"""~ is the home directory in every setting that is a path, wherever it is set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from alexnet_exp.cli import main
from alexnet_exp.config.compose import compose, plain
from alexnet_exp.config.overrides import prepare, resumed_directory
from alexnet_exp.config.paths import PATH_KEYS, PATH_LISTS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "a home, of=mine"  # as awkward as any path
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


def value_of(override: str) -> Any:
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize("key", [*PATH_KEYS, *PATH_LISTS])
@pytest.mark.parametrize("typed", ["~/a b", "'~/a b'", '"~/a b"'])
def test_home_is_expanded_in_every_typed_path(key: str, typed: str, home: Path):
    flags = ["-m"] if key == "sweep.resume" else []
    for prefix in ("", "+"):
        assert value_of(prepare([*flags, f"{prefix}{key}={typed}"])[len(flags)]) == f"{home}/a b"


def test_home_is_expanded_in_lists_and_sweep_values(home: Path):
    (images,) = prepare(["images=[~/a b,'~/c',/d]"])
    assert value_of(images) == [f"{home}/a b", f"{home}/c", "/d"]
    _, roots = prepare(["-m", "data.root=~/a,/b,'~/c'"])
    swept = OverridesParser.create().parse_override(roots)
    assert list(swept.sweep_string_iterator()) == [f"'{home}/a'", "/b", f"'{home}/c'"]


def test_home_is_expanded_in_bare_words_and_flags(home: Path):
    words = prepare(["~/run", "~/photos"], ("ckpt", "images..."))
    assert [value_of(word) for word in words] == [f"{home}/run", [f"{home}/photos"]]
    assert prepare(["--config-dir=~/c", "-cd", "~/d"]) == [f"--config-dir={home}/c", "-cd", f"{home}/d"]
    assert resumed_directory(["resume=~/run"]) == f"{home}/run"


def test_the_home_of_another_user_is_expanded_unless_unknown():
    assert value_of(prepare(["weights=~root/x"])[0]) == os.path.expanduser("~root/x") != "~root/x"
    assert value_of(prepare(["weights=~nobody-of-this-name/x"])[0]) == "~nobody-of-this-name/x"


@pytest.mark.parametrize("value", ["a~b", "a/~/b", "a/b~", "./~"])
def test_a_tilde_inside_a_path_is_kept(value: str):
    assert value_of(prepare([f"data.root={value}"])[0]) == value


def test_other_settings_keep_their_tilde():
    assert prepare(["~callbacks.client", "+notes=~/x"]) == ["~callbacks.client", "+notes=~/x"]
    assert value_of(prepare(["logger.wandb.notes=~ half the rate"])[0]) == "~ half the rate"


def test_home_is_expanded_in_the_environment_and_in_references(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALEXNET_DATA_DIR", "~/data")
    monkeypatch.setenv("MINE", "~/mine")
    config = plain(compose("train", ["data=cifar10", "weights=${oc.env:MINE}"]))
    found = (config["paths"]["data_dir"], config["data"]["data_dir"], config["weights"])
    assert found == (f"{home}/data", f"{home}/data", f"{home}/mine")


def test_hydra_makes_no_folder_named_tilde(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import alexnet_exp.runs.train.command as module

    places: list[Path] = []
    monkeypatch.setattr(module, "train", lambda config, overrides, run_dir, command: places.append(run_dir))
    monkeypatch.setenv("MINE", "~/out")
    (home / "c" / "paths").mkdir(parents=True)
    (home / "c" / "paths" / "own.yaml").write_text("{data_dir: ~/data, output_dir: ~/out, cache_dir: null}\n")
    (home / "c" / "experiment").mkdir()
    (home / "c" / "experiment" / "e.yaml").write_text('# @package _global_\nhydra: {run: {dir: "~/e"}}\n')
    for typed in (
        ["hydra.run.dir=~/r"],
        ["resume=~/new"],
        ["--config-dir=~/c", "experiment=e"],
        ["paths.output_dir=~/out"],
        ["paths.output_dir=${oc.env:MINE}"],
        ["--config-dir=~/c", "paths=own"],
    ):
        assert main(["train", *typed]) == 0
    assert places[:3] == [home / "r", home / "new", home / "e"]
    assert [place.parent for place in places[3:]] == [home / "out" / "runs"] * 3
    assert not list(tmp_path.rglob("~")) and capsys.readouterr().err == ""
