"""Evaluate a detector; with --bits, a float checkpoint is quantized first."""
from lcq_cli import run

if __name__ == '__main__':
    run('test')
