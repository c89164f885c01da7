"""Measure kernels, steps, calibration and errors, as ratios in one run."""
from lcq_mmdet.cli import run_tool
from lcq_mmdet.commands.benchmark import main

if __name__ == '__main__':
    run_tool(main)
