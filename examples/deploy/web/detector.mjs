// A detector in one file of `export.py --end2end`, run by onnxruntime-web.
import * as ort from './node_modules/onnxruntime-web/dist/ort.wasm.min.mjs';

const FORMAT = 1;
const METADATA_PROPS = 14;
const TEXT = new TextDecoder();

// A page has threads only where its server isolates it from others.
if (!globalThis.crossOriginIsolated) ort.env.wasm.numThreads = 1;

/** What the user can put right. */
export class Failure extends Error {}

export class Detector {
  /**
   * @param {Uint8Array} bytes Content of the file.
   * @throws {Failure} If it is no such file.
   */
  static async load(bytes) {
    const detector = new Detector();
    detector.about = readMetadata(bytes);
    try {
      detector.session = await ort.InferenceSession.create(bytes);
    } catch (error) {
      throw new Failure(`onnxruntime does not take the file: ${error.message}`);
    }
    return detector;
  }

  get classes() {
    return this.about.classes;
  }

  /** The color of a class, in CSS. */
  color(label) {
    const palette = this.about.palette;
    return palette?.length
      ? `rgb(${palette[label % palette.length].join(' ')})`
      : `hsl(${(label * 0.618 % 1) * 360}deg 100% 50%)`;
  }

  /**
   * Detect objects.
   *
   * @param {ImageData} image In its own size.
   * @returns {Promise<{box: number[], score: number, label: number}[]>}
   *     Boxes as left, top, right, bottom in pixels of the image.
   */
  async detect(image) {
    const [width, height] = resizedSize(image, this.about.resize);
    const pixels = resize(image, width, height);
    const input = new ort.Tensor('uint8', pixels, [1, height, width, 3]);
    const { dets, labels } = await this.session.run({ image: input });
    const scales = [image.width / width, image.height / height];
    return Array.from(labels.data, Number)
      .map((label, index) => {
        const [score, ...box] = [4, 0, 1, 2, 3].map(
          (column) => dets.data[5 * index + column]);
        return {
          label, score, box: box.map((side, axis) => side * scales[axis % 2])
        };
      })
      .filter(({ label }) => label >= 0);
  }
}

/** Return what a file says of itself; onnxruntime-web does not tell. */
export function readMetadata(bytes) {
  let text;
  for (const [field, content] of fields(bytes)) {
    if (field !== METADATA_PROPS) continue;
    const entry = new Map(fields(content));
    if (TEXT.decode(entry.get(1)) === 'detector') {
      text = TEXT.decode(entry.get(2));
    }
  }
  if (text === undefined) {
    throw new Failure(
      'The file is no detector by itself: write one with export.py --end2end');
  }
  let about;
  try {
    about = JSON.parse(text);
  } catch {
    throw new Failure('The metadata of the file are altered');
  }
  if (about.format !== FORMAT) {
    throw new Failure(`The file is of format ${about.format}, and this page ` +
      `reads ${FORMAT}: take the page that came with the export.py`);
  }
  if (!Array.isArray(about.classes)) {
    throw new Failure('The metadata of the file are altered: no classes');
  }
  if (about.resize && about.resize.interpolation !== 'bilinear') {
    throw new Failure(`Images are resized with ${about.resize.interpolation}` +
      ' interpolation; this page knows bilinear');
  }
  return about;
}

/** Walk the fields of a message of Protocol Buffers: number and content. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (at >= bytes.length || scale > 2 ** 63) {
        throw new Failure('The file is cut off, or no ONNX file');
      }
      const byte = bytes[at++];
      value += (byte % 128) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    let start = at;
    switch (tag % 8) {
      case 0: varint(); break;
      case 1: at += 8; break;
      case 2: {
        const length = varint();
        start = at;
        at += length;
        break;
      }
      case 5: at += 4; break;
      default: at = Infinity;
    }
    if (at > bytes.length) {
      throw new Failure('The file is cut off, or no ONNX file');
    }
    yield [Math.floor(tag / 8), bytes.subarray(start, at)];
  }
}

/** Return the width and height that mmdet would give an image. */
export function resizedSize({ width, height }, how) {
  if (!how) return [width, height];
  if (!how.keep_ratio) return [how.width, how.height];
  const scale = Math.min(
    Math.max(how.width, how.height) / Math.max(width, height),
    Math.min(how.width, how.height) / Math.min(width, height));
  return [width, height].map(
    (side) => Math.max(1, Math.trunc(side * scale + 0.5)));
}

/** Interpolate between the four nearest pixels, as OpenCV does; drop alpha. */
export function resize(image, width, height) {
  const across = positions(width, image.width);
  const down = positions(height, image.height);
  const { data } = image;
  const out = new Uint8Array(width * height * 3);
  let to = 0;
  for (const [top, bottom, y] of down) {
    for (const [left, right, x] of across) {
      for (let channel = 0; channel < 3; channel++) {
        const at = (row, column) =>
          data[4 * (row * image.width + column) + channel];
        const above = at(top, left) * (1 - x) + at(top, right) * x;
        const below = at(bottom, left) * (1 - x) + at(bottom, right) * x;
        out[to++] = Math.round(above * (1 - y) + below * y);
      }
    }
  }
  return out;
}

/** Return the two nearest pixels of each new one, and the second's weight. */
function positions(count, length) {
  return Array.from({ length: count }, (_, index) => {
    const centre = (index + 0.5) * length / count - 0.5;
    const place = Math.min(Math.max(centre, 0), length - 1);
    const first = Math.floor(place);
    return [first, Math.min(first + 1, length - 1), place - first];
  });
}
