"""Checks of annotations in Pascal VOC's format, by a sample of them."""
import os.path as osp
from xml.etree import ElementTree

from .classes import show
from .configs import Source
from .images import sample
from .problems import Problems


def check_xml(source: Source, problems: Problems) -> None:
    """Check the files of a data set and the names in them.

    Args:
        source: A data set of mmdet's ``XMLDataset``.
        problems: Gets what is wrong.
    """
    path = source.ann_file
    if not path:
        return
    with open(path, encoding='utf-8') as file:
        names = [line.rstrip('\n\r') for line in file]
    if not names:
        problems.mistake(f'{path}: is empty; it has a name of an image a line')
        return
    root = source.config.get('data_root') or ''
    prefix = (source.config.get('data_prefix') or {}).get('sub_data_root', '')
    folder = osp.join(root, prefix)
    classes, found = set(source.classes), set()
    for name in sample(names):
        xml = osp.join(folder, source.config.get('ann_subdir', 'Annotations'),
                       f'{name}.xml')
        image = osp.join(folder, source.config.get('img_subdir', 'JPEGImages'),
                         f'{name}.jpg')
        for needed in (xml, image):
            if not osp.isfile(needed):
                problems.mistake(
                    f'{path}: {name!r}: {needed!r} does not exist; set '
                    f'{source.key}.data_prefix.sub_data_root, or take the '
                    'line out')
                return
        try:
            tree = ElementTree.parse(xml)
        except ElementTree.ParseError as error:
            problems.mistake(f'{xml}: is not XML that can be read: {error}; '
                             'write it again')
            return
        found |= {node.text for node in tree.iterfind('object/name')}
    if found and not found & classes:
        problems.mistake(
            f'{source.key}.metainfo.classes={show(source.classes)}: none of '
            f'them is in {path}; there are {show(sorted(map(str, found)))}')
