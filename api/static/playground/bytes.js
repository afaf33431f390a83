/** PNG and ZIP files, written byte by byte: a canvas writes neither 1-bit nor 16-bit PNGs. */

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC[(crc ^ byte) & 0xff];
  return ~crc >>> 0;
}

/** Write a greyscale PNG.  depth: 1, 8 or 16 bits per pixel.  rows: each a whole number of bytes.  Source: PNG, third edition. */
export async function greyPng(width, height, depth, rows) {
  const stride = Math.ceil((width * depth) / 8);
  const lines = new Uint8Array((stride + 1) * height); // each begins with its filter: 0, none
  for (let y = 0; y < height; y++) lines.set(rows.subarray(y * stride, (y + 1) * stride), y * (stride + 1) + 1);
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = depth;
  const deflated = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const pixels = new Uint8Array(await new Response(deflated).arrayBuffer());
  const signature = Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
  return new Blob([signature, chunk("IHDR", header), chunk("IDAT", pixels), chunk("IEND", new Uint8Array())], { type: "image/png" });
}

function chunk(name, data) {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(data, 8);
  view.setUint32(data.length + 8, crc32(bytes.subarray(4, data.length + 8)));
  return bytes;
}

/** Write a ZIP archive whose files are stored as they are.  files: [name, bytes].  Source: PKWARE's APPNOTE, section 4.3. */
export function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [name, bytes] of files) {
    const title = new TextEncoder().encode(name);
    const common = new DataView(new ArrayBuffer(26)); // from "version needed" to the length of the extra field
    common.setUint16(0, 20, true);
    common.setUint16(2, 0x0800, true); // the name is UTF-8
    common.setUint16(8, 0x0021, true); // 1980-01-01
    common.setUint32(10, crc32(bytes), true);
    common.setUint32(14, bytes.length, true);
    common.setUint32(18, bytes.length, true);
    common.setUint16(22, title.length, true);
    parts.push(Uint8Array.of(0x50, 0x4b, 3, 4), new Uint8Array(common.buffer), title, bytes);
    const rest = new DataView(new ArrayBuffer(14)); // comment, disk, attributes, offset
    rest.setUint32(10, offset, true);
    directory.push(Uint8Array.of(0x50, 0x4b, 1, 2, 20, 0), new Uint8Array(common.buffer), new Uint8Array(rest.buffer), title);
    offset += 30 + title.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, offset, true);
  return new Blob([...parts, ...directory, new Uint8Array(end.buffer)], { type: "application/zip" });
}
