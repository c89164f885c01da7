"""Which layers of heads are taken for the last ones."""
import re

import pytest
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import MODELS

from lcq_mmdet.conversion.predictors import is_last_layer
from lcq_mmdet.conversion.selection import weighted_layers

LAST = {
    'retinanet/retinanet_r18_fpn_1x_coco.py': {
        'bbox_head.retina_cls', 'bbox_head.retina_reg'
    },
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': {
        'bbox_head.conv_cls', 'bbox_head.conv_reg', 'bbox_head.conv_centerness'
    },
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': {
        'rpn_head.rpn_cls', 'rpn_head.rpn_reg', 'roi_head.bbox_head.fc_cls',
        'roi_head.bbox_head.fc_reg', 'roi_head.mask_head.conv_logits'
    },
    'ssd/ssd300_coco.py': {
        'bbox_head.cls_convs.*.*', 'bbox_head.reg_convs.*.*'
    },
    'yolox/yolox_tiny_8xb8-300e_coco.py': {
        'bbox_head.multi_level_conv_cls.*', 'bbox_head.multi_level_conv_reg.*',
        'bbox_head.multi_level_conv_obj.*'
    },
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py': {
        'bbox_head.convs_pred.*'
    },
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': {
        'bbox_head.rtm_cls.*', 'bbox_head.rtm_reg.*'
    },
    'centernet/centernet_r18_8xb16-crop512-140e_coco.py': {
        'bbox_head.heatmap_head.2', 'bbox_head.wh_head.2',
        'bbox_head.offset_head.2'
    },
    'detr/detr_r50_8xb2-150e_coco.py': {
        'bbox_head.fc_cls', 'bbox_head.fc_reg'
    },
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': {
        'bbox_head.cls_branches.*', 'bbox_head.reg_branches.*.4',
        '*.sampling_offsets'
    },
    'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py': {
        'rpn_head.rpn_cls', 'rpn_head.rpn_reg', 'roi_head.bbox_head.fc_cls',
        'roi_head.bbox_head.fc_reg', '*.conv_offset'
    },
}


@pytest.mark.parametrize('path', LAST, ids=lambda path: path.split('/')[0])
def test_last_layers_of_a_detector(path, tmp_path):
    register_all_modules()
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = 'mmdet::{path}'")
    model = MODELS.build(Config.fromfile(leaf).model)
    last = [n for n, _ in weighted_layers(model) if is_last_layer(model, n)]
    patterns = {
        re.escape(pattern).replace(r'\.\*', r'\.\d+').replace(r'\*', '.*')
        for pattern in LAST[path]
    }
    for name in last:
        assert any(re.fullmatch(p, name) for p in patterns), name
    for pattern in patterns:
        assert any(re.fullmatch(pattern, name) for name in last), pattern
