"""What is wrong with users' annotations is told before training."""
import json

import pytest
from odd_data import (LOADERS, check, drop, edit, refusal, set_first,
                      write_dataset)

from lcq_mmdet import LCQError


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
