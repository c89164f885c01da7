"""Measure kernels, steps, calibration and errors, as ratios in one run."""
from lcq_cli import run

if __name__ == '__main__':
    run('benchmark')
