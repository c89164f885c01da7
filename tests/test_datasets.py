"""The generated data set: files, annotations and the tool that writes it."""
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lcq_mmdet.datasets import ToyCocoDataset, generate_toy_coco
from lcq_mmdet.datasets.scene import draw_scene

TOOL = Path(__file__).parents[1] / 'tools' / 'make_toy_coco.py'


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*') if path.is_file()
    }


def instances_of(folder: Path, split: str = 'train2017') -> dict:
    return json.loads(
        (folder / 'annotations' / f'instances_{split}.json').read_text())


@pytest.fixture(scope='module')
def small_set(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('toy') / 'set'
    assert generate_toy_coco(folder, 30, size=64, seed=3)
    return folder


@pytest.fixture(scope='module')
def sample() -> list[dict]:
    """The annotations of 200 images of the default size."""
    return [
        annotation for seed in range(200)
        for annotation in draw_scene(np.random.default_rng(seed), 128)[1]
    ]


def test_layout_is_that_of_coco(small_set):
    names = sorted(files_of(small_set))
    assert len(names) == 2 + 30 + 6
    assert names[:3] == [
        'annotations/instances_train2017.json',
        'annotations/instances_val2017.json', 'train2017/000000000001.jpg'
    ]
    assert names[-1] == 'val2017/000000000006.jpg'


def test_description_says_that_this_is_not_coco(small_set):
    assert 'not COCO' in instances_of(small_set)['info']['description']


def test_same_seed_gives_the_same_files(small_set, tmp_path):
    generate_toy_coco(tmp_path / 'again', 30, size=64, seed=3)
    assert files_of(tmp_path / 'again') == files_of(small_set)


def test_longer_set_starts_with_the_shorter_one(small_set, tmp_path):
    generate_toy_coco(tmp_path / 'short', 10, size=64, seed=3)
    short, long = files_of(tmp_path / 'short'), files_of(small_set)
    images = [name for name in short if name.endswith('.jpg')]
    assert len(images) == 12
    assert all(short[name] == long[name] for name in images)
    few = instances_of(tmp_path / 'short')['annotations']
    assert instances_of(small_set)['annotations'][:len(few)] == few


def test_other_seed_gives_other_images(small_set, tmp_path):
    generate_toy_coco(tmp_path / 'other', 1, size=64, seed=4)
    name = 'train2017/000000000001.jpg'
    assert files_of(tmp_path / 'other')[name] != files_of(small_set)[name]


def test_splits_share_no_image(small_set):
    images = [
        content for name, content in files_of(small_set).items()
        if name.endswith('.jpg')
    ]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize('with_crowds', [False, True])
def test_ground_truth_as_detections_has_ap_one(small_set, with_crowds):
    truth = COCO(small_set / 'annotations' / 'instances_train2017.json')
    shown = [
        annotation for annotation in truth.anns.values()
        if with_crowds or not annotation['iscrowd']
    ]
    assert any(annotation['iscrowd'] for annotation in shown) == with_crowds
    detections = truth.loadRes([
        dict(
            image_id=annotation['image_id'],
            category_id=annotation['category_id'],
            bbox=annotation['bbox'],
            score=1.0) for annotation in shown
    ])
    evaluation = COCOeval(truth, detections, 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_boxes_are_the_extent_of_masks_inside_the_image(sample):
    for annotation in sample:
        mask = coco_mask.decode(annotation['segmentation'])
        assert mask.shape == (128, 128)
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        assert annotation['bbox'] == [
            columns[0], rows[0], columns[-1] - columns[0] + 1,
            rows[-1] - rows[0] + 1
        ]
        assert annotation['area'] == mask.sum() > 0


def test_at_least_ten_categories_occur(sample):
    assert len({annotation['category_id'] for annotation in sample}) >= 10


def test_object_scales_span_a_tenfold_range(sample):
    sides = [
        max(annotation['bbox'][2:]) for annotation in sample
        if not annotation['iscrowd']
    ]
    assert max(sides) >= 10 * min(sides)
    low, high = np.percentile(sides, [5, 95])
    assert high >= 6 * low


def test_masks_of_one_image_do_not_overlap():
    image, annotations = draw_scene(np.random.default_rng(5), 128)
    masks = [coco_mask.decode(each['segmentation']) for each in annotations]
    assert len(masks) > 1
    assert np.sum(masks, axis=0).max() == 1


def test_crowds_are_annotated_once_and_are_a_minority(sample):
    crowds = [each for each in sample if each['iscrowd']]
    assert 0 < len(crowds) < len(sample) / 10


def test_mean_colour_does_not_tell_the_category():
    inside: dict[int, list] = {}
    for seed in range(200):
        image, annotations = draw_scene(np.random.default_rng(seed), 64)
        for each in annotations:
            mask = coco_mask.decode(each['segmentation']).astype(bool)
            inside.setdefault(each['category_id'],
                              []).append(image[mask].mean(0))
    means = np.array([np.mean(colours, 0) for colours in inside.values()])
    spread = np.concatenate(list(inside.values())).std(0)
    assert (means.std(0) < 0.3 * spread).all()


def test_mmdet_reads_the_set(small_set):
    dataset = ToyCocoDataset(
        data_root=str(small_set),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        pipeline=[])
    assert len(dataset) == 6
    num_classes = len(dataset.metainfo['classes'])
    assert num_classes >= 10
    assert len(set(dataset.metainfo['palette'])) == num_classes
    labels = {
        instance['bbox_label']
        for index in range(6)
        for instance in dataset.get_data_info(index)['instances']
    }
    assert labels <= set(range(num_classes))


def test_interruption_leaves_nothing(tmp_path):

    def interrupted(indices):
        yield from indices[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_toy_coco(tmp_path / 'set', 5, 64, progress=interrupted)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_run_do_no_harm(tmp_path):
    (tmp_path / '.set.partial' / 'train2017').mkdir(parents=True)
    assert generate_toy_coco(tmp_path / 'set', 2, 64)
    assert [path.name for path in tmp_path.iterdir()] == ['set']


def test_repeat_writes_nothing(tmp_path):
    generate_toy_coco(tmp_path / 'set', 2, 64)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    assert not generate_toy_coco(tmp_path / 'set', 2, 64)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    assert after == before


def test_set_with_a_lost_image_is_not_taken_for_complete(tmp_path):
    generate_toy_coco(tmp_path / 'set', 2, 64)
    (tmp_path / 'set/train2017/000000000002.jpg').unlink()
    with pytest.raises(FileExistsError, match='other contents'):
        generate_toy_coco(tmp_path / 'set', 2, 64)


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / 'set').mkdir()
    assert generate_toy_coco(tmp_path / 'set', 1, 64)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [(dict(num_images=0), 'num_images is 0, must be at least 1'),
     (dict(num_images=1, size=63), 'size is 63, must be at least 64'),
     (dict(num_images=1, seed=-1), 'seed is -1, must be at least 0')],
    ids=['images', 'size', 'seed'])
def test_value_too_small_is_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_toy_coco(tmp_path / 'set', **arguments)
    assert not (tmp_path / 'set').exists()


def run_tool(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name='__main__')


def test_tool_reports_a_mistake_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / 'mine.txt').write_text('keep me')
    with pytest.raises(SystemExit) as caught:
        run_tool(monkeypatch, tmp_path, '--images', 1)
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f'error: {tmp_path} exists with other contents')
    assert told.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_tool_says_that_a_repeat_has_nothing_to_do(tmp_path, monkeypatch,
                                                   capsys):
    for expected in ('set: written', 'set: already there'):
        run_tool(monkeypatch, tmp_path / 'set', '--images', 1, '--size', 64)
        assert expected in capsys.readouterr().out
