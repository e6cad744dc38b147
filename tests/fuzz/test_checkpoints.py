"""Checkpoints with flipped, cut or added bytes or changed values: read, or refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet_exp.errors import UserError
from alexnet_exp.inference import load_classifier
from alexnet_exp.training.checkpoint.read import check_progress, read_checkpoint
from tests.fuzz.damage import DAMAGE, damaged
from tests.fuzz.refusal import check_sentence
from tests.training.small_runs import run, same

# A failure is reported with the whole checkpoint, which is long.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """A real checkpoint: its bytes and its content."""
    run_dir = tmp_path_factory.mktemp("whole")
    run(run_dir, "test=false", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1")
    file = run_dir / "checkpoints" / "last.ckpt"
    return file.read_bytes(), torch.load(file, weights_only=True)


@given(damage=DAMAGE)
def test_a_damaged_checkpoint_is_refused_or_has_lost_nothing(
    whole: tuple[bytes, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, damage: Any
) -> None:
    content, original = whole
    path = tmp_path_factory.getbasetemp() / "damaged.ckpt"
    path.write_bytes(damaged(content, damage))
    try:
        found = read_checkpoint(path)
    except UserError as error:
        check_sentence(error)
    else:  # the damage fell between the records
        assert same(found, original)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value in nested dictionaries and lists."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(way for key, each in inside for way in places(each, (*path, key)))]


def changed(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """Return a copy in which the value at a path is replaced."""
    if not way:
        return new
    if isinstance(value, dict):
        return {key: changed(each, way[1:], new) if key == way[0] else each for key, each in value.items()}
    return [changed(each, way[1:], new) if i == way[0] else each for i, each in enumerate(value)]


NEW = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
    st.builds(torch.zeros, st.lists(st.integers(0, 3), max_size=3)),
)  # fmt: skip


@given(place=st.floats(0, 1, exclude_max=True), new=NEW, goes_on=st.booleans())
def test_a_checkpoint_with_another_value_is_read_or_refused(
    whole: tuple[bytes, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
    place: float,
    new: Any,
    goes_on: bool,
) -> None:
    ways = [way for way in places(whole[1]) if way]
    path = tmp_path_factory.getbasetemp() / "changed.ckpt"
    torch.save(changed(whole[1], ways[int(place * len(ways))], new), path)
    try:
        if goes_on:
            check_progress(read_checkpoint(path), path)
        else:
            load_classifier(path)
    except UserError as error:
        check_sentence(error)


@given(content=st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    for name in ("any.ckpt", "any.safetensors"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
