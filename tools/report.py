"""Evaluate finished runs side by side, in numbers and pictures."""
from lcq_mmdet.cli import run_tool
from lcq_mmdet.commands.report import main

if __name__ == '__main__':
    run_tool(main)
