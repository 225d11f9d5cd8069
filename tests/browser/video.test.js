// The video player of Chromium reads from the gateway while the file arrives.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { launch, open } from './browser.js';
import { Swarm } from './swarm.js';

const [WIDTH, HEIGHT, FRAMES, FRAME_MS] = [640, 480, 150, 100];

let browser;
let swarm;
before(async () => { [browser, swarm] = await Promise.all([launch(), Swarm.create()]); });
after(async () => {
  await browser?.close();
  await swarm?.close();
});

/**
 * Encodes frames of noise with VP8. The noise makes them large; the hue of a frame tells its number.
 * @returns {Promise<Buffer[]>}
 */
async function encode(page) {
  const frames = await page.evaluate(async (width, height, count, frameMs) => {
    const frames = [];
    const encoder = new VideoEncoder({
      output: (frame) => {
        const bytes = new Uint8Array(frame.byteLength);
        frame.copyTo(bytes);
        frames.push(bytes.toBase64());
      },
      error: (error) => { throw error; },
    });
    encoder.configure({ codec: 'vp8', width, height, bitrate: 50_000_000, framerate: 1000 / frameMs });
    const luma = width * height;
    const image = new Uint8Array(luma * 1.5);
    for (let n = 0; n < count; n++) {
      for (let at = 0; at < luma; at += 65_536) crypto.getRandomValues(image.subarray(at, Math.min(at + 65_536, luma)));
      image.fill(64 + n, luma);
      const frame = new VideoFrame(image, { format: 'I420', codedWidth: width, codedHeight: height, timestamp: n * frameMs * 1000 });
      encoder.encode(frame, { keyFrame: true });
      frame.close();
    }
    await encoder.flush();
    return frames;
  }, WIDTH, HEIGHT, FRAMES, FRAME_MS);
  return frames.map((frame) => Buffer.from(frame, 'base64'));
}

/** An element of WebM: id, length, content. A number is an unsigned integer. */
function element(id, ...content) {
  const parts = content.map((part) => (typeof part === 'number' ? integer(part) : Buffer.from(part)));
  const length = integer(parts.reduce((sum, part) => sum + part.length, 0));
  length[0] = 1;
  return Buffer.concat([Buffer.from(id, 'hex'), length, ...parts]);
}

function integer(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

/** A WebM file with one frame per cluster, and the positions of all clusters at its start. */
function webm(frames) {
  const duration = Buffer.alloc(8);
  duration.writeDoubleBE(frames.length * FRAME_MS);
  const head = element('1a45dfa3', element('4282', 'webm'), element('4287', 2), element('4285', 2));
  const info = element('1549a966', element('2ad7b1', 1_000_000), element('4489', duration), element('4d80', 'test'), element('5741', 'test'));
  const track = element('ae', element('d7', 1), element('73c5', 1), element('83', 1), element('86', 'V_VP8'), element('23e383', FRAME_MS * 1_000_000), element('e0', element('b0', WIDTH), element('ba', HEIGHT)));
  const clusters = frames.map((frame, n) => element('1f43b675', element('e7', n * FRAME_MS), element('a3', [0x81, 0, 0, 0x80], frame)));
  const cues = (start) => {
    const points = clusters.map((cluster, n) => {
      const point = element('bb', element('b3', n * FRAME_MS), element('b7', element('f7', 1), element('f1', start)));
      start += cluster.length;
      return point;
    });
    return element('1c53bb6b', ...points);
  };
  const start = [info, element('1654ae6b', track)];
  const position = Buffer.concat(start).length + cues(0).length;
  return Buffer.concat([head, element('18538067', ...start, cues(position), ...clusters)]);
}

const hash = (content) => createHash('sha256').update(content).digest('hex');

test('video_plays_and_seeks_while_it_arrives', async () => {
  const tracker = await swarm.tracker('tracker');
  const source = await swarm.peer('source', tracker);
  // At this rate, half of the file takes more than 15 seconds.
  const sink = await swarm.peer('sink', tracker, ['limits.download="1MB/s"']);
  const content = webm(await encode(await open(browser, source.url)));
  assert.ok(content.length > 30_000_000, `the video has ${content.length} bytes only`);
  await writeFile(swarm.path('film.webm'), content);
  await source.run('publish', swarm.path('film.webm'));

  const page = await open(browser, `${sink.url}files/film.webm`);
  const { duration, hue } = await page.evaluate(async (frameMs) => {
    const video = document.querySelector('video');
    await video.play();
    video.pause();
    // The middle of the tenth frame from the end.
    video.currentTime = video.duration - 9.5 * frameMs / 1000;
    await new Promise((resolve) => { video.addEventListener('seeked', resolve, { once: true }); });
    const frame = new VideoFrame(video);
    const image = new Uint8Array(frame.allocationSize());
    const layout = await frame.copyTo(image);
    const hue = image[layout[1].offset + layout[1].stride * 100 + 100];
    return { duration: video.duration, hue };
  }, FRAME_MS);
  assert.equal(duration, FRAMES * FRAME_MS / 1000);
  assert.ok(Math.abs(hue - (64 + FRAMES - 10)) <= 2, `the frame has the hue ${hue}`);
  const [entry] = (await sink.api('GET', '/library')).files;
  assert.ok(entry.available_pieces < entry.pieces / 2, `${entry.available_pieces} of ${entry.pieces} pieces were downloaded before`);

  await sink.api('PUT', '/limits', { download_rate: null, upload_rate: null });
  const received = Buffer.from(await (await fetch(`${sink.url}files/film.webm`)).arrayBuffer());
  assert.equal(hash(received), hash(content));
  assert.deepEqual(page.problems, []);
});
