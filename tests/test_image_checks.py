"""Images, wrapped data sets and Pascal VOC before training."""
import copy
import shutil

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from odd_data import (CLASSES, check, drop, edit, make_config, refusal,
                      set_first, write_dataset)
from PIL import Image

from lcq_mmdet import LCQError
from lcq_mmdet.cli import check_files


@pytest.mark.parametrize('file_name, remedy', [
    ('images/000.jpg', 'file_name has a folder that train_dataloader.dataset.'
     'data_prefix.img has already'),
    ('a\\000.jpg', 'write / in place of \\ in file_name'),
    ('000.JPG', "there is '000.jpg': write that"),
    ('zzz.jpg', 'set train_dataloader.dataset.data_prefix.img to the folder'),
])
def test_missing_image_comes_with_a_remedy(data, file_name, remedy):
    if '\\' in file_name:
        (data.parent / 'images/a').mkdir()
        shutil.copy(data.parent / 'images/000.jpg',
                    data.parent / 'images/a/000.jpg')
    edit(data, set_first('images', file_name=file_name))
    assert remedy in refusal(data)


@pytest.mark.parametrize('content', [b'', b'<html>'])
def test_file_that_is_no_image_is_told(data, content):
    (data.parent / 'images/003.jpg').write_bytes(content)
    assert '003.jpg: is not an image that can be read' in refusal(data)


def test_turned_images_are_told(data, capsys):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(
        data.parent / 'images/000.jpg', exif=exif)
    check(data)
    assert ('000.jpg is 64 x 96 once turned as its EXIF data say, and 64 x 64 '
            'in') in capsys.readouterr().err


def test_large_sets_are_sampled(tmp_path, monkeypatch):
    data = write_dataset(tmp_path / 'data', num_images=1)

    def grow(content):
        content['images'] = [
            dict(content['images'][0], id=i) for i in range(1, 5001)
        ]

    edit(data, grow)
    tried = []
    monkeypatch.setattr('lcq_mmdet.cli.checks.images._size',
                        lambda path: tried.append(path) or ((64, 64), False))
    monkeypatch.setattr('lcq_mmdet.cli.checks.images.osp.isfile',
                        lambda path: True)
    check(data, loaders=['train_dataloader'],
          **{'train_dataloader.dataset.filter_cfg.filter_empty_gt': False})
    assert len(tried) == 200


def wrapped(dataset, *types):
    for name in types:
        if name == 'ConcatDataset':
            dataset = dict(type=name, datasets=[copy.deepcopy(dataset)] * 2)
        else:
            dataset = dict(type=name, dataset=dataset)
    return dataset


@pytest.mark.parametrize('types', [
    ['ConcatDataset'], ['RepeatDataset', 'ConcatDataset'],
    ['ClassBalancedDataset'], ['MultiImageMixDataset', 'RepeatDataset']
], ids='+'.join)
def test_data_sets_inside_wrappers_are_checked(data, types):
    edit(data, drop('annotations', 'area'))
    cfg = make_config(data.parent, data.parent / 'run')
    cfg.train_dataloader.dataset = wrapped(cfg.train_dataloader.dataset,
                                           *types)
    with pytest.raises(LCQError, match='annotations.0.area is missing'):
        check_files(cfg, ['train_dataloader'])


def write_voc(root, name='bolt'):
    for folder in ('Annotations', 'JPEGImages'):
        (root / folder).mkdir(parents=True)
    cv2.imwrite(str(root / 'JPEGImages/a.jpg'), np.zeros((64, 64, 3)))
    (root / 'Annotations/a.xml').write_text(
        f'<annotation><object><name>{name}</name></object></annotation>')
    (root / 'train.txt').write_text('a\n')


def voc_config(root):
    dataset = dict(
        type='VOCDataset', data_root=str(root), ann_file='train.txt',
        data_prefix=dict(sub_data_root=''), metainfo=dict(classes=CLASSES))
    return Config(dict(model=dict(bbox_head=dict(num_classes=2)),
                       train_dataloader=dict(dataset=dataset)))


@pytest.mark.parametrize('break_, message', [
    (lambda root: None, None),
    (lambda root: (root / 'train.txt').write_text(''), 'is empty'),
    (lambda root: (root / 'train.txt').write_text('a\nb\n'),
     "Annotations/b.xml' does not exist"),
    (lambda root: (root / 'JPEGImages/a.jpg').unlink(),
     "JPEGImages/a.jpg' does not exist"),
    (lambda root: (root / 'Annotations/a.xml').write_text('<a>'),
     'a.xml: is not XML'),
    (lambda root: (root / 'Annotations/a.xml').write_text(
        '<a><object><name>Bolt</name></object></a>'),
     "none of them is in"),
])
def test_voc_is_checked_by_a_sample(tmp_path, break_, message):
    root = tmp_path / 'voc'
    write_voc(root)
    break_(root)
    if message is None:
        return check_files(voc_config(root), ['train_dataloader'])
    with pytest.raises(LCQError) as info:
        check_files(voc_config(root), ['train_dataloader'])
    assert message in str(info.value)
