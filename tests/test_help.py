"""--help of each verb, and the errors for unknown flags and verbs: short and correct."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alexnet_exp.cli import VERBS, main
from alexnet_exp.config.compose import compose, plain


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *typed: str) -> tuple[int, str, str]:
    try:
        code = main(list(typed))
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_is_short_and_writes_no_files(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = said(capsys, verb, "--help")
    assert (code, err) == (0, "")
    lines = out.strip().splitlines()
    assert 4 <= len(lines) <= 36
    assert max(len(line) for line in lines if not re.match(r"\w+: ", line)) <= 132  # groups list their files
    assert f"alexnet-exp {verb}" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("train", "benchmark", "inspect")])
def test_help_names_every_setting_of_its_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = set(re.findall(r"[a-z_]+", said(capsys, verb, "--help")[1].partition("Settings: ")[2]))
    # Groups, and the bare words of compare: runs.
    groups = {"paths", "augment", "data", "logger", "model", "hydra", "runs"}
    of_a_run = _keys("train") if verb == "reproduce" else set()
    assert _keys(verb) - groups - of_a_run <= words


def _keys(verb: str) -> set[str]:
    required = {
        "evaluate": ["ckpt=x"],
        "predict": ["ckpt=x", "images=y"],
        "figures": ["ckpt=x"],
        "export": ["ckpt=x"],
        "dashboard": ["project=a/b"],
        "prepare": ["data.root=x"],
    }.get(verb, [])
    return set(plain(compose(verb, required)))


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_flag_is_a_one_line_error(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, verb, "--nothing")
    assert (code, out) == (1, ""), err
    assert err.startswith("error: There is no flag --nothing.") and err.count("\n") == 1


FLAGS = {
    "-z": "There is no flag -z.",
    "--hepl": "There is no flag --hepl. Did you mean --help?",
    "--epochs=3": "There is no flag --epochs=3. Settings are KEY=VALUE, without dashes. Did you mean "
    "trainer.max_epochs=3?",
    "--cfg": "expected one argument",
    "--cfg jobs": "invalid choice: 'jobs'",
    "--multirunn seed=1": "Did you mean --multirun?",
}


@pytest.mark.parametrize("typed", FLAGS)
def test_a_misused_flag_is_a_one_line_error(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "train", *typed.split())
    assert (code, out) == (1, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1 and FLAGS[typed] in err


@pytest.mark.parametrize("verb", ["evaluat", "TRAIN", "", "--train", "-x", "train.py", "mdoels"])
def test_an_unknown_verb_is_a_one_line_error(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, verb)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and "verb" in err and err.count("\n") == 1
