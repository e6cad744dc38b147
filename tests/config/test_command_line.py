"""What the user types reaches the settings unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from alexnet_exp.config.compose import compose, plain
from alexnet_exp.config.overrides import LITERAL_KEYS, prepare, resumed_directory
from alexnet_exp.errors import UserError

AWKWARD = [
    "/absolute/path", "a folder/with spaces", "a,b", "lr=0.1,seed=2", "it's", 'say "x"', "a/~/b",
    "größe/图像", "[1]", "{a}", "50%", "a:b", "#1", "back\\slash", "ends\\", "both\\'", "(x)", "-1", "true",
    "1e5", " led", "$HOME", "'open", "???x", "a;b|c&d", "@home", "*.ckpt",
]  # fmt: skip


def value_of(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize("value", AWKWARD)
def test_path_typed_unquoted_arrives_unchanged(value: str):
    (prepared,) = prepare([f"data.root={value}"])
    assert value_of(prepared) == value


@pytest.mark.parametrize("key", LITERAL_KEYS)
@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_every_path_key_is_literal(key: str, prefix: str):
    flags = ["-m"] if key == "sweep.resume" else []
    prepared = prepare([*flags, f"{prefix}{key}=/a b;c=d/it's"])[len(flags)]
    assert prepared.startswith(f"{prefix}{key}=")
    assert value_of(prepared) == "/a b;c=d/it's"


@pytest.mark.parametrize("value", ["'a b'", '"a b"', "'it\\'s'"])
def test_quoted_path_is_not_quoted_again(value: str):
    assert prepare([f"data.root={value}"]) == [f"data.root={value}"]


@pytest.mark.parametrize("value", ["null", "none", "???", "${paths.output_dir}/x", ""])
def test_special_values_keep_their_meaning(value: str):
    assert prepare([f"weights={value}"]) == [f"weights={value}"]


def test_resumed_sweep_keeps_its_directory():
    assert prepare(["-m", "sweep.resume=a b"]) == ["-m", "sweep.resume='a b'", "hydra.sweep.dir='a b'"]
    with pytest.raises(UserError, match="add -m"):
        prepare(["sweep.resume=a"])


def test_a_redundant_hydra_mode_with_m_is_ignored() -> None:
    assert prepare(["-m", "hydra.mode=MULTIRUN"]) == ["-m", "hydra.mode=MULTIRUN"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("hydra.mode=MULTIRUN", r"^hydra\.mode=MULTIRUN has no effect: use -m\.$"),
        ("++hydra.mode='RunMode.MULTIRUN'", r"has no effect: use -m\.$"),
        ("hydra.mode=2", r"has no effect: use -m\.$"),
        ("+hydra.sweeper.params.optimizer.lr=0.1,1", r"use -m optimizer\.lr=0\.1,1 instead\.$"),
        ("hydra.sweeper.params=seed", r"hydra\.sweeper\.params=seed: expected \{KEY: VALUES\}, such as"),
    ],
)
def test_other_spellings_of_a_sweep_are_a_one_line_error(typed: str, message: str):
    for flags in ([], ["-m"])[: 1 if "mode" in typed else 2]:
        with pytest.raises(UserError, match=message):
            prepare([*flags, typed])


def test_settings_without_effect_on_the_sweep_are_accepted():
    typed = [
        "hydra.mode=RUN",
        "hydra.mode=null",
        "hydra.sweeper.params=null",
        "hydra.sweeper.params={a: '1,2'}",
    ]
    assert prepare(typed) == typed


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_sweep_over_paths_stays_a_sweep(flag: str):
    assert prepare(["ckpt=a,b", flag]) == [flag, "ckpt=a,b"]


def test_other_values_are_left_to_hydras_grammar():
    typed = ["data.mean=[0.1,0.2,0.3]", "model=alexnet", "+callbacks.mine={_target_: a.B}", "~logger"]
    assert prepare(typed) == typed


def test_flags_can_be_anywhere():
    prepared = prepare(["model=alexnet", "--cfg", "job", "seed=1", "--config-dir", "my=dir", "-m"])
    assert prepared == ["--cfg", "job", "--config-dir", "my=dir", "-m", "model=alexnet", "seed=1"]


def test_resumed_run_keeps_its_directory():
    assert prepare(["resume=outputs/runs/a b"])[-1] == "hydra.run.dir='outputs/runs/a b'"
    assert prepare(["resume=old", "hydra.run.dir=new"]) == ["resume='old'", "hydra.run.dir='new'"]


@pytest.mark.parametrize(
    "typed", [[], ["resume=null"], ["resume="], ["model=alexnet"], ["resume=a", "resume=null"]]
)
def test_nothing_is_resumed_unless_a_directory_is_named(typed: list[str]):
    assert resumed_directory(typed) is None
    assert not any("run.dir" in argument for argument in prepare(typed))


def test_resumed_directory_is_parsed_as_hydra_will():
    assert resumed_directory(["resume=it's here"]) == "it's here"
    assert resumed_directory(prepare(["resume=it's here"])) == "it's here"


def test_bare_words_are_values_of_the_main_keys_in_order():
    assert prepare(["a", "n=1", "b"], ("ckpt", "images")) == ["ckpt='a'", "n=1", "images='b'"]
    assert prepare(["--cfg", "job", "a"], ("name",)) == ["--cfg", "job", "name=a"]


def test_a_word_with_an_equals_sign_is_a_path_if_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b" / "run").mkdir(parents=True)
    (tmp_path / "lr=1.png").touch()
    assert prepare(["a=b/run", "c=d"], ("ckpt",)) == ["ckpt='a=b/run'", "c=d"]
    typed = prepare(["a=b/run", "lr=1.png", "top_k=2"], ("ckpt", "images..."))
    assert typed == ["ckpt='a=b/run'", "top_k=2", "images=['lr=1.png']"]
    assert prepare(["a=b", "no=run"], ("runs...",)) == ["no=run", "runs=['a=b']"]
    assert prepare(["a=b"], ("what",)) == ["a=b"]  # a key that takes no path
    assert prepare(["a=b"]) == ["a=b"]


def test_a_folder_can_have_the_name_of_its_key():
    assert prepare(["runs"], ("runs...",)) == ["runs=['runs']"]
    assert prepare(["a.ckpt", "images"], ("ckpt", "images...")) == ["ckpt='a.ckpt'", "images=['images']"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("=3", r"'=3' has no key: write KEY=VALUE"),
        ("+=3", r"has no key"),
        ("model=", r"model= names no file in conf/model: set model=NAME, such as alexnet,"),
        ("trainer=null", r"trainer=null names no file in conf/trainer"),
        ("logger=null", r"or logger=none"),
        ("data=3", r"data=3 names no file"),
        ("model=[alexnet,resnet18]", r"one name; -m model=alexnet,resnet18 runs them one by one"),
    ],
)
def test_groups_take_the_name_of_a_file(typed: str, message: str):
    with pytest.raises(UserError, match=message):
        prepare([typed])


@pytest.mark.parametrize("mark", ["", "+", "++"])
def test_layers_of_the_optimizer_need_no_plus(mark: str) -> None:
    typed = [f"{mark}optimizer.layers={{features.*: {{lr_factor: 0.1}}}}", "experiment=none"]
    assert plain(compose("train", prepare(typed)))["optimizer"]["layers"] == {
        "features.*": {"lr_factor": 0.1}
    }


def test_a_layer_of_an_experiment_takes_other_values() -> None:
    typed = ["experiment=convnet_80sec", "optimizer.layers.fc8.lr_factor=2", "optimizer.layers.fc6=null"]
    layers = plain(compose("train", prepare(typed)))["optimizer"]["layers"]
    assert layers == {"fc6": None, "fc8": {"weight_decay": 0.03, "lr_factor": 2}}
