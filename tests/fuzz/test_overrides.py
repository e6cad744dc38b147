"""Random words after `train`: valid settings, or a one-line error and exit code 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet_exp.cli import VERBS, main

KEYS = st.sampled_from(
    ("model", "data", "optimizer", "scheduler", "augment", "logger", "callbacks", "trainer", "experiment", "debug",
     "seed", "test", "compile", "resume", "ckpt", "weights", "trust", "label_smoothing", "data.batch_size",
     "data.root", "data.val_size", "optimizer.lr", "trainer.max_epochs", "trainer.devices", "trainer.precision",
     "model.features.conv2.then", "model.features.conv2", "model.features", "model.dropout", "model.input_size",
     "callbacks.checkpoint", "callbacks.ema.decay", "paths.output_dir", "hydra.run.dir", "hydra", "nothing.of.this")
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        ("1", "-1", "0", "null", "true", "none", "[]", "[relu]", "{}", "{a: 1}", "[", "}", "'", '"', "1e400", "nan",
         "inf", "alexnet_lrn", "digits", "cifar10", "${seed}", "${nothing}", "${oc.env:HOME}", "${", "\\", "$", "a,b",
         "range(1,3)", "choice(1,2)", "int(x)", "sgd", "???", "é", "\x00", "\n", " ", "")
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=6),
)  # fmt: skip
PREFIXES = st.sampled_from(("", "", "", "", "+", "++", "~"))
SETTINGS = st.builds(lambda prefix, key, value: f"{prefix}{key}={value}", PREFIXES, KEYS, VALUES)
WORDS = st.one_of(
    SETTINGS, SETTINGS, SETTINGS, st.text(max_size=8), PREFIXES.flatmap(lambda p: KEYS.map(p.__add__))
)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compose and check settings without starting a run."""
    import alexnet_exp.runs.train.command as module

    def train(config: dict[str, Any], overrides: list[str], run_dir: Path, command: str) -> None:
        assert config["data"]["batch_size"] >= 1
        lr = config["optimizer"]["lr"]
        assert lr == "auto" or lr > 0

    monkeypatch.setattr(module, "train", train)
    monkeypatch.chdir(tmp_path)


@given(words=st.lists(WORDS.filter(lambda word: not word.startswith("-")), min_size=1, max_size=3))
def test_settings_are_taken_or_refused_in_one_line(
    no_training: None, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code = main(["train", *words, "paths.output_dir=out"])
    err = capsys.readouterr().err
    assert "Traceback" not in err, (words, err)
    if code == 0:
        assert err == "", (words, err)
    else:
        assert code == 1 and err.startswith("error: ") and err.count("\n") == 1, (words, err)


@given(words=st.lists(st.one_of(SETTINGS, st.text(max_size=6)), max_size=2), verb=st.text(max_size=8))
def test_an_unknown_verb_is_a_one_line_error(
    capsys: pytest.CaptureFixture[str], words: list[str], verb: str
) -> None:
    if verb in VERBS or verb in ("-h", "--help", "help", "--version"):
        return
    assert main([verb, *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: There is no verb") and err.count("\n") == 1
