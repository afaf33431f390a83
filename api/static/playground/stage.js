/** The picture with its masks, points and boxes: drawn on a canvas, and clicked, dragged on or steered by keys. */
import { asScore, inPixels } from "./dom.js";
import { paintMasks } from "./files.js";

/** How far a pointer moves, in CSS pixels, before a click becomes a box. */
const DRAG_PX = 6;
/** How far an arrow key moves the crosshair, as a share of the picture's longer side; with Shift, ten times as far. */
const STEP = 0.005;

export class Stage {
  #canvas;
  #tip;
  #pen;
  #on;
  #scene = { size: [0, 0], picture: null, shown: [], objects: [], current: null, opacity: 0.5, tinted: false, tool: "add", marked: null };
  #fit = { scale: 1, left: 0, top: 0 };
  #press = null;
  #box = null; // being drawn: its two corners
  #cross = null;
  #hovered = null;
  #waiting = false;

  /** on: {point(x, y, label), box(xyxy), hover(key or null), say(text)}. */
  constructor(canvas, tip, on) {
    this.#canvas = canvas;
    this.#tip = tip;
    this.#pen = canvas.getContext("2d");
    this.#on = on;
    new ResizeObserver(() => this.#drawSoon()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", () => this.#release());
    canvas.addEventListener("pointerleave", () => this.#press || this.#hover(null));
    canvas.addEventListener("contextmenu", (event) => this.#menu(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#steer(null));
  }

  /** Show a scene; what is left out stays as it is. */
  show(scene) {
    Object.assign(this.#scene, scene);
    // A finger scrolls the page, except where it draws a box.
    this.#canvas.style.touchAction = this.#scene.tool === "box" ? "none" : "pan-y pinch-zoom";
    if (this.#hovered && !this.#scene.shown.some(({ key }) => key === this.#hovered)) this.#hover(null);
    if (this.#cross && scene.shown) this.#steer(this.#cross); // there may be a mask under it now
    this.#drawSoon();
  }

  get hovered() {
    return this.#hovered;
  }

  /** Light a mask, as when the pointer is on it. */
  light(key) {
    this.#hovered = key;
    this.#drawSoon();
  }

  #drawSoon() {
    if (this.#waiting) return;
    this.#waiting = true;
    requestAnimationFrame(() => {
      this.#waiting = false;
      this.#draw();
    });
  }

  #draw() {
    const { clientWidth, clientHeight } = this.#canvas;
    const density = window.devicePixelRatio || 1;
    const [width, height] = this.#scene.size;
    if (this.#canvas.width !== Math.round(clientWidth * density)) this.#canvas.width = Math.round(clientWidth * density);
    if (this.#canvas.height !== Math.round(clientHeight * density)) this.#canvas.height = Math.round(clientHeight * density);
    const pen = this.#pen;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (!width || !clientWidth) return;
    const scale = Math.min(clientWidth / width, clientHeight / height);
    // What is drawn on the picture is as large as the page's text is, relative to a usual screen's.
    const pixel = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16 / scale;
    this.#fit = { scale, left: (clientWidth - width * scale) / 2, top: (clientHeight - height * scale) / 2 };
    pen.setTransform(density * scale, 0, 0, density * scale, density * this.#fit.left, density * this.#fit.top);
    if (this.#scene.picture) pen.drawImage(this.#scene.picture, 0, 0, width, height);
    else {
      pen.fillStyle = "#808890";
      pen.fillRect(0, 0, width, height);
    }
    const { shown, opacity, tinted, marked } = this.#scene;
    const lit = shown.find(({ key }) => key === this.#hovered);
    const dimmed = lit ? 0.55 : 1; // the others, while one is pointed at
    // In a picture that is a job's overlay the masks are coloured already.
    if (!tinted) paintMasks(pen, shown.filter((one) => one !== lit), opacity * dimmed, 1.25 * pixel);
    if (lit) {
      paintMasks(pen, [lit], Math.min(1, opacity + 0.15), 1.25 * pixel);
      this.#outline(lit.mask.path, 2 * pixel);
    }
    const chosen = shown.find((one) => one.key === marked && one !== lit);
    if (chosen) this.#outline(chosen.mask.path, 1.5 * pixel);
    for (const object of this.#scene.objects) this.#prompts(object, object.id === this.#scene.current, pixel);
    if (this.#box) this.#rectangle(this.#box, pixel);
    if (this.#cross) this.#crosshair(this.#cross, pixel);
  }

  #outline(path, line) {
    for (const [colour, width] of [["rgb(0 0 0 / 0.55)", 2.2 * line], ["#fff", line]]) {
      this.#pen.strokeStyle = colour;
      this.#pen.lineWidth = width;
      this.#pen.stroke(path);
    }
  }

  #prompts({ box, points }, current, pixel) {
    const pen = this.#pen;
    pen.globalAlpha = current ? 1 : 0.55;
    if (box) this.#rectangle([[box[0], box[1]], [box[2], box[3]]], pixel);
    for (const [x, y, label] of points) {
      const radius = 7 * pixel;
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.fillStyle = label ? "#0a7d3c" : "#c62828";
      pen.fill();
      pen.lineWidth = 2 * pixel;
      pen.strokeStyle = "#fff";
      pen.stroke();
      pen.beginPath(); // a plus or a minus, so that colour alone does not tell
      pen.moveTo(x - radius / 2, y);
      pen.lineTo(x + radius / 2, y);
      if (label) {
        pen.moveTo(x, y - radius / 2);
        pen.lineTo(x, y + radius / 2);
      }
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }

  #rectangle([[x0, y0], [x1, y1]], pixel) {
    const path = new Path2D();
    path.rect(x0, y0, x1 - x0, y1 - y0);
    this.#outline(path, 1.5 * pixel);
  }

  #crosshair([x, y], pixel) {
    const path = new Path2D();
    const arm = 14 * pixel;
    const gap = 4 * pixel;
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      path.moveTo(x + dx * gap, y + dy * gap);
      path.lineTo(x + dx * arm, y + dy * arm);
    }
    this.#outline(path, 2 * pixel);
  }

  /** Return where an event is on the picture, or null. */
  #at(event, clamp = false) {
    const [width, height] = this.#scene.size;
    const bounds = this.#canvas.getBoundingClientRect();
    const x = (event.clientX - bounds.left - this.#fit.left) / this.#fit.scale;
    const y = (event.clientY - bounds.top - this.#fit.top) / this.#fit.scale;
    if (!width || (!clamp && (x < 0 || y < 0 || x > width || y > height))) return null;
    return [rounded(Math.max(0, Math.min(width, x))), rounded(Math.max(0, Math.min(height, y)))];
  }

  #down(event) {
    const at = this.#at(event);
    if (event.button !== 0 || !at) return;
    this.#press = { at, x: event.clientX, y: event.clientY, negative: event.shiftKey || this.#scene.tool === "remove" };
    this.#canvas.setPointerCapture(event.pointerId);
  }

  #move(event) {
    const press = this.#press;
    if (!press) {
      const at = this.#at(event);
      this.#hover(at ? this.#maskAt(at) : null, event);
      return;
    }
    const moved = Math.hypot(event.clientX - press.x, event.clientY - press.y);
    // A finger draws boxes with the tool for them only; otherwise it scrolls.
    if (!this.#box && (moved < DRAG_PX || (event.pointerType === "touch" && this.#scene.tool !== "box"))) return;
    this.#box = [press.at, this.#at(event, true)];
    this.#drawSoon();
  }

  #up(event) {
    const press = this.#press;
    const box = this.#box;
    this.#release();
    if (!press) return;
    if (box) this.#finish(box);
    else if (Math.hypot(event.clientX - press.x, event.clientY - press.y) < DRAG_PX) {
      this.#on.point(...press.at, press.negative ? 0 : 1);
    }
  }

  #release() {
    this.#press = null;
    this.#box = null;
    this.#drawSoon();
  }

  #finish([[x0, y0], [x1, y1]]) {
    const box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
    if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) this.#on.box(box);
  }

  #menu(event) {
    event.preventDefault();
    this.#release(); // after a long press: the finger's own click is not meant
    const at = this.#at(event);
    if (at) this.#on.point(...at, 0);
  }

  #key(event) {
    const [width, height] = this.#scene.size;
    if (!width || event.ctrlKey || event.metaKey || event.altKey) return;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) {
      const far = STEP * Math.max(width, height) * (event.shiftKey ? 10 : 1);
      const [x, y] = this.#cross ?? [width / 2, height / 2];
      const moved = this.#cross ? [x + way[0] * far, y + way[1] * far] : [x, y];
      this.#steer([rounded(Math.max(0, Math.min(width, moved[0]))), rounded(Math.max(0, Math.min(height, moved[1])))]);
    } else if (event.key === "Enter" || event.key === " ") {
      if (!this.#cross) this.#steer([width / 2, height / 2]);
      if (this.#box) this.#endBox();
      else if (this.#scene.tool === "box") this.#beginBox();
      else this.#on.point(...this.#cross, event.shiftKey || this.#scene.tool === "remove" ? 0 : 1);
    } else if (event.key === "Escape" && this.#box) {
      this.#release();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #beginBox() {
    this.#box = [this.#cross, this.#cross];
    this.#on.say("First corner set. Move to the opposite corner and press Enter, or Escape to leave it.");
  }

  #endBox() {
    const box = this.#box;
    this.#release();
    this.#finish(box);
  }

  #steer(at) {
    this.#cross = at;
    if (at && this.#box) this.#box = [this.#box[0], at];
    if (!at) this.#release();
    const key = at ? this.#maskAt(at) : null;
    const bounds = this.#canvas.getBoundingClientRect();
    const { scale, left, top } = this.#fit;
    this.#hover(key, at && { clientX: bounds.left + left + at[0] * scale, clientY: bounds.top + top + at[1] * scale });
    if (at) {
      const found = this.#scene.shown.find((shown) => shown.key === key);
      this.#on.say(`${Math.round(at[0])}, ${Math.round(at[1])}${found ? `: ${describe(found)}` : ""}`);
    }
    this.#drawSoon();
  }

  /** Return the key of the smallest mask at a point. */
  #maskAt([x, y]) {
    const pen = this.#pen;
    pen.save();
    pen.setTransform(1, 0, 0, 1, 0, 0);
    const hits = this.#scene.shown.filter(({ mask }) => mask.holds(x, y, pen));
    pen.restore();
    return hits.reduce((least, hit) => (least && least.mask.area <= hit.mask.area ? least : hit), null)?.key ?? null;
  }

  #hover(key, at = null) {
    if (key !== this.#hovered) {
      this.#hovered = key;
      this.#on.hover(key);
      this.#drawSoon();
    }
    const found = key && at && this.#scene.shown.find((shown) => shown.key === key);
    this.#tip.hidden = !found;
    if (!found) return;
    this.#tip.textContent = describe(found);
    const frame = this.#tip.offsetParent.getBoundingClientRect();
    const room = frame.width - this.#tip.offsetWidth - 8;
    const x = Math.max(8, Math.min(room, at.clientX - frame.left + 14));
    const y = Math.max(8, Math.min(frame.height - this.#tip.offsetHeight - 8, at.clientY - frame.top + 18));
    this.#tip.style.transform = `translate(${x}px, ${y}px)`;
  }
}

export function describe({ label, mask }) {
  return `${label} · score ${asScore(mask.score)} · stability ${asScore(mask.stability)} · ${inPixels(mask.area)}`;
}

const rounded = (value) => Math.round(value * 10) / 10;
