"""Detect objects in images with a file of ``export.py --end2end``.

Needs numpy, pillow and one engine, onnxruntime or openvino; nothing else.
"""
import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Dict, List, Sequence

import numpy as np
from detector import ENGINES, Detector, Failure, read_image
from PIL import Image, ImageDraw, ImageFont

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff',
            '.webp')


def draw(image: Image.Image, detector: Detector, dets: np.ndarray,
         labels: np.ndarray) -> None:
    """Draw boxes with class names and scores, in place."""
    brush = ImageDraw.Draw(image)
    width = max(1, round(max(image.size) / 400))
    font = ImageFont.load_default(max(10, 6 * width))
    # The best on top.
    for (*box, score), label in reversed(list(zip(dets.tolist(), labels))):
        color = detector.color(label)
        text = f'{detector.classes[label]} {score:.2f}'
        brush.rectangle(box, outline=color, width=width)
        left, top, right, bottom = brush.textbbox(
            (box[0], box[1]), text, font, anchor='lb')
        if top < 0:
            left, top, right, bottom = brush.textbbox(
                (box[0], box[1]), text, font, anchor='lt')
        brush.rectangle((left, top, right, bottom), fill=color)
        dark = np.dot(color, (0.3, 0.6, 0.1)) < 128
        brush.text((left, top), text, 'white' if dark else 'black', font,
                   anchor='lt')


def find_images(paths: Sequence[str],
                out_dir: Path) -> Dict[Path, Path]:
    """Find images, and where each goes when it is drawn on.

    Raises:
        Failure: If there is none, or one would be overwritten.
    """
    found: Dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_file():
            found[path] = Path(path.name)
        elif path.is_dir():
            found.update((file, file.relative_to(path))
                         for file in sorted(path.rglob('*'))
                         if file.suffix.lower() in SUFFIXES
                         and out_dir.resolve() not in file.resolve().parents)
        else:
            raise Failure(f'{path}: no such file or folder')
    if not found:
        raise Failure(f'{", ".join(paths)}: there is no image')
    targets: Dict[Path, Path] = {}
    inputs, taken = {file.resolve(): file for file in found}, set()
    for file, name in found.items():
        if name.suffix.lower() not in ('.jpg', '.jpeg', '.png'):
            name = name.with_name(f'{name.name}.png')
        target, number = out_dir / name, 2
        while target in taken:
            target = out_dir / name.with_stem(f'{name.stem}_{number}')
            number += 1
        if target.resolve() in inputs:
            raise Failure(f'--out-dir={str(out_dir)!r}: '
                          f'{inputs[target.resolve()]} would be overwritten; '
                          'name another folder')
        taken.add(target)
        targets[file] = target
    return targets


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='file of export.py --end2end')
    parser.add_argument(
        'images', nargs='+', metavar='image', help='image file, or folder')
    parser.add_argument(
        '--engine',
        choices=list(ENGINES),
        default='onnxruntime',
        help='what runs the file (default: onnxruntime)')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='the lowest score that is shown, 0 to 1 (default: 0.3)')
    parser.add_argument(
        '--out-dir',
        type=Path,
        default=Path('out'),
        help='folder for images with boxes (default: out)')
    parser.add_argument(
        '--json',
        action='store_true',
        help='print one JSON object for each image, and the rest to the '
        'error output')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    targets = find_images(args.images, args.out_dir)
    detector = Detector(args.model, args.engine)
    log = sys.stderr if args.json else sys.stdout
    times: List[float] = []
    for number, (path, target) in enumerate(targets.items(), 1):
        try:
            image = read_image(path)
            start = time.perf_counter()
            dets, labels = detector(image)
        except Failure as error:
            print(f'skipped: {error}', file=sys.stderr)
            continue
        times.append(1e3 * (time.perf_counter() - start))
        shown = dets[:, 4] >= args.score_thr
        dets, labels = dets[shown], labels[shown]
        print(f'[{number}/{len(targets)}] {path}: {len(dets)} '
              f'object{"s" * (len(dets) != 1)}, {times[-1]:.1f} ms',
              file=log, flush=True)
        if args.json:
            print(json.dumps(dict(
                image=str(path),
                width=image.width,
                height=image.height,
                milliseconds=round(times[-1], 3),
                objects=[
                    dict(label=label, name=detector.classes[label],
                         score=score, box=box)
                    for (*box, score), label in zip(
                        dets.tolist(), labels.tolist())
                ])), flush=True)
        else:
            for (*box, score), label in zip(dets.tolist(), labels):
                print(f'    {detector.classes[label]} {score:.2f} at',
                      *(f'{side:.1f}' for side in box))
        draw(image, detector, dets, labels)
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target)
    if times:
        print(f'written to {args.out_dir}; median {median(times):.1f} ms',
              file=log)
    return int(len(times) < len(targets))


if __name__ == '__main__':
    try:
        sys.exit(main())
    except Failure as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
