"""Evaluate finished runs side by side, in numbers and pictures."""
from lcq_cli import run

if __name__ == '__main__':
    run('report')
