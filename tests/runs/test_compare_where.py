"""The grammar of where=: comparisons, precedence, errors."""

from __future__ import annotations

from typing import Any

import pytest

from alexnet_exp.errors import UserError
from alexnet_exp.runs.compare.where import Where

RUN: dict[str, Any] = {
    "optimizer.lr": 0.05,
    "seed": 3,
    "model": "alexnet_lrn",
    "test": True,
    "ckpt": None,
    "data.root": "/images/cats and dogs",
    "trainer.devices": "auto",
    "test/top1": 0.91,
    "data.mean": [0.5, 0.25],
    "name": "007",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer.lr>0.01", True),
        ("optimizer.lr > 0.05", False),
        ("optimizer.lr>=5e-2", True),
        ("seed=3", True),
        ("seed==3.0", True),
        ("seed!=3", False),
        ("seed<3 or seed<=3", True),
        ("model=alexnet_lrn", True),
        ("model='alexnet_lrn'", True),
        ("model!=alexnet_lrn", False),
        ("test=true", True),
        ("test=1", False),
        ("ckpt=null", True),
        ("ckpt!=null", False),
        ("test/top1>0.9", True),
        ("data.root='/images/cats and dogs'", True),
        ("data.root=/images/cats", False),
        ("data.mean=[0.5,0.25]", True),
        ("trainer.devices>1", False),  # auto is not a number
        ("ckpt<1", False),
        ("seed=3 and test=false", False),
        ("seed=0 and test=true or model=alexnet_lrn", True),  # 'and' binds tighter
        ("model=alexnet_lrn or seed=0 and test=false", True),
        ("seed=0 or seed=1 and test=true", False),
        ("model=2026-02-30", False),  # an invalid date
        ("name=007 and name!=7 and name!=8", True),
    ],
)
def test_filter_accepts_and_rejects_runs(text: str, expected: bool):
    assert Where(text).holds(RUN.get) is expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed", "cannot be read at 'seed'"),
        ("seed=", "cannot be read at 'seed='"),
        ("", "cannot be read"),
        ("seed=1 and", "cannot be read"),
        ("=3", "cannot be read"),
        ("optimizer.lr>fast", "invalid where=optimizer.lr>fast: expected a number after >"),
        ("__import__('os').system('true')", "cannot be read"),
        ("open('x')==1", "cannot be read"),
    ],
)
def test_invalid_comparison_is_refused(text: str, said: str):
    with pytest.raises(UserError, match=said.replace("(", "\\(")):
        Where(text)


def test_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"no run has .* optimizer\.lrr\. Did you mean optimizer\.lr\?"):
        Where("optimizer.lrr>1").check(RUN)
