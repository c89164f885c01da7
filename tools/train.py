"""Train a detector in float or, with --bits, quantized."""
from lcq_mmdet.cli import run_tool
from lcq_mmdet.commands.train import main

if __name__ == '__main__':
    run_tool(main)
