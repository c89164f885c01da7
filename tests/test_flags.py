"""Combinations of flags that would be ignored, and values out of range."""
import pytest

import lcq_cli


@pytest.mark.parametrize('name, flags, message', [
    ('sweep', 'a.py --no-train --seeds 0 1', '--seeds: is for rows that are '
     'trained; leave it or --no-train out'),
    ('sweep', 'a.py --no-train --float-control', '--float-control: is for'),
    ('sweep', 'a.py --no-train --progressive', '--progressive: is for rows'),
    ('export', 'a.py a.pth --out a.onnx --engine openvino',
     '--engine=openvino: is for --int8 exact'),
    ('export', 'a.py a.pth --out a.onnx --int8 relaxed --engine onnxruntime',
     '--engine=onnxruntime: is for --int8 exact'),
    ('benchmark', 'inference --run a runs --modules backbone',
     "--modules=['backbone']: is for the configs"),
    ('benchmark', 'kernels --size 0', '--size=0: must be positive'),
    ('benchmark', 'train a.py --size 64 -5', '--size=-5: must be positive'),
    ('benchmark', 'train a.py --rounds 0', '--rounds=0: must be positive'),
    ('benchmark', 'train a.py --batch-size 0', '--batch-size=0: must be'),
])
def test_mistake_is_told(name, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file in ('a.py', 'a.pth'):
        (tmp_path / file).write_text('#')
    (tmp_path / 'runs').mkdir()
    with pytest.raises(SystemExit):
        lcq_cli.parse(name, flags.split())
    assert message in capsys.readouterr().err
