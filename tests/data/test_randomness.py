from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from alexnet_exp.data.randomness import EpochUniforms, mix, permutation, uniforms

WORD = 2**32


def slow_uniform(index: int, column: int, count: int, seed: int) -> float:
    """Return one number of `uniforms`, computed with plain Python integers."""
    counter = index * count + column
    bits = lowbias32(counter % WORD ^ seed % WORD)
    bits = lowbias32(bits ^ counter // WORD ^ seed // WORD)
    return (bits // 2**8) / 2**24


def lowbias32(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    return x ^ x >> 16


def chi_square(counts: Tensor) -> float:
    """Return Pearson's statistic against equal bins, in standard deviations from its mean."""
    expected, freedom = counts.sum() / counts.numel(), counts.numel() - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


def correlation(a: Tensor, b: Tensor) -> float:
    """Return the correlation of two sets of uniform numbers, in standard deviations of chance."""
    return float(((a - 0.5) * (b - 0.5)).double().mean() * 12 * a.numel() ** 0.5)


# ------------------------------------------------------------------------------------------------ mix


def test_drawing_a_whole_epoch_at_once_gives_the_same_numbers():
    drawn = EpochUniforms(50)
    for epoch in (0, 0, 1, 0):
        for indices in torch.randperm(50).split(20):
            for count, name in ((3, "augment"), (1, "flip")):
                assert torch.equal(
                    drawn(indices, count, name, 7, epoch), uniforms(indices, count, name, 7, epoch)
                )
    assert len(drawn._drawn) == 2  # one epoch of each stream is kept


def test_mix_distinguishes_values_types_and_positions():
    keys = [(1,), (2,), ("1",), (1, 2), (2, 1), (12,), ("1", 2), (-1,), ("order", 0, 1), ("order", 1, 0)]
    assert len({mix(*key) for key in keys}) == len(keys)


def test_mix_returns_63_bit_seeds():
    seeds = [mix("seed", i) for i in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62 > min(seeds)


def test_mix_is_stable_so_that_old_runs_resume_in_the_same_order():
    assert mix("order", 7, 3) == 6_970_498_340_325_694_984


# ------------------------------------------------------------------------------------------------ permutation


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_a_permutation_contains_every_number_once(count: int):
    order = permutation(count, "order", 0, 0)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(count))


def test_a_permutation_depends_only_on_its_key():
    torch.manual_seed(1)
    first = permutation(100, "order", 0, 5)
    torch.manual_seed(2)
    assert torch.equal(permutation(100, "order", 0, 5), first)
    for key in (("order", 0, 6), ("order", 1, 5), ("validation", 0, 5)):
        assert not torch.equal(permutation(100, *key), first)


def test_drawing_does_not_touch_torchs_random_state():
    before = torch.get_rng_state()
    permutation(10, "order", 0)
    uniforms(torch.arange(10), 3, "augment", 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_comes_first_equally_often_over_the_epochs():
    firsts = torch.stack([permutation(5, "order", 0, epoch)[0] for epoch in range(2000)])
    assert abs(chi_square(firsts.bincount(minlength=5))) < 4


# ------------------------------------------------------------------------------------------------ uniforms


@pytest.mark.parametrize("key", [("augment", 0, 0), ("augment", 2**40, 17), ("other",)])
def test_uniforms_match_plain_integer_arithmetic(key: tuple[int | str, ...]):
    indices = torch.tensor([0, 1, 2, 49_999, 1_281_166, 2**31, 2**33 + 5, 2**45])
    expected = [[slow_uniform(i, column, 3, mix(*key)) for column in range(3)] for i in indices.tolist()]
    drawn = uniforms(indices, 3, *key)
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == expected


def test_uniforms_of_an_image_do_not_depend_on_its_batch_or_position():
    whole = uniforms(torch.arange(1000), 4, "augment", 0, 0)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniforms(order, 4, "augment", 0, 0), whole[order])
    assert torch.equal(
        torch.cat([uniforms(part, 4, "augment", 0, 0) for part in order.split(17)]), whole[order]
    )


def test_uniforms_differ_between_epochs_seeds_streams_and_far_images():
    indices = torch.arange(1000)
    drawn = [uniforms(indices, 3, *key) for key in (("a", 0, 0), ("a", 0, 1), ("a", 1, 0), ("b", 0, 0))]
    drawn.append(uniforms(indices + 2**33, 3, "a", 0, 0))
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (one == other).float().mean() < 0.001


def test_uniforms_lie_in_0_1_with_the_right_moments():
    drawn = uniforms(torch.arange(200_000), 3, "augment", 0, 0).double()
    assert 0 <= drawn.min() < 1e-5
    assert 1 - 1e-5 < drawn.max() < 1
    sigma = drawn.numel() ** -0.5
    for power in (1, 2, 3, 4):  # the variance of u^k is 1 / (2k + 1) - 1 / (k + 1)^2
        deviation = math.sqrt(1 / (2 * power + 1) - 1 / (power + 1) ** 2)
        assert abs(drawn.pow(power).mean().item() - 1 / (power + 1)) < 4 * deviation * sigma


@pytest.mark.parametrize("column", [0, 1, 2])
def test_uniforms_fill_all_bins_and_pairs_of_bins_evenly(column: int):
    drawn = uniforms(torch.arange(100_000), 3, "augment", 3, 1)
    fine = (drawn[:, column] * 256).long()
    assert abs(chi_square(fine.bincount(minlength=256))) < 4
    neighbour = (drawn[:, (column + 1) % 3] * 16).long()
    assert abs(chi_square((fine // 16 * 16 + neighbour).bincount(minlength=256))) < 4
    assert abs(chi_square((fine[:-1] // 16 * 16 + fine[1:] // 16).bincount(minlength=256))) < 4


def test_uniforms_of_columns_neighbours_and_epochs_are_not_correlated():
    indices = torch.arange(20_000)
    drawn = uniforms(indices, 3, "augment", 0, 0)
    pairs = [(drawn[:, a], drawn[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    pairs += [(drawn[:-step], drawn[step:]) for step in (1, 2, 3, 64, 4096)]
    pairs += [(drawn, uniforms(indices, 3, "augment", 0, epoch)) for epoch in range(1, 11)]
    pairs += [(drawn, uniforms(indices, 3, "augment", seed, 0)) for seed in range(1, 11)]
    assert max(abs(correlation(a, b)) for a, b in pairs) < 4.5


def test_draws_of_one_image_are_uniform_over_the_epochs():
    drawn = torch.cat([uniforms(torch.tensor([17]), 3, "augment", 0, epoch) for epoch in range(3000)])
    for column in range(3):
        assert abs(chi_square((drawn[:, column] * 20).long().bincount(minlength=20))) < 4
    assert abs(correlation(drawn[:-1], drawn[1:])) < 4.5


@pytest.mark.gpu
def test_uniforms_on_cuda_match_the_cpu():
    indices = torch.arange(10_000) * 7919
    assert torch.equal(
        uniforms(indices.cuda(), 3, "augment", 0, 0).cpu(), uniforms(indices, 3, "augment", 0, 0)
    )
