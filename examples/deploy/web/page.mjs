// The page: what is dropped or chosen, what is shown.
import { Detector, Failure } from './detector.mjs';

const [canvas, hint, model, objects, picture, status, threshold] = [
  'canvas', 'hint', 'model', 'objects', 'picture', 'status', 'threshold'
].map((id) => document.getElementById(id));
let detector, image, found = [];
let queue = Promise.resolve();

function tell(text, kind = '') {
  status.textContent = text;
  status.className = kind;
}

/** Do one thing after another, and tell what went wrong. */
function enqueue(work) {
  document.body.dataset.busy = 'true';
  queue = queue.then(work).catch((error) => {
    if (!(error instanceof Failure)) console.error(error);
    tell(error.message, 'error');
  });
  const own = queue;
  queue.then(() => {
    if (own === queue) delete document.body.dataset.busy;
  });
}

async function takeModel(name, load) {
  tell(`Loading ${name}`);
  const bytes = await load();
  // What was there stays until the new one is known to be good.
  detector = await Detector.load(bytes);
  model.textContent = `${name}, ${(bytes.length / 1e6).toFixed(2)} MB, ` +
    `${detector.classes.length} classes`;
  tell('Drop or choose a picture');
  if (image) await detect();
}

async function takeImage(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(
      file, { colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
  } catch {
    throw new Failure(`${file.name} is no picture that this browser reads`);
  }
  image = bitmap;
  found = [];
  show();
  if (detector) await detect();
  else tell('Drop or choose a detector: an .onnx file');
}

async function detect() {
  found = [];
  tell('Detecting');
  // Let the browser paint before it is busy.
  await new Promise((done) => setTimeout(done));
  const pixels = imageData(image);
  const start = performance.now();
  try {
    found = await detector.detect(pixels);
  } catch (error) {
    throw new Failure(`onnxruntime: ${error.message}`);
  }
  status.dataset.milliseconds = performance.now() - start;
  show();
}

function imageData(bitmap) {
  const scratch = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = scratch.getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function show() {
  document.getElementById('threshold-value').textContent =
    Number(threshold.value).toFixed(2);
  if (!image) return;
  hint.hidden = true;
  canvas.hidden = false;
  const shown = found.filter(({ score }) => score >= threshold.value);
  draw(shown);
  objects.replaceChildren(...shown.map(({ label, score, box }) => {
    const item = document.createElement('li');
    item.dataset.object = JSON.stringify({ label, score, box });
    const [swatch, name, value] = ['i', 'b', 'span'].map(
      (tag) => item.appendChild(document.createElement(tag)));
    swatch.style.background = detector.color(label);
    name.textContent = detector.classes[label];
    value.textContent = score.toFixed(2);
    return item;
  }));
  if (status.dataset.milliseconds) {
    tell(`${shown.length} object${shown.length === 1 ? '' : 's'} in ` +
      `${Number(status.dataset.milliseconds).toFixed(1)} ms, ` +
      `${image.width} x ${image.height} pixels`);
  }
}

function draw(shown) {
  // Enough pixels for letters that can be read.
  const zoom = Math.max(1, Math.ceil(800 / Math.max(image.width, image.height)));
  canvas.width = image.width * zoom;
  canvas.height = image.height * zoom;
  const context = canvas.getContext('2d');
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  // As large on the screen whatever the size of the picture.
  const dot = canvas.width / canvas.clientWidth;
  context.lineWidth = 2 * dot;
  context.font = `${14 * dot}px system-ui, sans-serif`;
  context.textBaseline = 'top';
  // The best on top.
  for (const { box, score, label } of shown.toReversed()) {
    const [left, top, right, bottom] = box.map((side) => side * zoom);
    const text = `${detector.classes[label]} ${score.toFixed(2)}`;
    context.strokeStyle = context.fillStyle = detector.color(label);
    context.strokeRect(left, top, right - left, bottom - top);
    const height = 18 * dot;
    const above = top >= height ? top - height : top;
    context.fillRect(left - dot, above,
      context.measureText(text).width + 8 * dot, height);
    context.fillStyle = isDark(context.fillStyle) ? 'white' : 'black';
    context.fillText(text, left + 3 * dot, above + 2 * dot);
  }
}

/** Whether white letters are read better on a color, #rrggbb. */
function isDark(color) {
  const [red, green, blue] = [1, 3, 5].map(
    (start) => parseInt(color.slice(start, start + 2), 16));
  return 0.3 * red + 0.6 * green + 0.1 * blue < 128;
}

function take(file) {
  if (!file) return;
  const content = async () => new Uint8Array(await file.arrayBuffer());
  enqueue(() => file.name.endsWith('.onnx')
    ? takeModel(file.name, content) : takeImage(file));
}

async function fetched(url) {
  const response = await fetch(url);
  if (!response.ok) {
    throw new Failure(`${url} cannot be loaded: ${response.status}`);
  }
  return new Uint8Array(await response.arrayBuffer());
}

for (const id of ['image-file', 'model-file']) {
  const input = document.getElementById(id);
  input.addEventListener('change', () => {
    take(input.files[0]);
    // The same file can be chosen again.
    input.value = '';
  });
}
threshold.addEventListener('input', show);
addEventListener('resize', show);
addEventListener('dragover', (event) => {
  event.preventDefault();
  picture.classList.add('over');
});
addEventListener('dragleave', () => picture.classList.remove('over'));
addEventListener('drop', (event) => {
  event.preventDefault();
  picture.classList.remove('over');
  for (const file of event.dataTransfer.files) take(file);
});

const url = new URLSearchParams(location.search).get('model');
if (url) enqueue(() => takeModel(url.split('/').pop(), () => fetched(url)));
else tell('Drop or choose a detector: an .onnx file');
