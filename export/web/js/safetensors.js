// safetensors: 8 bytes for the length of a JSON header, the header, then the tensors without gaps.

const ARRAYS = { F32: Float32Array, F16: Uint16Array, I8: Int8Array, U8: Uint8Array };

/**
 * Read a safetensors file: `{ metadata, tensors }`, where `tensors` maps each name to its `dtype`, `shape`,
 * `bytes` (as in the file) and `data`, a typed array of its own. float16 comes as its bits, a Uint16Array.
 *
 * Throws `Error` for a file that is torn, overlaps, leaves gaps or has a dtype that no adapter has.
 */
export function readSafetensors(file) {
  if (file.length < 8) throw new Error(`it has ${file.length} bytes`);
  const view = new DataView(file.buffer, file.byteOffset);
  const start = 8 + Number(view.getBigUint64(0, true));
  if (start > file.length) throw new Error(`its header should have ${start - 8} bytes, the file ${file.length}`);
  const { __metadata__: metadata = {}, ...entries } = JSON.parse(
    new TextDecoder("utf-8", { fatal: true }).decode(file.subarray(8, start)),
  );
  const tensors = new Map();
  let position = start;
  for (const [name, entry] of Object.entries(entries).sort(byOffset)) {
    const TypedArray = ARRAYS[entry.dtype];
    if (!TypedArray) throw new Error(`tensor ${name} has dtype ${entry.dtype}`);
    const [begin, end] = entry.data_offsets.map((offset) => start + offset);
    const size = entry.shape.reduce((product, length) => product * length, 1) * TypedArray.BYTES_PER_ELEMENT;
    // Whatever overlaps, leaves a gap or claims another size does not begin or end where it should.
    if (begin !== position || end !== begin + size || end > file.length) {
      throw new Error(`tensor ${name} does not lie where it should`);
    }
    const bytes = file.slice(begin, end);
    tensors.set(name, { dtype: entry.dtype, shape: entry.shape, bytes, data: new TypedArray(bytes.buffer) });
    position = end;
  }
  if (position !== file.length) throw new Error(`it has ${file.length} bytes, its tensors end at ${position}`);
  return { metadata, tensors };
}

/** float16 bits as float32 numbers. */
export function fromFloat16(bits) {
  return Float32Array.from(bits, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
  });
}

function byOffset([, a], [, b]) {
  return a.data_offsets[0] - b.data_offsets[0];
}
