/** Masks: from COCO's run-length encoding to outlines that can be drawn, hit and written to files. */

/** Return the run lengths of COCO's compressed encoding: background first, column by column. */
export function runsOf(counts) {
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let run = 0;
    let shift = 0;
    for (let more = true; more; shift += 5) {
      const digit = counts.charCodeAt(at++) - 48;
      run |= (digit & 0x1f) << shift;
      more = (digit & 0x20) !== 0;
      if (!more && digit & 0x10) run |= -1 << (shift + 5);
    }
    runs.push(runs.length > 2 ? run + runs[runs.length - 2] : run);
  }
  return runs;
}

/** Return the pixels of a mask inside [left, top, width, height], row by row: 1 inside the mask. */
export function pixelsOf({ size: [height], counts }, [left, top, width, rows]) {
  const pixels = new Uint8Array(width * rows);
  let at = 0;
  runsOf(counts).forEach((run, number) => {
    for (let end = at + run; number % 2 && at < end; ) {
      const x = Math.floor(at / height);
      const last = Math.min(end, (x + 1) * height);
      for (let y = at - x * height; y < last - x * height; y++) pixels[(y - top) * width + x - left] = 1;
      at = last;
    }
    if (number % 2 === 0) at += run;
  });
  return pixels;
}

/**
 * Trace the outlines of a mask along the edges of its pixels.
 *
 * Returns rings [x0, y0, x1, y1, …] with the mask on their right: outer ones run clockwise as seen, holes the other way.
 * Pixels that touch at a corner only are not joined.
 */
export function tracedRings(pixels, width, height, left = 0, top = 0) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x] === 1;
  const stepX = [1, 0, -1, 0];
  const stepY = [0, 1, 0, -1];
  // The two pixels ahead of a corner, by direction: on the right, which must be inside, and on the left.
  const rightX = [0, -1, -1, 0];
  const rightY = [0, 0, -1, -1];
  const leftX = [0, 0, -1, -1];
  const leftY = [-1, 0, 0, -1];
  const seen = new Uint8Array(width * height); // upper edges of pixels; every ring has one
  const rings = [];
  for (let startY = 0; startY < height; startY++) {
    for (let startX = 0; startX < width; startX++) {
      if (seen[startY * width + startX] || !inside(startX, startY) || inside(startX, startY - 1)) continue;
      const ring = [left + startX, top + startY];
      let x = startX;
      let y = startY;
      let way = 0;
      do {
        if (way === 0) seen[y * width + x] = 1;
        x += stepX[way];
        y += stepY[way];
        let next = way;
        if (!inside(x + rightX[way], y + rightY[way])) next = (way + 1) % 4;
        else if (inside(x + leftX[way], y + leftY[way])) next = (way + 3) % 4;
        if (next !== way && !(x === startX && y === startY && next === 0)) ring.push(left + x, top + y);
        way = next;
      } while (x !== startX || y !== startY || way !== 0);
      rings.push(ring);
    }
  }
  return rings;
}

/** Return the area inside a ring, negative for a hole. */
export function signedArea(ring) {
  let twice = 0;
  for (let i = 0, j = ring.length - 2; i < ring.length; j = i, i += 2) twice += ring[j] * ring[i + 1] - ring[i] * ring[j + 1];
  return twice / 2;
}

/** Return polygons, each its outer ring and then its holes. */
export function polygonsOf(rings) {
  const polygons = rings.filter((ring) => signedArea(ring) > 0).map((outer) => [outer]);
  for (const hole of rings.filter((ring) => signedArea(ring) < 0)) {
    const around = polygons.filter(([outer]) => surrounds(outer, hole[0] + 0.5, hole[1] - 0.5));
    around.sort((one, other) => signedArea(one[0]) - signedArea(other[0]));
    around[0]?.push(hole);
  }
  return polygons;
}

function surrounds(ring, x, y) {
  let within = false;
  for (let i = 0, j = ring.length - 2; i < ring.length; j = i, i += 2) {
    const [x1, y1, x2, y2] = [ring[i], ring[i + 1], ring[j], ring[j + 1]];
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) within = !within;
  }
  return within;
}

/** A mask that the API returned, with its outline, which is traced when it is first needed. */
export class Mask {
  #path = null;
  #rings = null;

  /** found: one of a job's `inline.masks`, or an annotation of its coco.json. */
  constructor(found) {
    this.rle = found.segmentation;
    this.area = found.area;
    this.bbox = found.bbox.map(Math.round);
    this.score = found.predicted_iou;
    this.stability = found.stability_score;
    this.candidate = found.candidate ?? null;
  }

  get rings() {
    this.#rings ??= this.area ? tracedRings(pixelsOf(this.rle, this.bbox), this.bbox[2], this.bbox[3], this.bbox[0], this.bbox[1]) : [];
    return this.#rings;
  }

  /** The outline, to be filled by the even-odd rule. */
  get path() {
    if (this.#path === null) {
      this.#path = new Path2D();
      for (const ring of this.rings) {
        this.#path.moveTo(ring[0], ring[1]);
        for (let i = 2; i < ring.length; i += 2) this.#path.lineTo(ring[i], ring[i + 1]);
        this.#path.closePath();
      }
    }
    return this.#path;
  }

  /** Whether a point of the picture is inside. */
  holds(x, y, context) {
    const [left, top, width, height] = this.bbox;
    return x >= left && y >= top && x < left + width && y < top + height && context.isPointInPath(this.path, x, y, "evenodd");
  }
}
