"""Words of other libraries stay errors, and the one line names a setting that exists."""

from __future__ import annotations

import shlex

import pytest
from omegaconf import OmegaConf

from alexnet_exp.cli import VERBS, main
from alexnet_exp.config import words
from alexnet_exp.config.checks import unknown
from alexnet_exp.config.compose import compose, conf_dir, options
from alexnet_exp.config.groups import RULES
from alexnet_exp.config.overrides import prepare
from alexnet_exp.settings import GROUPS

# Of every kind that a rule takes.
VALUES = (
    "5",
    "3",
    "0.5",
    "a",
    "true",
    "val/top1",
    "[0.5,0.5]",
    "[5,6]",
    "[0.5,0.5,0.5]",
    "[a,b]",
    "00:01:00:00",
    "auto",
)


def some_value(settings: str) -> str:
    """Return a value that is legal for the last of some settings."""
    key = settings.split(" ")[-1]
    return next(value for value in VALUES if key not in RULES or words.is_legal(key, value))


SAME = [(word, some_value(key)) for word, key in words._KEYS.items()]
TRANSLATED = [
    (word, value)
    for word in words._TRANSLATED
    for value in (
        "true",
        "false",
        "1",
        "0.1",
        "cuda:1",
        "adam",
        "cosine",
        "cifar10",
        "resnet18",
        "/my data/a",
    )
]


def home(key: str) -> dict[str, str]:
    """Return the choice of files with which there is such a setting."""
    group, _, last = key.rpartition(".")
    if group in ("data", "optimizer"):
        option = next(
            o for o in options(group) if f"\n{last}:" in (conf_dir() / group / f"{o}.yaml").read_text()
        )
        return {group: option, **({"data.root": "x"} if option == "folder" else {})}
    return (
        {"logger": "wandb"} if group == "logger.wandb" else {"model": "alexnet"} if group == "model" else {}
    )


def together(suggestions: set[str]) -> list[dict[str, str]]:
    """Return the settings of all suggestions in as few compositions as have no key twice."""
    compositions: list[dict[str, str]] = []
    for suggestion in sorted(suggestions):
        parts = [part.partition("=") for part in shlex.split(suggestion)]
        assert all(
            key in RULES or key.startswith(("model.", "hydra.")) or key in GROUPS for key, _, _ in parts
        )
        given = {key: value for key, _, value in parts if value not in ("", "NAME", "N")}
        for key in list(given):
            given = {**home(key), **given}
        room = next((c for c in compositions if all(c.get(k, v) == v for k, v in given.items())), None)
        if room is None:
            compositions.append(given)
        else:
            room.update(given)
    return compositions


def test_every_suggestion_composes_and_is_valid():
    suggestions = {each for word, value in SAME + TRANSLATED for each in words.meant(word, value)}
    assert len(suggestions) > 100
    for given in together(suggestions):
        prepared = prepare([f"{key}={value}" for key, value in given.items()])
        config = compose("train", prepared)
        for key in given.keys() & RULES.keys():
            value = OmegaConf.select(config, key)
            assert RULES[key].legal(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value), (
                key
            )


def test_a_suggestion_contains_the_typed_value():
    assert all("=" in words.meant(word, value)[0].split(" ")[-1] for word, value in SAME)


@pytest.mark.parametrize(
    ("typed", "setting"),
    [
        ("lr=0.1", "optimizer.lr=0.1"),
        ("lr=1e-4", "optimizer.lr=1e-4"),
        ("optimizer.learning_rate=0.1", "optimizer.lr=0.1"),
        ("trainer.lr=0.1", "optimizer.lr=0.1"),
        ("LR=0.1", "optimizer.lr=0.1"),
        ("epochs=10", "trainer.max_epochs=10"),
        ("num_epochs=10", "trainer.max_epochs=10"),
        ("max_epochs=10", "trainer.max_epochs=10"),
        ("trainer.epochs=10", "trainer.max_epochs=10"),
        ("+epochs=10", "trainer.max_epochs=10"),
        ("epocs=10", "trainer.max_epochs"),
        ("batch_size=64", "data.batch_size=64"),
        ("bs=64", "data.batch_size=64"),
        ("wd=5e-4", "optimizer.weight_decay=5e-4"),
        ("momentum=0.9", "optimizer.momentum=0.9"),
        ("device=cuda:1", "trainer.accelerator=gpu 'trainer.devices=[1]'"),
        ("device=0", "trainer.accelerator=gpu 'trainer.devices=[0]'"),
        ("device=cpu", "trainer.accelerator=cpu"),
        ("gpus=2", "trainer.devices=2"),
        ("n_gpus=2", "trainer.devices=2"),
        ("gpus=[0,1]", "trainer.accelerator=gpu 'trainer.devices=[0,1]'"),
        ("cuda=true", "trainer.accelerator=gpu"),
        ("amp=true", "trainer.precision=bf16-mixed"),
        ("fp16=true", "trainer.precision=16-mixed"),
        ("half=false", "trainer.precision=32-true"),
        ("precision=fp16", "trainer.precision=16-mixed"),
        ("precision=16-mixed", "trainer.precision=16-mixed"),
        ("imgsz=64", "model.input_size=64"),
        ("image_size=64", "model.input_size=64"),
        ("pretrained=true", "weights=torchvision"),
        ("model.pretrained=true", "weights=torchvision"),
        ("pretrained=false", "weights=none"),
        ("wandb=false", "logger=none"),
        ("wandb=offline", "logger.wandb.mode=offline"),
        ("workers=4", "data.num_workers=4"),
        ("patience=5", "callbacks.early_stopping.enabled=true callbacks.early_stopping.patience=5"),
        ("dropout=0.3", "model.dropout=0.3"),
        ("ls=0.1", "label_smoothing=0.1"),
        ("opt=adam", "optimizer=adam"),
        ("sched=cosine", "scheduler=cosine"),
        ("dataset=cifar10", "data=cifar10"),
        ("dataset=/my/photos", "data=folder data.root=/my/photos"),
        ("data_dir=x", "paths.data_dir=x"),
        ("dataset=cifar100", "data=NAME"),
        ("dataset=cifar", "data=cifar10"),
        ("arch=resnet18", "model=resnet18"),
        ("arch=resnet50", "model=NAME"),
        ("output_dir=x", "paths.output_dir=x"),
        ("project=x", "logger.wandb.project=x"),
        ("random_seed=3", "seed=3"),
        ("verbose=false", "callbacks.progress_bar.enabled=false"),
        ("log_interval=10", "trainer.log_every_n_steps=10"),
        ("strategy=ddp", "trainer.strategy=ddp"),
        ("accumulate=4", "trainer.accumulate_grad_batches=4"),
        ("grad_clip=1.0", "trainer.gradient_clip_val=1.0"),
        ("ema=true", "callbacks.ema.enabled=true"),
        ("val_split=0.1", "data.val_fraction=0.1"),
        ("val_ratio=0.1", "data.val_fraction=0.1"),
        ("checkpoint=x", "ckpt=x"),
        ("resume_from=x", "resume=x"),
    ],
)
def test_a_name_from_another_library_suggests_ours(typed: str, setting: str):
    key, _, value = typed.lstrip("+").partition("=")
    said = unknown(key, value)
    assert said.startswith(f"There is no setting {key}. Did you mean ")
    assert setting in said


@pytest.mark.parametrize(
    ("typed", "setting"),
    [
        ("lr=0.1", "optimizer.lr=0.1"),
        ("+epochs=10", "trainer.max_epochs=10"),
        ("model.pretrained=true", "weights=torchvision"),
        ("optimizer=SGD", "sgd"),
        ("scheduler=CosineAnnealingLR", "cosine"),
        ("--lr 0.1", "optimizer.lr=0.1"),
        ("--epochs=10", "trainer.max_epochs=10"),
        ("--batch-size 64", "data.batch_size=64"),
        ("-b 64", "data.batch_size=64"),
        ("--optimizer.lr=0.1", "optimizer.lr=0.1"),
        ("--model resnet18", "model=resnet18"),
        ("--seed 3", "seed=3"),
        ("--amp", "trainer.precision=bf16-mixed"),
        ("--cpu seed=1", "trainer.accelerator=cpu"),
        ("lr 0.1", "optimizer.lr=VALUE"),
        ("lr:0.1", "optimizer.lr=0.1"),
        ("evaluate x", "alexnet-exp evaluate"),
        ("-m lr=0.1,0.2", "optimizer.lr=0.1"),
    ],
)
def test_a_name_from_another_library_is_a_one_line_error_with_ours(
    typed: str, setting: str, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *typed.split()]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert setting in err
    assert "Did you mean" in err or "the command is" in err


@pytest.mark.parametrize(
    ("typed", "setting"),
    [
        ("evaluate RUN bs=64", "batch_size=64"),
        ("evaluate RUN --batch-size 64", "batch_size=64"),
        ("predict RUN a.png topk=3", "top_k=3"),
        ("predict RUN --source photos", "images=photos"),
        ("benchmark epochs=3", "trainer.max_epochs=3"),
    ],
)
def test_the_other_verbs_name_settings_of_their_own(
    typed: str, setting: str, capsys: pytest.CaptureFixture[str]
):
    assert main(typed.split()) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"Did you mean {setting}?" in err


def test_a_misspelt_verb_suggests_the_right_one(capsys: pytest.CaptureFixture[str]):
    for word, verb in words.VERBS.items():
        assert verb in VERBS
        assert main([word]) == 1
        assert f"Did you mean {verb}?" in capsys.readouterr().err
    assert main(["model=alexnet"]) == 1
    assert "alexnet-exp train model=alexnet" in capsys.readouterr().err


def test_no_foreign_name_shadows_a_top_level_setting():
    top = {key for key in compose("train", []) if key not in GROUPS}
    assert not top & {*words._KEYS, *words._TRANSLATED}


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("shuffle=false", "reshuffled every epoch"),
        ("data.drop_last=true", "always used"),
        ("loss=mse", "cross-entropy"),
    ],
)
def test_a_foreign_name_without_an_equivalent_says_why(
    typed: str, said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", "data=digits", typed]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and "Did you mean" not in line
