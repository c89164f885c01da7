// Try the page in headless Chromium:
//
//     node check.mjs MODEL.onnx PICTURE [--chromium PATH] [--out FOLDER]
//
// Prints as JSON what the page finds in the picture; saves screenshots of a
// laptop's and a phone's width to FOLDER.
import { createReadStream, mkdirSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { chromium } from 'playwright-core';

const TYPES = {
  '.html': 'text/html', '.css': 'text/css', '.mjs': 'text/javascript',
  '.wasm': 'application/wasm'
};
const SIZES = { laptop: [1280, 800], phone: [390, 844] };
const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update',
  '--disable-sync'
];
const { values, positionals: [model, picture] } = parseArgs({
  allowPositionals: true,
  options: {
    chromium: { type: 'string', default: '/usr/bin/chromium' },
    out: { type: 'string' }
  }
});
const folder = fileURLToPath(new URL('.', import.meta.url));

const server = createServer(({ url }, response) => {
  const { pathname } = new URL(url, 'http://localhost');
  const path = pathname === '/model.onnx'
    ? resolve(model) : join(folder, pathname === '/' ? 'index.html' : pathname);
  createReadStream(path)
    .on('open', () => response.setHeader(
      'Content-Type', TYPES[extname(path)] ?? 'application/octet-stream'))
    .on('error', () => response.writeHead(404).end())
    .pipe(response);
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const browser = await chromium.launch(
  { executablePath: values.chromium, args: FLAGS });
try {
  const page = await browser.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(error.message));
  page.on('console', (message) => {
    if (message.type() === 'error') errors.push(message.text());
  });
  const idle = () => page.waitForFunction(
    () => document.readyState === 'complete' && !document.body.dataset.busy);
  await page.goto(
    `http://127.0.0.1:${server.address().port}/?model=model.onnx`);
  await idle();
  const failed = () => page.locator('#status.error').count();
  if (picture && !await failed()) {
    await page.setInputFiles('#image-file', picture);
    await idle();
  }
  for (const [name, [width, height]] of Object.entries(SIZES)) {
    if (!values.out) break;
    mkdirSync(values.out, { recursive: true });
    await page.setViewportSize({ width, height });
    await page.screenshot({ path: join(values.out, `${name}.png`) });
  }
  await page.locator('#threshold').fill('0');
  const shown = await page.evaluate(() => ({
    status: document.getElementById('status').textContent,
    failed: document.getElementById('status').className === 'error',
    wide: document.documentElement.scrollWidth > innerWidth,
    objects: [...document.querySelectorAll('#objects li')].map(
      (item) => ({
        ...JSON.parse(item.dataset.object),
        name: item.querySelector('b').textContent
      }))
  }));
  console.log(JSON.stringify({ ...shown, errors }));
  process.exitCode = Number(shown.failed || errors.length > 0);
} finally {
  await browser.close();
  server.close();
}
