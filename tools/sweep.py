"""Report mAP per bit-width: from a float detector to 8, 4, 3 and 2 bits."""
from lcq_cli import run

if __name__ == '__main__':
    run('sweep')
