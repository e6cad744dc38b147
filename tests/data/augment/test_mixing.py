"""Mixup and CutMix: shares, partners and pixels, against a loop over the images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet_exp.data.augment.geometry import Preprocess
from alexnet_exp.data.augment.mixing import Mixer, beta_quantile
from alexnet_exp.data.augment.pipeline import Pipeline
from alexnet_exp.data.loaders import BatchPlan
from alexnet_exp.data.randomness import uniforms

MIXERS = [Mixer(0.4, 0.0, 12), Mixer(0.0, 1.0, 12), Mixer(0.2, 1.0, 12)]


def slow_mix(x: Tensor, indices: Tensor, mixer: Mixer, seed: int, epoch: int) -> tuple[Tensor, list[float]]:
    """Mix pixel by pixel; return the images and the share of each image's own label."""
    side, out, shares = x.shape[-1], x.clone(), []
    for n, (coin, share, down, across) in enumerate(uniforms(indices, 4, "mixing", seed, epoch).tolist()):
        partner = n + 1 if n % 2 == 0 else n - 1
        partner = partner if partner < len(x) else max(len(x) - 2, 0)
        cut = bool(mixer.cutmix) and (not mixer.mixup or coin < 0.5)
        lam = float(beta_quantile(mixer.cutmix if cut else mixer.mixup, torch.tensor([share])))
        if cut:
            half, middle = int(side * math.sqrt(1 - lam)) // 2, (int(down * side), int(across * side))
            top, left = (max(m - half, 0) for m in middle)
            bottom, right = (min(m + half, side) for m in middle)
            out[n, :, top:bottom, left:right] = x[partner, :, top:bottom, left:right]
            lam = 1 - (bottom - top) * (right - left) / side**2
        else:
            out[n] = lam * x[n] + (1 - lam) * x[partner]
        shares.append(lam)
    return out, shares


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("count", [16, 15, 1])
def test_a_mixed_batch_matches_a_loop_over_its_images(mixer: Mixer, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, indices = torch.randn(count, 3, 12, 12, generator=generator), torch.arange(count) * 31 + 5
    expected, shares = slow_mix(x, indices, mixer, seed=7, epoch=2)
    before = x.clone()
    mixing = mixer.draw(indices, seed=7, epoch=2)
    torch.testing.assert_close(mixing.apply(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixing.shares, torch.tensor(shares), rtol=0, atol=1e-5)
    assert torch.equal(x, before)


def test_cutmix_copies_pixels_exactly() -> None:
    x = torch.arange(8 * 12 * 12, dtype=torch.float32).view(8, 1, 12, 12) / 7
    mixing = Mixer(0.0, 1.0, 12).draw(torch.arange(8), 0, 0)
    mixed = mixing.apply(x)
    own, partner = mixed == x, mixed == x[mixing.partners]
    assert (own ^ partner).all()
    torch.testing.assert_close(own.float().mean((1, 2, 3)), mixing.shares)


def test_with_both_enabled_each_image_flips_a_coin() -> None:
    cut = Mixer(0.2, 1.0, 12).draw(torch.arange(10_000), 0, 0).cut
    assert abs(cut.float().mean() - 0.5) < 4 * 0.5 / math.sqrt(10_000)
    assert not Mixer(0.2, 0.0, 12).draw(torch.arange(100), 0, 0).cut.any()
    assert Mixer(0.0, 0.2, 12).draw(torch.arange(100), 0, 0).cut.all()


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_the_partner_of_an_image_is_its_neighbour(count: int) -> None:
    partners = MIXERS[0].draw(torch.arange(count) + 100, 0, 0).partners.tolist()
    assert (
        partners == [[0], [1, 0], [1, 0, 3, 2, 5, 4, 5], [1, 0, 3, 2, 5, 4, 7, 6]][[1, 2, 7, 8].index(count)]
    )


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_share_depends_only_on_seed_epoch_and_index(mixer: Mixer) -> None:
    indices = torch.arange(40)
    whole = mixer.draw(indices, 1, 2).shares
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    parts = [mixer.draw(part, 1, 2).shares for part in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    for seed, epoch in ((2, 2), (1, 3)):
        assert (mixer.draw(indices, seed, epoch).shares == whole).float().mean() < 0.3


@pytest.mark.parametrize("mixer", MIXERS)
def test_ranks_with_even_slices_mix_as_a_single_device(mixer: Mixer) -> None:
    x = torch.randn(20, 3, 12, 12, generator=torch.Generator().manual_seed(0))

    def batches(rank: int, world_size: int) -> list[Tensor]:
        plan = BatchPlan(20, 8, seed=0, rank=rank, world_size=world_size, epoch=3)
        return [mixer.draw(s.indices, 0, 3).apply(x[s.indices])[: s.size] for s in plan]

    alone = batches(0, 1)
    for world_size in (2, 4):
        ranks = [batches(rank, world_size) for rank in range(world_size)]
        for i in range(2):  # four ranks cut the last batch of 4 into odd slices
            assert torch.equal(torch.cat([rank[i] for rank in ranks]), alone[i])


def test_mixing_is_the_last_step_of_training_and_absent_from_evaluation() -> None:
    images = torch.randint(0, 256, (10, 3, 12, 12), dtype=torch.uint8)
    indices, prepare = torch.arange(10), Preprocess(12, [0.5] * 3, [0.25] * 3)
    erasing = {"probability": 1.0, "scale": [0.02, 0.33], "ratio": [0.3, 3.3]}
    plain = Pipeline(prepare, {"flip": True, "erasing": erasing})
    made = Pipeline(prepare, {"flip": True, "erasing": erasing, "mixup": 0.2, "cutmix": 1.0})
    mixing = made.mixing(indices, 1, 2)
    assert mixing is not None and plain.mixing(indices, 1, 2) is None
    expected = mixing.apply(plain.train(images, indices, 1, 2))
    assert torch.equal(made.train(images, indices, 1, 2), expected)
    assert torch.equal(made.evaluate(images), plain.evaluate(images))


# ------------------------------------------------------------------------------------------------ Beta


@pytest.mark.parametrize(
    ("alpha", "below"),
    [
        (0.5, lambda x: 2 / math.pi * torch.asin(x.sqrt())),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
    ],
)
def test_quantiles_invert_the_known_distribution(alpha: float, below: object) -> None:
    share = torch.linspace(0, 1, 2001, dtype=torch.float64)
    x = beta_quantile(alpha, share.float()).double()
    assert ((x >= 0) & (x <= 1)).all()
    torch.testing.assert_close(below(x), share, rtol=0, atol=2e-5)  # type: ignore[operator]


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.8, 1.5, 8.0, 100.0])
def test_quantiles_are_distributed_as_numpys_beta(alpha: float) -> None:
    count = 20_000
    ours = beta_quantile(alpha, uniforms(torch.arange(count), 1, "test")[:, 0]).double().numpy()
    theirs = np.random.default_rng(0).beta(alpha, alpha, count)
    assert np.isfinite(ours).all()
    values = np.sort(np.concatenate([ours, theirs]))
    shares = [np.searchsorted(np.sort(x), values, side="right") / count for x in (ours, theirs)]
    # float32 merges values within a rounding error of 1: compare where both can resolve them.
    inner = (values > 1e-6) & (values < 1 - 1e-6)
    assert np.abs(shares[0] - shares[1])[inner].max() < 2.7 * math.sqrt(2 / count)
