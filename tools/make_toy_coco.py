"""Generate a small detection data set in COCO's format. It is not COCO."""
from lcq_mmdet.cli import run_tool
from lcq_mmdet.commands.make_toy_coco import main

if __name__ == '__main__':
    run_tool(main)
