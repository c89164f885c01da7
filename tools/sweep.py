"""Report mAP per bit-width: from a float detector to 8, 4, 3 and 2 bits."""
from lcq_mmdet.cli import run_tool
from lcq_mmdet.commands.sweep import main

if __name__ == '__main__':
    run_tool(main)
