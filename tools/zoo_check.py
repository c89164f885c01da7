"""Check which of mmdet's configs can be quantized, each on a small image."""
from lcq_mmdet.cli import run_tool
from lcq_mmdet.commands.zoo_check import main

if __name__ == '__main__':
    run_tool(main)
