/**
 * What is shown, as files: COCO, PNGs, a label map, an overlay, SVG and GeoJSON.
 *
 * A shown mask is {mask, label, colour}; they are numbered from 1 in their order.  The formats are those that the
 * service writes itself (docs/outputs.md).
 */
import { greyPng, zip } from "./bytes.js";
import { pixelsOf, polygonsOf } from "./masks.js";

/** The most that a canvas takes on a side, in all browsers. */
const MAX_CANVAS = 8192;

export const FORMATS = {
  coco: { label: "COCO", detail: "JSON with run-length masks and scores", name: "coco.json", write: coco },
  png: { label: "PNGs", detail: "one black and white image per mask, in a ZIP", name: "masks.zip", write: pngs },
  labels: { label: "Label map", detail: "one 16-bit PNG of the masks' numbers", name: "label_map.png", write: labelMap },
  overlay: { label: "Overlay", detail: "the picture as it is shown", name: "overlay.png", write: overlay },
  svg: { label: "SVG", detail: "one path per mask", name: "masks.svg", write: svg },
  geojson: { label: "GeoJSON", detail: "polygons with holes, in pixels", name: "masks.geojson", write: geojson },
};

function json(value, type = "application/json") {
  return new Blob([JSON.stringify(value)], { type });
}

function coco({ size: [width, height], name, shown }) {
  return json({
    info: { description: "Made in the maskfleet playground" },
    licenses: [],
    images: [{ id: 1, file_name: name, width, height }],
    categories: [{ id: 1, name: "object" }],
    annotations: shown.map(({ mask }, number) => ({
      id: number + 1,
      image_id: 1,
      category_id: 1,
      iscrowd: 0,
      segmentation: mask.rle,
      area: mask.area,
      bbox: mask.bbox,
      predicted_iou: mask.score,
      score: mask.score,
      stability_score: mask.stability,
    })),
  });
}

async function pngs({ size: [width, height], shown }) {
  const stride = Math.ceil(width / 8);
  const files = [];
  for (const [number, { mask }] of shown.entries()) {
    const rows = new Uint8Array(stride * height);
    eachPixel(mask, (x, y) => {
      rows[y * stride + (x >> 3)] |= 0x80 >> (x & 7);
    });
    const png = await greyPng(width, height, 1, rows);
    files.push([`masks/${String(number).padStart(4, "0")}.png`, new Uint8Array(await png.arrayBuffer())]);
  }
  return zip(files);
}

async function labelMap({ size: [width, height], shown }) {
  const rows = new Uint8Array(2 * width * height);
  // Where masks overlap, the smaller one is on top; of two of the same area, the later one.
  const order = shown.map(({ mask }, number) => ({ mask, id: number + 1 })).sort((one, other) => other.mask.area - one.mask.area);
  for (const { mask, id } of order) {
    eachPixel(mask, (x, y) => {
      rows[2 * (y * width + x)] = id >> 8;
      rows[2 * (y * width + x) + 1] = id & 0xff;
    });
  }
  return greyPng(width, height, 16, rows);
}

function eachPixel(mask, visit) {
  if (!mask.area) return;
  const [left, top, width, height] = mask.bbox;
  const pixels = pixelsOf(mask.rle, mask.bbox);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) if (pixels[y * width + x]) visit(left + x, top + y);
}

function overlay({ size: [width, height], picture, shown, opacity }) {
  const scale = Math.min(1, MAX_CANVAS / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  if (picture) pen.drawImage(picture, 0, 0, width, height);
  paintMasks(pen, shown, opacity, Math.max(width, height) / 1000);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

const kept = new WeakMap();

/** Return two clear canvases to paint on first, of the size of a pen's own; they are kept for each pen. */
function layersOf(pen) {
  const { width, height } = pen.canvas;
  let layers = kept.get(pen);
  if (layers?.[0].canvas.width !== width || layers[0].canvas.height !== height) {
    layers = [0, 1].map(() => new OffscreenCanvas(width, height).getContext("2d"));
    kept.set(pen, layers);
  }
  for (const layer of layers) {
    layer.resetTransform();
    layer.clearRect(0, 0, width, height);
    layer.setTransform(pen.getTransform());
  }
  return layers;
}

/**
 * Fill masks and draw their outlines.  line: the outlines' width, in pixels of the picture.
 *
 * Where masks overlap, the smaller one is on top, and nothing of the larger one shines through.
 */
export function paintMasks(pen, shown, opacity, line) {
  if (!shown.length || !opacity) return;
  const [areas, edges] = layersOf(pen);
  edges.lineWidth = line;
  for (const { mask, colour } of [...shown].sort((one, other) => other.mask.area - one.mask.area)) {
    areas.fillStyle = edges.strokeStyle = colour;
    areas.fill(mask.path, "evenodd");
    edges.globalCompositeOperation = "destination-out";
    edges.fill(mask.path, "evenodd");
    edges.globalCompositeOperation = "source-over";
    edges.stroke(mask.path);
  }
  pen.save();
  pen.resetTransform();
  pen.globalAlpha = opacity;
  pen.drawImage(areas.canvas, 0, 0);
  pen.globalAlpha = Math.min(1, opacity + 0.35);
  pen.drawImage(edges.canvas, 0, 0);
  pen.restore();
}

function svg({ size: [width, height], shown, opacity }) {
  const paths = [...shown]
    .sort((one, other) => other.mask.area - one.mask.area)
    .map(({ mask, label, colour }) => {
      const outline = mask.rings.map((ring) => `M${pairs(ring).map((pair) => pair.join(" ")).join("L")}Z`).join("");
      return `<path fill="${colour}" fill-opacity="${opacity}" fill-rule="evenodd" d="${outline}"><title>${label}</title></path>`;
    });
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">`;
  return new Blob([`${head}\n${paths.join("\n")}\n</svg>\n`], { type: "image/svg+xml" });
}

function geojson({ shown }) {
  const features = shown.map(({ mask, label }, number) => ({
    type: "Feature",
    id: number + 1,
    properties: { label, area: mask.area, predicted_iou: mask.score, stability_score: mask.stability },
    geometry: {
      type: "MultiPolygon",
      coordinates: polygonsOf(mask.rings).map((polygon) => polygon.map((ring) => [...pairs(ring), [ring[0], ring[1]]])),
    },
  }));
  return json({ type: "FeatureCollection", features }, "application/geo+json");
}

function pairs(ring) {
  return Array.from({ length: ring.length / 2 }, (_, i) => [ring[2 * i], ring[2 * i + 1]]);
}

/** Hand a file to the user. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
