"""Check which of mmdet's configs can be quantized, each on a small image."""
from lcq_cli import run

if __name__ == '__main__':
    run('zoo-check')
