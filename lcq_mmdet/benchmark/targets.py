"""What a GPU's records are held against: ``... targets train.json ...``."""
import json
import sys
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

NATIVE = "torch's learnable fake quantizer"
#: Least share of a copy's bandwidth on inputs, by direction.
COPY_SHARES = dict(forward=0.85, backward=0.70)
#: Least times that the native quantizer takes.
NATIVE_RATIO = 5.
#: Most of a step's time and peak memory, in those of the float detector.
STEP_RATIO = 1.15

Found = Tuple[str, float, bool]


def check_targets(rows: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
    """Compare what was measured with the targets.

    Args:
        rows: Rows of ``lcq benchmark kernels`` or ``train``.

    Yields:
        What it is with its target, its value, and whether it is reached.
    """
    cases: Dict[str, List[Mapping[str, Any]]] = {}
    for row in rows:
        cases.setdefault(row['case'], []).append(row)
    for case, group in cases.items():
        named = {row['name']: row for row in group}
        if 'LCQ' in named and NATIVE in named:
            yield from _kernel(case, named['LCQ'], named[NATIVE])
        elif 'lcq' in named and 'float' in named:
            ours, base = named['lcq'], named['float']
            ratios = dict(
                step=ours['seconds']['step'] / base['seconds']['step'],
                memory=ours['peak_memory'] / base['peak_memory'])
            for what, value in ratios.items():
                yield (f'{case}: {what}, at most {STEP_RATIO} of float', value,
                       value <= STEP_RATIO)


def _kernel(case: str, ours: Mapping[str, Any],
            native: Mapping[str, Any]) -> Iterator[Found]:
    for direction, least in COPY_SHARES.items():
        # A weight fits into the cache, where what counts are the launches.
        if case.startswith('input'):
            share = ours['copy_share'][direction]
            yield (f'{case}: {direction}, at least {least} of a copy', share,
                   share >= least)
    ratio = native['seconds']['both'] / ours['seconds']['both']
    yield (f'{case}: at least {NATIVE_RATIO:g} times as fast as native', ratio,
           ratio >= NATIVE_RATIO)


def main() -> None:
    for path in sys.argv[1:]:
        with open(path, encoding='utf-8') as file:
            record = json.load(file)
        print(f'{path}, GPUs: {record["hardware"]["gpus"]}')
        for what, value, reached in check_targets(record['rows']):
            print(f'  {"reached" if reached else "MISSED"} {what}: '
                  f'{value:.3f}')


if __name__ == '__main__':
    main()
