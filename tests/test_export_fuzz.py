"""Packed files that were changed at random: refused, or the same model."""
import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lcq_mmdet import LCQError, convert_
from lcq_mmdet.export import export_packed, load_packed
from lcq_mmdet.export.packed import checksum_of_text

NUM_FILES = 10000


@pytest.fixture(scope='module')
def tiny_file(tmp_path_factory):
    """A packed file of two layers, one normalized channel by channel."""
    model = nn.ModuleDict(
        dict(a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 5, 1), c=nn.Linear(5, 2)))
    convert_(model, modules=['a', 'b'], bits=3,
             overrides={'b': dict(weight_norm='channel')})
    for name in 'ab':
        model[name].act_quantizer.initialize_(torch.randn(99), signed=True)
        model[name].weight_quantizer.initialize_(model[name].weight, True)
    path = str(tmp_path_factory.mktemp('fuzz') / 'tiny.safetensors')
    export_packed(model, path, dict(model=dict(type='A', bits=[1, 2.5])),
                  dict(dataset_meta=dict(classes=('a', 'b'))))
    return path


def mutate(data, rng):
    """Change a file's bytes as disks, networks and editors do."""
    data = bytearray(data)
    header = 8 + struct.unpack('<Q', data[:8])[0]
    for _ in range(rng.choice([1, 1, 1, 2])):
        # Half of the changes are to the header.
        end = min(header if rng.integers(2) else len(data), len(data))
        place = int(rng.integers(max(1, end)))
        length = int(rng.integers(1, 40))
        part = slice(place, place + length)
        kind = rng.integers(14)
        if kind < 8:
            # Letters for letters and digits for digits, to get past parsers.
            old = data[part.start:part.start + 1]
            data[place:place + 1] = (
                bytes([rng.integers(48, 58)]) if old.isdigit() else
                bytes([rng.integers(97, 123)]) if old.isalpha() else
                rng.bytes(1))
        elif kind == 8 and data:
            data[place % len(data)] ^= 1 << int(rng.integers(8))
        elif kind == 9:
            del data[part if rng.integers(2) else slice(place, None)]
        elif kind == 10:
            data[place:place] = rng.bytes(length)
        elif kind == 11:
            other = int(rng.integers(len(data) + 1))
            data[part] = data[other:other + length]
        elif kind == 12:
            data[part] = bytes(len(data[part]))
        else:
            data[:8] = struct.pack(
                '<Q', int(rng.integers(2**int(rng.integers(1, 63)))))
    return bytes(data)


def rewrite(file, data):
    file.seek(0)
    file.write(data)
    file.truncate()


def same(one, other):
    if one['meta'] != other['meta']:
        return False
    one, other = one['state_dict'], other['state_dict']
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(
            one[key], other[key]) for key in one)


def test_no_changed_file_gives_another_model(tiny_file):
    data = Path(tiny_file).read_bytes()
    expected = load_packed(tiny_file)
    path = str(Path(tiny_file).with_name('changed.safetensors'))
    rng = np.random.default_rng(0)
    seen = Counter()
    # Opening a file for writing anew is slow on some file systems.
    with open(path, 'wb', buffering=0) as file:
        for _ in range(NUM_FILES):
            changed = mutate(data, rng)
            rewrite(file, changed)
            try:
                found = load_packed(path)
            except LCQError as error:
                assert str(error).startswith(f'{path}: ')
                seen['altered' if 'altered' in str(error) else 'broken'] += 1
            else:
                assert same(found, expected)
                seen['same'] += 1
    assert min(seen['altered'], seen['broken']) > NUM_FILES / 5
    assert seen['same'] < NUM_FILES / 20


def test_every_byte_of_the_tensors_is_guarded(tiny_file):
    data = bytearray(Path(tiny_file).read_bytes())
    header = 8 + struct.unpack('<Q', data[:8])[0]
    path = str(Path(tiny_file).with_name('changed.safetensors'))
    with open(path, 'wb', buffering=0) as file:
        for place in range(header, len(data)):
            data[place] ^= 1 << place % 8
            rewrite(file, data)
            with pytest.raises(LCQError, match='altered: . does not fit its'):
                load_packed(path)
            data[place] ^= 1 << place % 8


VALUES = [
    None, True, -1, 0, 9, 2**40, 10**400, 1.5, float('nan'), '', 'x', 'offset',
    [], [[]], [0], [-1, 4], {}, {'a': 1}, '[' * 5000, '__import__("os")',
    "{'a': 1}", '1', '{1: 2}'
]


def paths_of(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from paths_of(value[key], (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize('new', VALUES, ids=lambda value: f'{value!r:.12}')
def test_wrong_header_with_a_right_checksum_is_no_crash(tiny_file, new):
    with safe_open(tiny_file, 'pt') as file:
        metadata = dict(file.metadata())
    tensors = load_file(tiny_file)
    path = str(Path(tiny_file).with_name('signed.safetensors'))
    manifest = json.loads(metadata['manifest'])
    changes = [
        dict(manifest=json.dumps(replaced(manifest, p, new)))
        for p in paths_of(manifest)
    ]
    if isinstance(new, str):
        changes += [{key: new} for key in metadata if key != 'checksum']
    for change in changes:
        changed = dict(metadata, **change)
        del changed['checksum']
        changed['checksum'] = checksum_of_text(changed)
        save_file(tensors, path, changed)
        try:
            load_packed(path)
        except LCQError as error:
            assert '\n' not in str(error)
