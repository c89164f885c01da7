"""Bits by layer, against every assignment there is."""
import itertools

import numpy as np
import pytest

from lcq_mmdet import LCQError
from lcq_mmdet.studies.assign import (assign_bits, check_budget,
                                      monotone_changes)

WIDTHS = (2, 4, 8)


def make_rows(seed, layers='abcd'):
    """Layers of random size whose loss falls with their bits."""
    rng = np.random.default_rng(seed)
    rows = []
    for layer in layers:
        changes = np.sort(rng.exponential(size=len(WIDTHS)))[::-1]
        size = rng.integers(1, 100)
        for bits, change in zip(WIDTHS, changes):
            rows.append(
                dict(layer=layer, bits=bits, change=float(change),
                     bytes=int(size * bits), bops=int(size * bits**2)))
    return rows


def total(rows, bits, key):
    return sum(row[key] for row in rows if bits[row['layer']] == row['bits'])


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('keys', [('bytes', ), ('bytes', 'bops')])
def test_assignment_is_the_best_within_the_budget(seed, keys):
    rows = make_rows(seed)
    every = [
        dict(zip('abcd', widths))
        for widths in itertools.product(WIDTHS, repeat=4)
    ]
    uniform = dict.fromkeys('abcd', 4)
    budget = {key: total(rows, uniform, key) for key in keys}
    bits = assign_bits(rows, budget)
    assert list(bits) == list('abcd')
    allowed = [
        other for other in every
        if all(total(rows, other, key) <= budget[key] for key in keys)
    ]
    assert bits in allowed and uniform in allowed
    assert total(rows, bits, 'change') == pytest.approx(
        min(total(rows, other, 'change') for other in allowed))


def test_order_of_the_rows_does_not_matter():
    rows = make_rows(0)
    budget = dict(bytes=total(rows, dict.fromkeys('abcd', 4), 'bytes'))
    assert assign_bits(rows[::-1], budget) == assign_bits(rows, budget)


def test_without_a_budget_all_have_the_most_bits():
    rows = make_rows(1)
    assert set(assign_bits(rows, {}).values()) == {8}
    for row in rows:
        row['change'] = 0.
    assert set(assign_bits(rows, {}).values()) == {8}


def test_a_gain_is_noise_and_so_is_a_loss_that_rises_with_bits():
    rows = [
        dict(layer=layer, bits=bits, change=change)
        for layer, bits, change in [('a', 2, .1), ('b', 2, 0.), ('a', 4, .3),
                                    ('a', 8, -.2)]
    ]
    assert monotone_changes(rows) == [.3, 0., .3, 0.]


@pytest.mark.parametrize('key', ['bytes', 'bops'])
def test_budget_that_the_lowest_bits_exceed_is_refused(key):
    rows = make_rows(2)
    least = total(rows, dict.fromkeys('abcd', 2), key)
    assert set(assign_bits(rows, {key: least}).values()) == {2}
    with pytest.raises(LCQError, match=f'^the budget: {least - 1} {key} are '
                       f'left .* take {least} at their lowest bits'):
        assign_bits(rows, {key: least - 1})
    with pytest.raises(LCQError, match='^the budget: -1 '):
        assign_bits(rows, {key: -1})


def test_two_budgets_that_only_together_cannot_be_met_are_refused():
    rows = [
        dict(layer='a', bits=2, change=1., bytes=1, bops=9),
        dict(layer='a', bits=4, change=0., bytes=9, bops=1),
    ]
    with pytest.raises(LCQError, match='no assignment was found'):
        assign_bits(rows, dict(bytes=5, bops=5))


COSTS = {2: dict(bytes=2e6, bops=4e6), 8: dict(bytes=8e6, bops=64e6)}


@pytest.mark.parametrize('budget, message', [
    (dict(bytes=1.5e6), 'is 1.5 MB, and the detector has 2 MB with 2 bits in '
     'all layers; allow more'),
    (dict(bytes=4e6, bops=3e6), 'is 3 MBOPs, and the detector has 4 MBOPs'),
    (dict(bytes=8e6), 'nothing is to be chosen within it; it is 8 MB, and the '
     'detector has 8 MB with 8 bits in all layers; allow less, or add'),
    (dict(bytes=9e6, bops=70e6), 'nothing is to be chosen .* 9 MB, .* 70 '
     'MBOPs'),
])
def test_budget_that_decides_nothing_is_told(budget, message):
    with pytest.raises(LCQError, match=f'^the budget: {message}'):
        check_budget(COSTS, budget)


@pytest.mark.parametrize('budget', [
    dict(bytes=2e6), dict(bytes=7e6), dict(bytes=9e6, bops=63e6)])
def test_budget_that_leaves_a_choice_is_taken(budget):
    check_budget(COSTS, budget)


def test_one_width_is_no_choice_and_needs_none():
    check_budget({4: COSTS[2]}, dict(bytes=9e6))
