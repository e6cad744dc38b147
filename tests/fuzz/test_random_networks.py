"""Random networks in the grammar of conf/model: built, trained for a step, saved and loaded, or refused in one line."""

from __future__ import annotations

import io
from typing import Any

import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.nn import functional

from alexnet_exp import create_model
from alexnet_exp.errors import UserError
from alexnet_exp.models import AlexNet
from tests.fuzz.refusal import check_sentence

AFTER_CONV = ("relu", "tanh", "lrn", "spatial_norm", "max_pool", "avg_pool", "batch_norm", "dropout")
AFTER_LINEAR = ("relu", "batch_norm", "dropout")
CHANNELS = (4, 6, 8, 12)


def orders(operations: tuple[str, ...], longest: int = 4) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(operations), max_size=longest)


POOLS = st.fixed_dictionaries(
    {}, optional={
        "kernel_size": st.integers(1, 4),
        "stride": st.integers(1, 3),
        "padding": st.sampled_from([0, 1, "same"]),
        "ceil_mode": st.booleans(),
    }
)  # fmt: skip
CONVS = st.fixed_dictionaries(
    {"out_channels": st.sampled_from(CHANNELS), "then": orders(AFTER_CONV)},
    optional={
        "before": orders(AFTER_CONV, longest=2),
        "kernel_size": st.integers(1, 7),
        "stride": st.integers(1, 4),
        "padding": st.sampled_from([0, 1, 2, 3, "same"]),
        "groups": st.integers(1, 3),
        "ceil_mode": st.booleans(),
        "local": st.booleans(),
        "bias": st.booleans(),
        "dropout": st.floats(0, 0.9),
        "lrn": st.fixed_dictionaries({}, optional={"size": st.integers(1, 6), "groups": st.integers(1, 2),
                                                   "beta": st.sampled_from([0.5, 0.75, 1.0])}),
        "max_pool": POOLS,
        "avg_pool": POOLS,
    },
)  # fmt: skip
LINEARS = st.fixed_dictionaries(
    {"out_features": st.integers(1, 20), "then": orders(AFTER_LINEAR)},
    optional={"before": orders(AFTER_LINEAR, longest=2)},
)


def mostly_legal(layer: dict[str, Any]) -> dict[str, Any]:
    """Drop what is always refused: settings of operations that a layer does not have."""
    used = [*layer["then"], *layer.get("before", [])]
    return {
        k: v for k, v in layer.items() if k not in ("lrn", "max_pool", "avg_pool", "dropout") or k in used
    }


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of an `AlexNet`; most can be built."""
    convs = draw(st.lists(CONVS, min_size=1, max_size=4))
    linears = draw(st.lists(LINEARS, max_size=2))
    classifier = {f"fc{6 + i}": layer for i, layer in enumerate(linears)}
    return {
        "input_size": draw(st.integers(8, 40)),
        "in_channels": draw(st.sampled_from([1, 3])),
        "num_classes": draw(st.integers(2, 5)),
        "input": draw(st.sampled_from([[], ["batch_norm"]])),
        "features": {f"conv{i}": mostly_legal(layer) for i, layer in enumerate(convs, 1)},
        "map_size": draw(st.sampled_from([None, None, 1, 2])),
        "classifier": {**classifier, "fc8": {}},
    }


def built(spec: dict[str, Any]) -> AlexNet | None:
    """Build a network, or return None if it is refused in one line."""
    try:
        return AlexNet(**spec)
    except UserError as error:
        check_sentence(error)
        return None


@given(networks(), st.integers(0, 2**31))
def test_a_network_that_can_be_built_trains_saves_and_loads(spec: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    model = built(spec)
    assume(model is not None)
    assert model is not None
    _check_modules(model, spec)
    images = torch.randn(3, spec["in_channels"], spec["input_size"], spec["input_size"])
    _take_a_step(model, images, spec["num_classes"])
    again = AlexNet(**spec)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    again.load_state_dict(torch.load(stored, weights_only=True))
    with torch.no_grad():
        expected = model.eval()(images)
        assert torch.equal(again.eval()(images), expected)
        assert expected.shape == (3, spec["num_classes"]) and expected.isfinite().all()
        # With a gradient's history, none, or one image: a network is the same function.
        torch.testing.assert_close(model(images[:1]), expected[:1], rtol=1e-4, atol=1e-5)


def _check_modules(model: AlexNet, spec: dict[str, Any]) -> None:
    """Check that every layer and every operation around it is a module."""
    for part, ahead in (("features", len(spec["input"])), ("classifier", 0)):
        words = [[*layer.get("before", []), *layer.get("then", [])] for layer in spec[part].values()]
        assert len(model.get_submodule(part)) == ahead + sum(1 + len(ops) for ops in words)


def _take_a_step(model: AlexNet, images: torch.Tensor, num_classes: int) -> None:
    model.train()
    logits = model(images)
    functional.cross_entropy(logits, torch.arange(3) % num_classes).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    torch.optim.SGD(model.parameters(), lr=1e-4).step()


@given(networks())
def test_a_network_on_the_meta_device_has_the_same_shape(spec: dict[str, Any]) -> None:
    model = built(spec)
    with torch.device("meta"):
        ghost = built(spec)
    assert (model is None) == (ghost is None)
    if model is not None and ghost is not None:
        assert {n: p.shape for n, p in model.state_dict().items()} == {
            n: p.shape for n, p in ghost.state_dict().items()
        }


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**7),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.none(), max_size=2),
)
KEYS = st.sampled_from(
    ("out_channels", "kernel_size", "stride", "padding", "groups", "then", "before", "dropout", "lrn", "max_pool",
     "local", "bias", "ceil_mode", "weight_std", "bias_init", "batch_norm", "nothing")
)  # fmt: skip


@given(st.dictionaries(KEYS, SCALARS, min_size=1, max_size=3))
@example({"padding": 374461, "out_channels": 374461, "kernel_size": 374461})
def test_nonsense_in_a_layer_is_an_error_message_or_a_network(changes: dict[str, Any]) -> None:
    with torch.device("meta"):  # a width of ten million takes no memory there
        try:
            create_model("alexnet_cifar", features={"conv2": changes})
        except UserError as error:
            check_sentence(error)
