// QR codes in byte mode with error correction level L, after ISO/IEC 18004:2015; clause numbers refer to it.

/** Code words of error correction per block, and number of blocks, by version (table 9, level L). */
const CHECK_WORDS = [7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28, 28, 28, 30, 30, 26, 28, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30];
const BLOCKS = [1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6, 6, 6, 6, 7, 8, 8, 9, 9, 10, 12, 12, 12, 13, 14, 15, 16, 17, 18, 19, 19, 20, 21, 22, 24, 25];

/** Number of modules for data and error correction. */
function dataModules(version) {
  let modules = (16 * version + 128) * version + 64;
  if (version >= 2) {
    const patterns = Math.floor(version / 7) + 2;
    modules -= (25 * patterns - 10) * patterns - 55;
    if (version >= 7) modules -= 36;
  }
  return modules;
}

const words = (version) => Math.floor(dataModules(version) / 8);
const capacity = (version) => words(version) - CHECK_WORDS[version - 1] * BLOCKS[version - 1];

/** Product in GF(256) modulo x^8 + x^4 + x^3 + x^2 + 1. */
function multiply(a, b) {
  let product = 0;
  for (let bit = 7; bit >= 0; bit--) {
    product = (product << 1) ^ ((product >>> 7) * 0x11d);
    product ^= ((b >>> bit) & 1) * a;
  }
  return product;
}

/** The generator polynomial of Reed-Solomon codes (annex A), without its first coefficient. */
function generator(degree) {
  const result = new Array(degree).fill(0);
  result[degree - 1] = 1;
  let root = 1;
  for (let i = 0; i < degree; i++) {
    for (let j = 0; j < degree; j++) result[j] = multiply(result[j], root) ^ (result[j + 1] ?? 0);
    root = multiply(root, 2);
  }
  return result;
}

function remainder(data, divisor) {
  const result = divisor.map(() => 0);
  for (const byte of data) {
    const factor = byte ^ result.shift();
    result.push(0);
    divisor.forEach((coefficient, i) => { result[i] ^= multiply(coefficient, factor); });
  }
  return result;
}

/** The message with padding (clause 7.4), as code words. */
function encode(bytes, version) {
  const bits = [];
  const add = (value, count) => { for (let i = count - 1; i >= 0; i--) bits.push((value >>> i) & 1); };
  add(0b0100, 4);
  add(bytes.length, version < 10 ? 8 : 16);
  for (const byte of bytes) add(byte, 8);
  const total = capacity(version) * 8;
  add(0, Math.min(4, total - bits.length));
  add(0, (8 - (bits.length % 8)) % 8);
  for (let pad = 0xec; bits.length < total; pad ^= 0xec ^ 0x11) add(pad, 8);
  const result = [];
  for (let i = 0; i < bits.length; i += 8) result.push(parseInt(bits.slice(i, i + 8).join(''), 2));
  return result;
}

/** Adds error correction and interleaves the blocks (clauses 7.5 and 7.6). */
function interleave(data, version) {
  const count = BLOCKS[version - 1];
  const checks = CHECK_WORDS[version - 1];
  const short = Math.floor(words(version) / count) - checks;
  const longBlocks = words(version) % count;
  const divisor = generator(checks);
  const blocks = [];
  for (let i = 0, at = 0; i < count; i++) {
    const length = short + (i >= count - longBlocks ? 1 : 0);
    const content = data.slice(at, at + length);
    blocks.push({ content, check: remainder(content, divisor) });
    at += length;
  }
  const result = [];
  for (let i = 0; i <= short; i++) for (const { content } of blocks) if (i < content.length) result.push(content[i]);
  for (let i = 0; i < checks; i++) for (const { check } of blocks) result.push(check[i]);
  return result;
}

/** The centres of the alignment patterns (annex E). */
function alignments(version, size) {
  if (version === 1) return [];
  const count = Math.floor(version / 7) + 2;
  const step = version === 32 ? 26 : Math.ceil((version * 4 + 4) / (count * 2 - 2)) * 2;
  return [6, ...Array.from({ length: count - 1 }, (_, i) => size - 7 - (count - 2 - i) * step)];
}

/** The conditions of the masks (table 10): these modules are inverted. */
const MASKS = [
  (x, y) => (x + y) % 2, (x, y) => y % 2, (x) => x % 3, (x, y) => (x + y) % 3,
  (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2, (x, y) => ((x * y) % 2) + ((x * y) % 3),
  (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2, (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2,
].map((condition) => (x, y) => condition(x, y) === 0);

/** Bits with the remainder of a BCH code (annexes C and D). */
function withCheck(data, polynomial, bits) {
  let rest = data << bits;
  for (let i = 31; i >= bits; i--) if ((rest >>> i) & 1) rest ^= polynomial << (i - bits);
  return (data << bits) | rest;
}

/** The penalty of a symbol (clause 7.8.3). */
function penalty(modules) {
  const size = modules.length;
  let result = 0;
  let dark = 0;
  const finder = /(?=10111010000|00001011101)/g;
  const lines = [...modules, ...modules[0].map((_, x) => modules.map((row) => row[x]))];
  for (const line of lines) {
    const text = line.map(Number).join('');
    for (const run of text.match(/0{5,}|1{5,}/g) ?? []) result += run.length - 2;
    result += (text.match(finder) ?? []).length * 40;
  }
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const value = modules[y][x];
      if (value) dark++;
      if (x + 1 < size && y + 1 < size && value === modules[y][x + 1] && value === modules[y + 1][x] && value === modules[y + 1][x + 1]) result += 3;
    }
  }
  return result + Math.floor(Math.abs((dark * 20) / (size * size) - 10)) * 10;
}

/**
 * Encodes a text. Returns the rows of modules, `true` is dark, or `null` if the text is too long.
 * @param {string} text @returns {boolean[][] | null}
 */
export function qrCode(text) {
  const bytes = new TextEncoder().encode(text);
  let version = 1;
  while (version <= 40 && bytes.length > capacity(version) - (version < 10 ? 2 : 3)) version++;
  if (version > 40) return null;
  const size = version * 4 + 17;
  /** @type {(boolean | undefined)[][]} */
  const modules = Array.from({ length: size }, () => new Array(size).fill(undefined));
  const set = (x, y, value) => { if (x >= 0 && y >= 0 && x < size && y < size) modules[y][x] = value; };
  const square = (cx, cy, radius, isDark) => {
    for (let dy = -radius; dy <= radius; dy++) for (let dx = -radius; dx <= radius; dx++) set(cx + dx, cy + dy, isDark(Math.max(Math.abs(dx), Math.abs(dy))));
  };
  // Function patterns (clause 6.3).
  for (let i = 0; i < size; i++) {
    set(6, i, i % 2 === 0);
    set(i, 6, i % 2 === 0);
  }
  for (const [x, y] of [[3, 3], [size - 4, 3], [3, size - 4]]) square(x, y, 4, (distance) => distance !== 2 && distance !== 4);
  const centres = alignments(version, size);
  for (const x of centres) {
    for (const y of centres) {
      const isFinder = (x === 6 && (y === 6 || y === size - 7)) || (x === size - 7 && y === 6);
      if (!isFinder) square(x, y, 2, (distance) => distance !== 1);
    }
  }
  // Version (clause 7.10) and format (clause 7.9); level L is 01.
  if (version >= 7) {
    const bits = withCheck(version, 0x1f25, 12);
    for (let i = 0; i < 18; i++) {
      const [a, b] = [size - 11 + (i % 3), Math.floor(i / 3)];
      set(a, b, ((bits >>> i) & 1) === 1);
      set(b, a, ((bits >>> i) & 1) === 1);
    }
  }
  const format = (mask) => {
    const bits = withCheck((0b01 << 3) | mask, 0x537, 10) ^ 0x5412;
    const bit = (i) => ((bits >>> i) & 1) === 1;
    for (let i = 0; i < 15; i++) {
      set(8, i < 6 ? i : i < 8 ? i + 1 : size - 15 + i, bit(i));
      set(i < 8 ? size - 1 - i : i === 8 ? 7 : 14 - i, 8, bit(i));
    }
    set(8, size - 8, true);
  };
  format(0);
  const isFunction = modules.map((row) => row.map((value) => value !== undefined));
  // Data in columns of two modules, from the right, alternately up and down (clause 7.7.3).
  const data = interleave(encode(bytes, version), version);
  let next = 0;
  for (let right = size - 1; right >= 1; right -= 2) {
    if (right === 6) right = 5;
    for (let step = 0; step < size; step++) {
      const y = ((right + 1) & 2) === 0 ? size - 1 - step : step;
      for (const x of [right, right - 1]) {
        if (isFunction[y][x]) continue;
        modules[y][x] = ((data[next >>> 3] >>> (7 - (next & 7))) & 1) === 1;
        next++;
      }
    }
  }
  const invert = (mask) => {
    for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) if (!isFunction[y][x] && MASKS[mask](x, y)) modules[y][x] = !modules[y][x];
  };
  let best = 0;
  let lowest = Infinity;
  for (let mask = 0; mask < 8; mask++) {
    invert(mask);
    format(mask);
    const found = penalty(/** @type {boolean[][]} */ (modules));
    if (found < lowest) [best, lowest] = [mask, found];
    invert(mask);
  }
  invert(best);
  format(best);
  return /** @type {boolean[][]} */ (modules);
}
