"""Which layer gets how many bits, within a budget."""
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from lcq_mmdet.errors import LCQError

_UNITS = dict(bytes='MB', bops='MBOPs')


def both_bits(bits: int) -> Dict[str, int]:
    """Return settings that win over all others of a pattern."""
    return dict(weight_bits=bits, act_bits=bits)


def monotone_changes(rows: Sequence[Mapping[str, Any]]) -> List[float]:
    """Make what a layer loses fall with its bits, where noise makes it rise.

    Args:
        rows: One a layer and bit-width, with ``layer``, ``bits`` and
            ``change``, what is lost by it; in any order.

    Returns:
        For each row the most that its layer loses at these or more bits, and
        0 where that is a gain.
    """
    return [
        max(0., *(other['change'] for other in rows
                  if other['layer'] == row['layer']
                  and other['bits'] >= row['bits'])) for row in rows
    ]


def check_budget(costs: Mapping[int, Mapping[str, float]],
                 budget: Mapping[str, float]) -> None:
    """Check that a budget leaves something to choose.

    Args:
        costs: What the detector costs with so many bits in all layers, by
            bits and by name.
        budget: The most that it may cost, by name, such as ``bytes``.

    Raises:
        LCQError: If the lowest bits cost more, or the highest no more.
    """
    def tell(bits: int, key: str) -> str:
        unit = _UNITS[key]
        return (f'{budget[key] / 1e6:g} {unit}, and the detector has '
                f'{costs[bits][key] / 1e6:g} {unit} with {bits} bits in all '
                'layers')

    lowest, highest = min(costs), max(costs)
    for key, most in budget.items():
        if most < costs[lowest][key]:
            raise LCQError(f'the budget: is {tell(lowest, key)}; allow more')
    if lowest < highest and all(
            most >= costs[highest][key] for key, most in budget.items()):
        raise LCQError(
            'the budget: nothing is to be chosen within it; it is ' +
            ', '.join(tell(highest, key) for key in budget) +
            '; allow less, or add higher --bits')


def assign_bits(rows: Sequence[Mapping[str, Any]],
                budget: Mapping[str, float]) -> Dict[str, int]:
    """Choose the bits of each layer that lose the least within a budget.

    What layers lose is taken to add up, which makes it an integer linear
    program; it is solved to the optimum.

    Args:
        rows: As in :func:`monotone_changes`, with the costs that the budget
            names, none of them negative.
        budget: The most that all layers may cost together, by name, such as
            ``bytes`` and ``bops``.

    Returns:
        Bits by layer, in the order in which ``rows`` first name them.

    Raises:
        LCQError: If not even the cheapest bits of all layers fit.
    """
    layers = list(dict.fromkeys(row['layer'] for row in rows))
    for key, most in budget.items():
        least = sum(
            min(row[key] for row in rows if row['layer'] == layer)
            for layer in layers)
        if least > most:
            raise LCQError(
                f'the budget: {most:g} {key} are left for the quantized '
                f'layers, which take {least:g} at their lowest bits; allow '
                'more')
    # One row a layer; all costs in units of the budget, for the solver.
    chosen = np.array([[row['layer'] == layer for row in rows]
                       for layer in layers], float)
    constraints = [LinearConstraint(chosen, 1, 1)]
    constraints += [
        LinearConstraint([[row[key] / max(most, 1) for row in rows]], 0,
                         most / max(most, 1)) for key, most in budget.items()
    ]
    changes = np.array(monotone_changes(rows))
    # Of equals, the one with more bits.
    changes /= changes.max() or 1
    changes -= 1e-6 * np.array([row['bits'] for row in rows])
    result = milp(
        changes,
        constraints=constraints,
        integrality=np.ones(len(rows)),
        bounds=Bounds(0, 1),
        options=dict(mip_rel_gap=0))
    if not result.success:
        raise LCQError(f'the budget: no assignment was found within it: '
                       f'{result.message}')
    bits = {
        row['layer']: row['bits']
        for row, share in zip(rows, result.x) if share > 0.5
    }
    return {layer: bits[layer] for layer in layers}
