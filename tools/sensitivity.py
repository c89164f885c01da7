"""Rank layers by what quantizing each alone loses, and propose their bits."""
from lcq_cli import run

if __name__ == '__main__':
    run('sensitivity')
