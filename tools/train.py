"""Train a detector in float or, with --bits, quantized."""
from lcq_cli import run

if __name__ == '__main__':
    run('train')
