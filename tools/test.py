"""Evaluate a detector; with --bits, a float checkpoint is quantized first."""
from lcq_mmdet.cli import run_tool
from lcq_mmdet.commands.test import main

if __name__ == '__main__':
    run_tool(main)
