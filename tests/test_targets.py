"""The targets of a GPU, on records made up."""
import json

import pytest

from lcq_mmdet.benchmark import targets
from lcq_mmdet.benchmark.kernels import contestants
from lcq_mmdet.quantization.config import QuantizerConfig
from lcq_mmdet.quantization.quantizer import LCQQuantizer


def kernel_rows(forward, backward, both):
    return [
        dict(case='input, 9 values', name=targets.NATIVE,
             seconds=dict(both=1.)),
        dict(case='input, 9 values', name='LCQ', seconds=dict(both=both),
             copy_share=dict(forward=forward, backward=backward))
    ]


def step_rows(seconds, memory):
    return [
        dict(case='tiny', name='float', seconds=dict(step=1.), peak_memory=1),
        dict(case='tiny', name='lcq', seconds=dict(step=seconds),
             peak_memory=memory),
        dict(case='tiny, calibration', name='ten', seconds=dict(step=9.))
    ]


@pytest.mark.parametrize('rows, reached', [
    (kernel_rows(0.85, 0.70, 0.2), [True, True, True]),
    (kernel_rows(0.84, 0.69, 0.21), [False, False, False]),
    (step_rows(1.15, 1.0), [True, True]),
    (step_rows(1.0, 1.16), [True, False]),
])
def test_record_is_held_against_the_targets(rows, reached, tmp_path,
                                            monkeypatch, capsys):
    assert [last for *_, last in targets.check_targets(rows)] == reached
    record = dict(hardware=dict(gpus='none'), rows=rows)
    (tmp_path / 'record.json').write_text(json.dumps(record))
    monkeypatch.setattr('sys.argv', ['', str(tmp_path / 'record.json')])
    targets.main()
    assert capsys.readouterr().out.count('MISSED') == reached.count(False)


def test_names_are_those_of_the_benchmark(tmp_path):
    quantizer = LCQQuantizer(QuantizerConfig(), is_weight=True)
    assert {'LCQ', targets.NATIVE} < contestants(
        quantizer, quantizer.theta.new_ones(3)).keys()
