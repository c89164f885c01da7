"""Classes, evaluators and the model against annotations."""
import shutil

import pytest
from odd_data import LOADERS, check, edit, make_config, refusal

from lcq_mmdet import LCQError
from lcq_mmdet.cli import check_files


@pytest.mark.parametrize('classes, message', [
    (('Bolt', 'nut'), "'Bolt' is written 'bolt' in "),
    (('bolt ', 'nut'), "'bolt ' is written 'bolt' in "),
    (('boltnut', ), "'boltnut' is 'bolt' and 'nut', a comma is missing"),
    (('bolts', 'nut'), "'bolts' may be what is 'bolt' in "),
    (('cat', 'dog'), "none of them is a category of "),
    (('bolt', 'nut', 'nut'), "classes: 'nut' is there twice"),
    (('bolt', 'nut', 'cat'), "has no category 'cat' of metainfo.classes"),
])
def test_classes_that_the_file_has_not_are_told(data, classes, message):
    error = refusal(data, classes)
    assert message in error
    assert 'metainfo.classes' in error


def test_forgotten_metainfo_is_told_with_the_names_to_write(data):
    cfg = make_config(data.parent, data.parent / 'run')
    for split in ('train', 'val'):
        del cfg[f'{split}_dataloader'].dataset.metainfo
    with pytest.raises(LCQError) as info:
        check_files(cfg, LOADERS)
    assert "metainfo=dict(classes=('bolt', 'nut',))" in str(info.value)


@pytest.mark.parametrize('metainfo, message', [
    (dict(classes='bolt'), "is one string; a single class is written"),
    (dict(CLASSES=('bolt', 'nut')),
     "CLASSES: is not read by mmdet 3; write classes=('bolt', 'nut',)"),
])
def test_classes_in_another_form_are_told(data, metainfo, message):
    cfg = make_config(data.parent, data.parent / 'run')
    del cfg.train_dataloader.dataset.metainfo
    cfg.train_dataloader.dataset.metainfo = metainfo
    with pytest.raises(LCQError, match='train_dataloader.*metainfo') as info:
        check_files(cfg, LOADERS)
    assert message in str(info.value)


@pytest.mark.parametrize('changes, keys', [
    ({'model.bbox_head.num_classes': 80}, ['model.bbox_head.num_classes=80']),
    ({'model.roi_head': dict(bbox_head=[dict(num_classes=80),
                                        dict(num_classes=2)])},
     ['model.roi_head.bbox_head.0.num_classes=80']),
    ({'model.rpn_head': dict(num_classes=1)}, []),
])
def test_numbers_of_classes_in_the_model_are_compared(data, changes, keys):
    if not keys:
        return check(data, **changes)
    error = refusal(data, **changes)
    assert len(error.split('\nerror: ')) == len(keys)
    assert all(f'{key}: train_dataloader.dataset.metainfo.classes has 2'
               in error for key in keys)


def reverse_categories(content):
    content['categories'].reverse()


def test_other_order_of_categories_is_a_warning(data, capsys):
    edit(data, reverse_categories)
    check(data)
    assert ("label 0 is 'bolt' there and 'nut' in the order of categories"
            in capsys.readouterr().err)


def test_labels_that_differ_between_files_are_told(data, tmp_path):
    other = tmp_path / 'data/val.json'
    shutil.copy(data, other)
    edit(other, reverse_categories)
    error = refusal(data, **{
        'val_dataloader.dataset.ann_file': 'val.json',
        'val_evaluator.ann_file': str(other)
    })
    assert (f"{other}: categories makes label 0 'nut', and {data} makes it "
            "'bolt'") in error


def keep_half(content):
    del content['images'][4:], content['annotations'][4:]


def test_evaluator_of_other_images_is_told(data, tmp_path, capsys):
    other = tmp_path / 'other.json'
    shutil.copy(data, other)
    edit(other, keep_half)
    error = refusal(data, **{'val_evaluator.ann_file': str(other)})
    assert f"val_evaluator.ann_file='{other}': has not all images" in error
    check(data, **{'val_dataloader.dataset.ann_file': str(other)})
    assert 'has 8 images and the data loader takes 4' in capsys.readouterr(
    ).err


def test_missing_file_of_the_evaluator_is_told(data):
    error = refusal(data, **{'val_evaluator.ann_file': 'annotations.json'})
    assert "val_evaluator.ann_file='annotations.json': does not exist" in error
    assert f'{str(data)!r}; data_root is not added' in error


def test_evaluator_without_a_file_needs_instances(data):
    changes = {'val_evaluator.ann_file': None}
    assert "packs no 'instances'" in refusal(data, **changes)
