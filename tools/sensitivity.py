"""Rank layers by what quantizing each alone loses, and propose their bits."""
from lcq_mmdet.cli import run_tool
from lcq_mmdet.commands.sensitivity import main

if __name__ == '__main__':
    run_tool(main)
