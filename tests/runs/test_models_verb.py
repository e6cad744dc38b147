"""`alexnet-exp models`: its output matches the yaml headers and their sources."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from alexnet_exp.cli import main
from alexnet_exp.config.compose import conf_dir
from alexnet_exp.runs import models as verb
from alexnet_exp.zoo import list_models

# As the headers print them, in percent: top-1, top-5.
PUBLISHED = {
    "alexnet": (None, None),
    "alexnet_bn": (60.01, 81.89),
    "alexnet_cifar": (77.22, None),
    "alexnet_original": (59.34, 81.79),
    "alexnet_original_half": (60.83, 81.77),
    "alexnet_owt": (56.522, 79.066),
    "alexnet_stride4": (97.96, None),
    "alexnet_two_fc": (None, None),
    "caffe_alexnet": (57.1, 80.2),
    "caffe_cifar_full": (None, None),
    "convnet_11pct": (89.0, None),
    "resnet18": (69.758, 89.078),
    "tensorpack_alexnet": (58.0, None),
    "zfnet": (61.6, 83.5),
}
# Multiply-adds in millions, from the references: the released 2012 code, torchvision's published figures.
MILLIONS = {"alexnet_original": 724.4, "alexnet_owt": 714.0, "resnet18": 1814.0}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["models", *arguments]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["models", *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    return line


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    return {name: verb.describe(name) for name in list_models()}


@pytest.fixture
def described_once(rows: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Describe every network only once for all tests: it takes seconds."""
    monkeypatch.setattr(verb, "describe", lambda name, changes: {**rows[name], **changes})


def stated_parameters(name: str) -> int:
    """Read the parameter count that the header of a yaml states."""
    text = (conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^# Parameters: +([\d,]+) with ", text, re.MULTILINE)
    assert found, name
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("name", list_models())
def test_parameters_match_the_header_of_the_yaml(rows: dict[str, dict[str, Any]], name: str) -> None:
    assert rows[name]["parameters"] == stated_parameters(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_accuracy_is_read_from_the_header(rows: dict[str, dict[str, Any]], name: str) -> None:
    assert (rows[name]["published_top1"], rows[name]["published_top5"]) == PUBLISHED[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_multiply_adds_match_the_published_figures(rows: dict[str, dict[str, Any]], name: str) -> None:
    assert rows[name]["multiply_adds"] / 1e6 == pytest.approx(MILLIONS[name], rel=2e-3)


def test_every_network_states_its_source_and_differences(rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        assert row["name"] == name
        assert row["source"], name
        assert row["differs"], name


def test_a_multi_line_header_field_is_read_completely(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["alexnet_original"]["differs"].startswith("from alexnet_paper: block 1 is LRN")
    assert rows["alexnet_original"]["differs"].endswith("conv3 to conv5 start at std 0.03")


@pytest.mark.usefixtures("described_once")
def test_json_of_all_networks_contains_what_describe_returns(
    capsys: pytest.CaptureFixture[str], rows: dict[str, dict[str, Any]]
) -> None:
    assert json.loads(printed(capsys, "format=json")) == [rows[name] for name in list_models()]


@pytest.mark.usefixtures("described_once")
def test_the_table_has_a_line_for_every_network(
    capsys: pytest.CaptureFixture[str], rows: dict[str, dict[str, Any]]
) -> None:
    head, *lines = printed(capsys).splitlines()
    for word in ("network", "input", "parameters", "M mult-adds", "top-1 %", "top-5 %", "source"):
        assert word in head
    assert [line.split()[0] for line in lines] == list_models()
    by_name = {line.split()[0]: line.split() for line in lines}
    assert by_name["alexnet_owt"][1:6] == ["224", "61,100,840", "714", "56.522", "79.066"]
    assert by_name["alexnet_cifar"][1:5] == ["32", "2,472,266", "15", "77.22"]


def test_a_bare_word_is_the_name_of_one_network(capsys: pytest.CaptureFixture[str]) -> None:
    by_word, by_key = printed(capsys, "alexnet_cifar"), printed(capsys, "name=alexnet_cifar")
    assert by_word == by_key
    head, *lines = by_word.splitlines()
    assert head.split() == ["layer", "type", "output", "parameters", "multiply-adds", "sees"]
    by_layer = {line.split()[0]: line.split() for line in lines}
    # 64 filters of 11 x 11 x 3 and 64 biases; an 8 x 8 map; 64 x 363 x 64 multiply-adds
    assert by_layer["conv1"] == [
        "conv1",
        "Conv2d",
        "64",
        "x",
        "8",
        "x",
        "8",
        "23,296",
        "1,486,848",
        "11",
        "px",
    ]
    assert by_layer["fc8"][2:5] == ["10", "2,570", "2,560"]
    assert by_layer["total"] == ["total", "2,472,266", "14,957,056"]


@pytest.mark.usefixtures("described_once")
@pytest.mark.parametrize("width", [120, 80, 50, 40])
def test_a_narrow_terminal_drops_columns_but_no_digits(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rows: dict[str, dict[str, Any]],
    width: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    networks, layers = printed(capsys), printed(capsys, "alexnet_lrn")
    assert max(map(len, f"{networks}{layers}".splitlines())) <= width
    assert {f"{row['parameters']:,}" for row in rows.values()} <= set(networks.split())
    assert {"97.96", "77.22"} <= set(networks.split()) or width < 80
    total = layers[layers.index("total") :].split()
    assert total[:3] == ["total", "62,378,344", "1,135,256,096"]
    assert ("too narrow for: source (format=json has all)" in networks) == (width == 80)
    assert "…" not in networks + layers


def test_json_of_one_network_lists_its_layers(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "alexnet_original", "format=json"))
    layers = found["layers"]
    assert sum(layer["parameters"] for layer in layers) == found["parameters"] == 60_965_224
    convolutions = [layer for layer in layers if layer["type"].endswith("Conv2d")]
    assert [layer["parameters"] for layer in convolutions] == [34_944, 307_456, 885_120, 663_936, 442_624]
    assert [layer["output_shape"] for layer in convolutions] == [
        [96, 55, 55], [256, 27, 27], [384, 13, 13], [384, 13, 13], [256, 13, 13],
    ]  # fmt: skip


def test_num_classes_and_input_size_can_be_changed(capsys: pytest.CaptureFixture[str]) -> None:
    ten = json.loads(printed(capsys, "alexnet", "num_classes=10", "format=json"))
    assert ten["parameters"] == 58_322_314
    small = json.loads(printed(capsys, "convnet_11pct", "input_size=32", "format=json"))
    assert (small["parameters"], small["input_size"]) == (3_672_906, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alexnett"], r"There is no model 'alexnett'\. Did you mean alexnet"),
        (["name=../train"], r"There is no model '\.\./train'"),
        (["format=xml"], r"invalid format='xml': expected table or json"),
        (
            ["alexnet", "num_classes=0"],
            r"invalid num_classes=0: expected an integer >= 1",
        ),
        (["alexnet", "num_classes=many"], r"invalid num_classes='many': expected"),
        (["resnet18", "input_size=10.5"], r"invalid input_size=10\.5: expected"),
        (["alexnet", "input_size=20"], r"conv2: its max_pool .*model\.input_size=67"),
        (["input_size=64"], r"input_size needs a network"),
        (["alexnet", "alexnet_lrn"], r"'alexnet_lrn' is not KEY=VALUE"),
        (["nam=alexnet"], r"nam"),
    ],
)
def test_an_error_in_settings_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert re.search(message, refused(capsys, *arguments))
