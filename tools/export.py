"""Write a trained low-bit detector to a packed file or an ONNX graph."""
from lcq_mmdet.cli import run_tool
from lcq_mmdet.commands.export import main

if __name__ == '__main__':
    run_tool(main)
