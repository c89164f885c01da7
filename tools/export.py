"""Write a trained low-bit detector to a packed file or an ONNX graph."""
from lcq_cli import run

if __name__ == '__main__':
    run('export')
