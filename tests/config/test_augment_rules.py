"""What the settings of the augmentation may be, and the files that ship."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from alexnet_exp.config.checks import check_config
from alexnet_exp.config.compose import compose, options, plain
from alexnet_exp.errors import UserError

ERASING = {"probability": 0.5, "scale": [0.02, 0.33], "ratio": [0.3, 3.3]}
PARTS = {"scale": [0.08, 1.0], "ratio": [0.75, 1.33]}


@lru_cache
def shipped() -> dict[str, Any]:
    return plain(compose("train", []))


def with_augment(key: str, value: Any) -> dict[str, Any]:
    return {**shipped(), "augment": {**shipped()["augment"], key: value}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flip", "alternating"),
        ("policy", "trivialaugment"),
        ("num_ops", 1),
        ("magnitude", 0),
        ("magnitude", 30),
        ("mixup", 1),
        ("cutmix", 0.2),
        ("erasing", ERASING),
        ("resized_crop", PARTS),
        ("resized_crop", {**PARTS, "whole_image": True}),
        ("colour_jitter", {"hue": 0.5}),
        ("contrast", [0.2, 1.8]),
        ("views", "flip_translate"),
    ],
)
def test_a_valid_value_is_accepted(key: str, value: Any) -> None:
    check_config(with_augment(key, value))


@pytest.mark.parametrize(
    ("key", "value", "must_be"),
    [
        ("flip", "sometimes", "true or false, or alternating"),
        ("policy", "autoaugment", "one of none, randaugment, trivialaugment"),
        ("num_ops", 0, "an integer >= 1, or null"),
        ("magnitude", 31, r"an integer in \[0, 30\], or null"),
        ("magnitude", True, r"an integer in \[0, 30\]"),
        ("mixup", -0.2, "a positive number, or null"),
        ("mixup", 0, "a positive number"),
        ("cutmix", "yes", "a positive number"),
        ("erasing", {**ERASING, "probability": 1.5}, r"\{probability: in \[0, 1\], scale: \[min, max\]"),
        ("erasing", {**ERASING, "scale": [0.33, 0.02]}, "probability"),
        ("erasing", {"probability": 0.5}, "probability"),
        ("resized_crop", {**PARTS, "ratio": [0.75]}, r"\{scale: \[min, max\], ratio"),
        ("resized_crop", {**PARTS, "ratio": [1.3, 0.7]}, "ratio"),
        ("resized_crop", {**PARTS, "whole_image": 1}, "whole_image: true or false"),
        ("colour_jitter", {"hue": 0.6}, r"hue: in \[0, 0\.5\]"),
        ("colour_jitter", {"gamma": 0.6}, "brightness, contrast, saturation"),
        ("colour_jitter", {"hue": 0}, "at least one of them > 0"),
        ("colour_jitter", {}, "at least one of them > 0"),
        ("contrast", [1.8, 0.2], r"\[min, max\], or null"),
        ("contrast", 0.5, r"\[min, max\]"),
        ("views", "six", "flip_translate"),
    ],
)
def test_an_invalid_value_is_a_one_line_error(key: str, value: Any, must_be: str) -> None:
    with pytest.raises(UserError, match=f"invalid augment\\.{key}=.*: expected .*{must_be}") as error:
        check_config(with_augment(key, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", options("augment"))
def test_every_shipped_augmentation_is_legal_and_has_all_keys(name: str) -> None:
    config = plain(compose("train", [f"augment={name}"]))
    check_config(config)
    assert config["augment"].keys() == shipped()["augment"].keys()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("fast", "flip", "alternating"),
        ("fast", "pad", 2),
        ("randaugment", "policy", "randaugment"),
        ("trivialaugment", "policy", "trivialaugment"),
        ("mixup", "mixup", 1.0),
        ("cutmix", "cutmix", 1.0),
        ("erasing", "erasing", ERASING),
        (
            "colour_jitter",
            "resized_crop",
            {"scale": [0.08, 1.0], "ratio": [0.75, 4 / 3], "whole_image": True},
        ),
    ],
)
def test_a_file_does_what_its_name_says(name: str, key: str, value: Any) -> None:
    assert plain(compose("train", [f"augment={name}"]))["augment"][key] == value
