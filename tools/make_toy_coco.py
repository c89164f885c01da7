"""Generate a small detection data set in COCO's format. It is not COCO."""
from lcq_cli import run

if __name__ == '__main__':
    run('make-toy-coco')
