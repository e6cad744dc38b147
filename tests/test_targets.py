"""Which classes a configuration, and which a checkpoint, may name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alexnet_exp.config.compose import conf_dir
from alexnet_exp.errors import UserError
from alexnet_exp.targets import build, check_trust, locate

DANGEROUS = [
    "os.system",
    "posix.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "functools.partial",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "importlib.import_module",
    "torch.load",
    "torch.hub.load",
    "torch.optim.Optimizer.__init__",
    "torch.optim.SGD.__init__",
    "eval",
    "",
    ".",
    "alexnet_exp.targets.build",
    "alexnet_exp.targets.locate",
    "alexnet_exp.cli.main",
    "alexnet_exp.models",
    "alexnet_exp.models.",
    "alexnet_exp.models..os",
    "alexnet_exp.models.import_module",
    "alexnet_exp.models.alexnet.torch.os.system",
    "alexnet_exp.models.alexnet.torch",
    "alexnet_exp.models.alexnet.nn",
    "alexnet_exp.models.alexnet.OrderedDict",
    "alexnet_exp.models.AlexNet.__init__",
    "alexnet_exp.models.AlexNet.load_state_dict",
    "alexnet_exp.models.__builtins__",
    "alexnet_exp.models.__getattr__",
    "alexnet_exp.modelsevil.Net",
    "alexnet_exp.data.datasets.cifar10.os",
    "alexnet_exp.data.datasets.folder.Path",
    "alexnet_exp.data.datasets.mnist.gzip.open",
]


@pytest.mark.parametrize("target", DANGEROUS)
@pytest.mark.parametrize("trust", [(), ("my_package",)])
def test_checkpoint_can_only_name_classes_of_this_package(target: str, trust: tuple[str, ...]):
    with pytest.raises(UserError):
        check_trust({"_target_": target}, trust)


@pytest.mark.parametrize("target", [3, True, ["os.system"], {"_target_": "os.system"}, b"os.system"])
def test_non_string_target_is_refused(target: Any):
    with pytest.raises(UserError):
        check_trust({"_target_": target})


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"model": {"_target_": "os.system"}}, "config.model"),
        ({"callbacks": [{"fine": 1}, {"_target_": "os.system"}]}, r"config\.callbacks\[1\]"),
        ({"a": {"b": ({"c": [{"_target_": "os.system"}]},)}}, r"config\.a\.b\[0\]\.c\[0\]"),
        ({"_target_": "alexnet_exp.models.AlexNet", "x": {"_target_": "os.system"}}, r"config\.x"),
    ],
)
def test_nested_targets_are_checked(config: dict[str, Any], where: str):
    with pytest.raises(UserError, match=rf"{where} names 'os\.system', .*trust=\[os\]"):
        check_trust(config)


def test_every_target_in_conf_is_trusted():
    texts = [path.read_text(encoding="utf-8") for path in conf_dir().rglob("*.yaml")]
    targets = {target for text in texts for target in re.findall(r"^ *_target_: (\S+)", text, re.MULTILINE)}
    assert {"alexnet_exp.models.AlexNet", "alexnet_exp.data.CIFAR10", "torch.optim.SGD"} <= targets
    for target in targets:
        check_trust({"_target_": target})


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two third-party packages, each with its own class and a function imported from elsewhere."""
    for name in ("my_package", "my_package_too"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "nets.py").write_text(
            "class Net:\n    def __init__(self, width=1):\n        self.w = width\n"
        )
        (tmp_path / name / "__init__.py").write_text(f"from os import system\nfrom {name}.nets import Net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [n for n in sys.modules if n.startswith("my_package")]:
        del sys.modules[name]


@pytest.mark.usefixtures("packages")
def test_trust_allows_one_package_and_no_other():
    mine = {"_target_": "my_package.Net"}
    with pytest.raises(UserError, match=r"if you trust it, set trust=\[my_package\]"):
        check_trust(mine)
    check_trust(mine, ["my_package"])
    check_trust({"_target_": "my_package.nets.Net"}, ["my_package"])
    with pytest.raises(UserError, match=r"trust=\[my_package_too\]"):
        check_trust({"_target_": "my_package_too.Net"}, ["my_package"])


@pytest.mark.usefixtures("packages")
def test_trust_does_not_extend_to_what_a_package_imports():
    with pytest.raises(UserError, match=r"my_package\.system"):
        check_trust({"_target_": "my_package.system"}, ["my_package"])


def test_checking_an_untrusted_package_does_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "loud_package.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError):
        check_trust({"_target_": "loud_package.Net"})
    assert "loud_package" not in sys.modules


def test_trust_inside_the_checkpoint_is_ignored():
    with pytest.raises(UserError):
        check_trust({"trust": ["os"], "model": {"_target_": "os.system"}})


@pytest.mark.usefixtures("packages")
def test_class_is_built_from_its_keys_and_arguments_win():
    assert build({"_target_": "my_package.Net", "width": 3, "_convert_": "all"}).w == 3
    assert build({"_target_": "my_package.Net", "width": 3}, width=4).w == 4


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": 3}, "_target_ is missing beside width"),
        (
            {"_target_": "my_package.Net", "widht": 3},
            r"my_package\.Net: got an unexpected keyword argument 'widht'",
        ),
        ({"_target_": "my_package.Nett"}, r"my_package\.Nett cannot be imported"),
        ({"_target_": "no_such_package.Net"}, r"no_such_package\.Net cannot be imported"),
        ({"_target_": "Net"}, r"Net cannot be imported"),
    ],
)
def test_class_that_cannot_be_built_is_named(config: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        build(config)


def test_bug_inside_a_class_is_not_blamed_on_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken_package.py").write_text("class Net:\n    def __init__(self):\n        len(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TypeError, match="has no len"):
        build({"_target_": "broken_package.Net"})


def test_locate_follows_a_dotted_path():
    assert locate("pathlib.Path") is Path


def test_optimizers_inside_torch_are_trusted():
    for name in ("RMSprop", "Adagrad", "rmsprop.RMSprop"):
        check_trust({"_target_": f"torch.optim.{name}", "alpha": 0.9})
    for name in (
        "Optimizer",
        "lr_scheduler.StepLR",
        "sgd.Optimizer",
        "swa_utils.AveragedModel",
        "Nothing",
        "sgd.torch",
    ):
        with pytest.raises(UserError, match="which is not part of this package"):
            check_trust({"_target_": f"torch.optim.{name}"})
