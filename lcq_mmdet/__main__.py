"""``python -m lcq_mmdet COMMAND`` is ``lcq COMMAND``."""
from lcq_cli import main

if __name__ == '__main__':
    main()
