"""What users' annotations get wrong is told before training."""
import copy
import json
import shutil

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from odd_data import CLASSES, edit, make_config, write_dataset
from PIL import Image

from lcq_mmdet import LCQError
from lcq_mmdet.cli import check_files

LOADERS = ('train_dataloader', 'val_dataloader')


@pytest.fixture
def data(tmp_path):
    """A sound data set; returns the path of its annotations."""
    return write_dataset(tmp_path / 'data')


def check(data, classes=CLASSES, loaders=LOADERS, **changes):
    check_files(
        make_config(data.parent, data.parent / 'run', classes, **changes),
        loaders)


def refusal(data, *args, **changes):
    with pytest.raises(LCQError) as info:
        check(data, *args, **changes)
    return str(info.value)


def annotation(data, index=0):
    return json.loads(data.read_text())['annotations'][index]


def test_sound_data_passes_silently(data, capsys):
    check(data, loaders=(*LOADERS, 'test_dataloader'))
    assert not capsys.readouterr().err


@pytest.mark.parametrize('text, message', [
    ('{"images": [', 'is not a JSON file that can be read'),
    ('[]', 'holds a list; COCO has an object with images'),
    ('{"images": [], "annotations": []}', 'categories=none: must be a list'),
    ('{"images": {}, "annotations": [], "categories": []}',
     'images=dict: must be a list'),
])
def test_file_of_another_format_is_named(data, text, message):
    data.write_text(text)
    assert refusal(data).startswith(f'{data}: {message}')


def set_first(where, **values):
    def change(content):
        content[where][0].update(values)
    return change


def drop(where, key):
    def change(content):
        for entry in content[where]:
            del entry[key]
    return change


def for_all_boxes(convert):
    def change(content):
        for entry in content['annotations']:
            entry['bbox'] = convert(*entry['bbox'])
    return change


MISTAKES = {
    'area': (drop('annotations', 'area'),
             'annotations.0.area is missing, in 8 of 8; mmdet stops there: it '
             'is width times height'),
    'height': (drop('images', 'height'), 'images.0.height is missing'),
    'bbox': (set_first('annotations', bbox=[1, 2, 3]),
             'annotations.0.bbox=[1, 2, 3]: must be four numbers'),
    'width': (set_first('images', width='64'),
              "images.0.width='64': must be a number"),
    'name': (set_first('categories', name=1),
             'categories.0.name=1: must be text'),
    'box_of_text': (set_first('annotations', bbox='1 2 3 4'),
                    "bbox='1 2 3 4': must be x, y, width and height"),
    'annotation_ids': (set_first('annotations', id=2),
                       'annotations: 1 ids repeat, the first is 2'),
    'image_ids': (set_first('images', id=2),
                  'images: 1 ids repeat, the first is 2'),
    'category_ids': (set_first('categories', id=2),
                     'categories: 1 ids repeat'),
    'category_names': (set_first('categories', name='nut'),
                       'categories: 1 (nut) names are there more than once'),
    'relative_boxes': (for_all_boxes(lambda *box: [n / 64 for n in box]),
                       'annotations.bbox: none of 8 boxes is larger than a '
                       'pixel'),
    'boxes_elsewhere': (for_all_boxes(lambda x, y, w, h: [x + 99, y, w, h]),
                        'annotations.bbox: none of 8 boxes has an area'),
    'no_images': (lambda content: content.update(images=[], annotations=[]),
                  'is left: images is empty'),
    'file_name': (set_first('images', file_name='none.jpg'),
                  "images.file_name='none.jpg'"),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistake_in_annotations_is_told_in_one_line(data, name):
    change, message = MISTAKES[name]
    edit(data, change)
    error = refusal(data)
    assert str(data) in error and message in error
    assert all(str(data) in line for line in error.split('\nerror: '))


WARNINGS = {
    'info': (lambda content: content.pop('info'), 'info is missing'),
    'iscrowd': (drop('annotations', 'iscrowd'),
                'iscrowd is missing in 8 of 8'),
    'id_0': (set_first('annotations', id=0), 'an id is 0'),
    'no_area': (set_first('annotations', bbox=[3, 4, 0, 9], area=0),
                '1 of 8 boxes, such as [3, 4, 0, 9] of id 1, have no area'),
    'outside': (set_first('annotations', bbox=[70, 4, 9, 9]),
                '1 of 8 boxes, such as [70, 4, 9, 9] of id 1, have no area or '
                'lie outside'),
    'corners': (for_all_boxes(lambda x, y, w, h: [x, y, x + w + 40, y + h]),
                'are they x1, y1, x2, y2?'),
    'no_image': (set_first('annotations', image_id=99),
                 '1 of 8 have a image_id that is not in the file, the first '
                 'is 99'),
    'no_category': (set_first('annotations', category_id='1'),
                    "the first is '1' (text in one place"),
    'other_size': (set_first('images', width=128),
                   '000.jpg is 64 x 64, and 128 x 64 in'),
}


@pytest.mark.parametrize('name', WARNINGS)
def test_what_mmdet_trains_with_is_a_warning(data, name, capsys):
    change, message = WARNINGS[name]
    edit(data, change)
    check(data)
    lines = capsys.readouterr().err.splitlines()
    # The same file is read for training and evaluation.
    assert len(lines) == 1 and lines[0].startswith('warning: ')
    assert message in lines[0] and str(data) in lines[0]


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


@pytest.mark.parametrize('changes, message', [
    ({'train_dataloader.dataset.filter_cfg.min_size': 65}, 'min_size=65, and '
     'the largest has a side of 64'),
    ({'train_dataloader.dataset.indices': 0}, 'indices: no image'),
])
def test_training_set_that_is_empty_once_filtered_is_told(
        data, changes, message):
    if 'indices' in message:
        changes['train_dataloader.dataset.test_mode'] = True
    assert message in refusal(data, **changes)


def test_images_without_boxes_are_left_out_or_trained_with(tmp_path):
    data = write_dataset(tmp_path / 'data', boxes=False)
    assert 'filter_empty_gt=True, and none has a box' in refusal(data)
    check(data, **{'train_dataloader.dataset.filter_cfg.filter_empty_gt':
                   False})


def test_masks_are_needed_by_what_loads_or_measures_them(data):
    edit(data, drop('annotations', 'segmentation'))
    error = refusal(data, **{
        'train_dataloader.dataset.pipeline.1.with_mask': True,
        'val_evaluator.metric': ['bbox', 'segm']
    })
    assert 'train_dataloader.dataset.pipeline has with_mask=True' in error
    assert "val_evaluator.metric=['bbox', 'segm']: segmentation is" in error


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


def test_a_file_is_read_once(data, monkeypatch):
    opened = []
    load = json.load
    monkeypatch.setattr('json.load',
                        lambda file: opened.append(file.name) or load(file))
    check(data, loaders=(*LOADERS, 'test_dataloader'))
    assert opened == [str(data)]


@pytest.mark.parametrize('changes', [
    {'check_data': False},
    {'train_dataloader.dataset.type': 'BaseDetDataset'},
    {'train_dataloader.dataset.backend_args': dict(backend='petrel')},
], ids=['told to', 'other type', 'not local'])
def test_what_cannot_be_checked_is_left_to_mmdet(data, changes):
    data.write_text('[]')
    check(data, loaders=['train_dataloader'], **changes)


def test_other_processes_leave_it_to_the_first(data, monkeypatch):
    data.write_text('[]')
    monkeypatch.setenv('RANK', '1')
    check(data, launcher='pytorch')
    with pytest.raises(LCQError):
        check(data, launcher='none')


def test_test_set_without_annotations_is_for_writing_results(data):
    edit(data, lambda content: content.pop('annotations'))
    loaders = ['test_dataloader']
    assert 'annotations=none' in refusal(data, loaders=loaders)
    check(data, loaders=loaders, **{
        'test_evaluator.format_only': True,
        'test_evaluator.outfile_prefix': 'results'
    })


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
