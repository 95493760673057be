"use strict";
// The page: pictures in, maps out, and a closer look at every number.

const content = JSON.parse(document.getElementById("content").textContent);
const { layers, classes, channels, mean, std } = content;
const [HEIGHT, WIDTH] = content.size;
const weights = decodeFloats(document.getElementById("weights").textContent);
const original = weights.slice();
const last = layers.length - 1;
const byId = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Make an element: make("p", { class: "soft" }, "text", child, …). */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A number as people read it, with a true minus. */
function show(value, digits = 3) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  const text = size >= 10000 || (size && size < 0.5 * 10 ** -digits) ? value.toExponential(1) : value.toFixed(size >= 100 ? 1 : digits);
  return text.replace(/-/g, "−");
}
/** The same in a cell of a table. */
const short = (value) => value.toFixed(Math.abs(value) < 10 ? 2 : Math.abs(value) < 100 ? 1 : 0).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");
const percent = (share) => (share > 0.9995 && share < 1 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`);

// ---- Colours: blue below 0, orange above, and 0 is the ground ----------------------------------------------------------

const SCALES = {
  light: [[0, 68, 120], [0, 114, 178], [122, 182, 220], [250, 250, 250], [240, 170, 110], [213, 94, 0], [140, 50, 0]],
  dark: [[190, 226, 250], [86, 180, 233], [28, 88, 128], [20, 22, 27], [130, 82, 12], [230, 159, 0], [255, 226, 160]],
};
let theme = "light", lookup = null, lookup32 = null;

function setTheme(name) {
  theme = name;
  document.documentElement.dataset.theme = name;
  const stops = SCALES[name], bytes = new Uint8ClampedArray(256 * 4);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(at));
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = stops[low][c] + (stops[low + 1][c] - stops[low][c]) * (at - low);
    bytes[4 * i + 3] = 255;
  }
  lookup = bytes;
  lookup32 = new Uint32Array(bytes.buffer);
  byId("theme").setAttribute("aria-pressed", String(name === "dark"));
}
const level = (value, limit) => Math.max(0, Math.min(255, Math.round((value / limit) * 127.5 + 127.5)));

/** Background and a readable ink for a number. */
function tint(value, limit) {
  const i = 4 * level(value, limit || 1), [r, g, b] = lookup.subarray(i, i + 3);
  const linear = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return `background:rgb(${r},${g},${b});color:${light > 0.18 ? "#000" : "#fff"}`;
}

function largest(values) {
  let found = 0;
  for (let i = 0; i < values.length; i++) found = Math.max(found, Math.abs(values[i]));
  return found || 1;
}

/** What the strongest colours stand for: all but the few largest numbers, which would make the others pale. */
function contrast(values) {
  const sample = [], stride = Math.max(1, Math.floor(values.length / 4096));
  for (let i = 0; i < values.length; i += stride) sample.push(Math.abs(values[i]));
  sample.sort((a, b) => a - b);
  const most = largest(values), usual = sample[Math.floor(0.985 * (sample.length - 1))];
  return usual > 0.05 * most ? usual : most;
}

/** A picture of numbers, one pixel each. */
function paint(values, width, height, limit) {
  const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = lookup32[level(values[i], limit)];
  return image;
}

function canvasOf(image, scale, label) {
  const canvas = make("canvas", { width: image.width, height: image.height, role: "img", "aria-label": label });
  canvas.style.cssText = `width:${image.width * scale}px;height:${image.height * scale}px`;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// ---- The net: in a worker, so that the page stays alive ----------------------------------------------------------------

let values = [], logits = null, before = null, edited = new Set();
const timings = { answers: [], maps: [] };
const net = { busy: false, waiting: null, undrawn: null, post: null };

function startNet() {
  const receive = (data) => {
    net.busy = false;
    values.length = data.first;
    values.push(...data.values);
    if (data.before) before = softmax(data.before);
    const { started } = net.current;
    answered();
    if (started) {
      timings.answers.push(performance.now() - started);
      byId("timing").textContent = `Answered in ${Math.max(1, Math.round(timings.answers.at(-1)))} ms.`;
    }
    const first = Math.min(net.undrawn ?? Infinity, data.first);
    if (net.undrawn === null) {
      // The answer is seen first, and the maps with the next frame.
      requestAnimationFrame(() => setTimeout(() => {
        drawFrom(net.undrawn);
        net.undrawn = null;
        if (started) timings.maps.push(performance.now() - started);
      }));
    }
    net.undrawn = first;
    if (net.waiting) ask(net.waiting);
  };
  const hello = { layers, weights };
  const stayHere = () => {
    // No worker here: the same work, on the page's own thread, with weights of its own as a worker has them.
    const scope = { postMessage: receive };
    serve(scope);
    net.post = (message) => setTimeout(() => scope.onmessage({ data: message }));
    net.post({ ...hello, weights: weights.slice() });
  };
  try {
    const blob = new Blob([byId("engine").textContent, "\nserve(self);"], { type: "text/javascript" });
    const worker = new Worker(URL.createObjectURL(blob));
    worker.onmessage = ({ data }) => receive(data);
    worker.onerror = () => {
      stayHere();
      net.busy = false;
      if (net.current) ask(net.current);
    };
    net.post = (message) => worker.postMessage(message);
    net.post(hello);
  } catch {
    stayHere();
  }
}

/** Ask the net for the answer to a picture, or for that of the present one from layer `first` on. */
function ask(request) {
  if (net.busy) {
    // The newest picture is what counts, and no layer that has changed is left out.
    const first = Math.min(request.first ?? Infinity, net.waiting?.first ?? Infinity);
    net.waiting = { ...(net.waiting || {}), ...request, ...(Number.isFinite(first) ? { first } : {}) };
    return;
  }
  net.busy = true;
  net.waiting = null;
  net.current = request;
  net.post({ input: request.input, first: request.first, compare: edited.size > 0 });
}

/** A promise that is kept as soon as nothing is being computed. */
async function settled() {
  while (net.busy || net.waiting || net.undrawn !== null) await pause(2);
}

function setWeights(at, numbers) {
  weights.set(numbers, at);
  net.post({ set: { at, numbers: Float32Array.from(numbers) } });
}

// ---- Pictures ----------------------------------------------------------------------------------------------------------

const source = byId("source"), surface = source.getContext("2d", { willReadFrequently: true });
let planes = null;

/** Show bytes of the net's size, and ask for the answer. */
function present(bytes, words, started) {
  planes = bytes;
  byId("status").textContent = words;
  for (const button of byId("pictures").children) button.setAttribute("aria-pressed", String(button.title === words));
  ask({ input: normalise(bytes, mean, std), started });
}

function imageOf(bytes) {
  const image = new ImageData(WIDTH, HEIGHT), area = WIDTH * HEIGHT;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = bytes[(channels.length === 3 ? c : 0) * area + i];
    image.data[4 * i + 3] = 255;
  }
  return image;
}

function fill(image) {
  // Drawn through a canvas of its own size, since putImageData cannot scale.
  const small = make("canvas", { width: image.width, height: image.height });
  small.getContext("2d").putImageData(image, 0, 0);
  surface.imageSmoothingEnabled = false;
  surface.drawImage(small, 0, 0, source.width, source.height);
}

/** Shrink what a canvas shows, as `cifarnets.predict` shrinks a picture, and ask. */
function presentCanvas(context, words, started) {
  const { width, height } = context.canvas, { data } = context.getImageData(0, 0, width, height);
  present(shrink(data, width, height, WIDTH, HEIGHT, channels.length), words, started);
}

async function load(file, started = performance.now()) {
  stopWebcam();
  const asItIs = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, asItIs).catch(() => createImageBitmap(file)); // older browsers know no options
  } catch {
    byId("status").textContent = `${file.name || "This"} is no picture that this browser can read.`;
    return;
  }
  const { width, height } = bitmap;
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  surface.imageSmoothingEnabled = true;
  surface.drawImage(bitmap, 0, 0, source.width, source.height);
  presentCanvas(context, `${width} × ${height} pixels, shrunk to ${WIDTH} × ${HEIGHT}`, started);
}

function showDrawing(picture, started = performance.now()) {
  stopWebcam();
  const bytes = decodeBytes(picture.bytes);
  fill(imageOf(bytes));
  present(bytes, picture.name, started);
}

function addPictures() {
  for (const picture of content.pictures) {
    const canvas = make("canvas", { width: WIDTH, height: HEIGHT });
    canvas.getContext("2d").putImageData(imageOf(decodeBytes(picture.bytes)), 0, 0);
    const name = picture.name;
    byId("pictures").append(make("button", { type: "button", title: name, "aria-label": name, onclick: () => showDrawing(picture) }, canvas));
  }
  byId("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) load(target.files[0]);
    target.value = "";
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files[0]) load(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) load(file);
  });
}

const COLOURS = {
  white: "#ffffff", black: "#15171a", grey: "#8c9096", sky: "#6aaae4", sea: "#2f5f86", grass: "#5f8f4a", red: "#c8261f",
  orange: "#e69f00", yellow: "#f0e442", brown: "#8a5a2b",
};

function addDrawing() {
  let colour = COLOURS.white, point = null, queued = false;
  const toggle = byId("draw");
  const refresh = () => {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      presentCanvas(surface, "Your drawing");
    });
  };
  toggle.addEventListener("click", () => {
    stopWebcam();
    const on = byId("tools").hidden;
    byId("tools").hidden = !on;
    toggle.setAttribute("aria-pressed", String(on));
    source.classList.toggle("drawing", on);
    if (on) byId("status").textContent = "Draw on the picture with a finger, a pen or the mouse.";
  });
  for (const [name, value] of Object.entries(COLOURS)) {
    const button = make("button", { type: "button", "aria-label": name, title: name, "aria-pressed": name === "white", style: `--colour:${value}` });
    button.addEventListener("click", () => {
      colour = value;
      for (const other of byId("colours").children) other.setAttribute("aria-pressed", String(other === button));
    });
    button.setAttribute("aria-pressed", String(name === "white"));
    byId("colours").append(button);
  }
  byId("blank").addEventListener("click", () => {
    surface.fillStyle = colour;
    surface.fillRect(0, 0, source.width, source.height);
    refresh();
  });
  const at = (event) => {
    const box = source.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * source.width, ((event.clientY - box.top) / box.height) * source.height];
  };
  const stroke = (event) => {
    const to = at(event);
    Object.assign(surface, { strokeStyle: colour, lineWidth: Number(byId("brush").value), lineCap: "round", lineJoin: "round" });
    surface.beginPath();
    surface.moveTo(...point);
    surface.lineTo(to[0], to[1] + 0.01); // a line without length is not drawn
    surface.stroke();
    point = to;
    refresh();
  };
  source.addEventListener("pointerdown", (event) => {
    if (!source.classList.contains("drawing")) return;
    source.setPointerCapture(event.pointerId);
    point = at(event);
    stroke(event);
  });
  source.addEventListener("pointermove", (event) => point && stroke(event));
  for (const end of ["pointerup", "pointercancel"]) source.addEventListener(end, () => (point = null));
}

let camera = null;

function stopWebcam() {
  if (!camera) return;
  for (const track of camera.stream.getTracks()) track.stop();
  camera = null;
  byId("webcam").setAttribute("aria-pressed", "false");
  byId("webcam").textContent = "Webcam";
}

async function toggleWebcam() {
  if (camera) return stopWebcam();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
    const video = make("video", { muted: true, playsinline: true });
    video.srcObject = stream;
    camera = { stream, video };
    await video.play();
  } catch (error) {
    stopWebcam();
    byId("status").textContent = `No webcam: ${error.message}.`;
    return;
  }
  byId("webcam").setAttribute("aria-pressed", "true");
  byId("webcam").textContent = "Stop";
  let latest = 0;
  const frame = (time) => {
    if (!camera) return;
    const { video } = camera, side = Math.min(video.videoWidth, video.videoHeight);
    if (side && !net.busy && time - latest > 80) {
      latest = time;
      surface.imageSmoothingEnabled = true;
      surface.drawImage(video, (video.videoWidth - side) / 2, (video.videoHeight - side) / 2, side, side, 0, 0, source.width, source.height);
      presentCanvas(surface, "The webcam, its middle square");
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

// ---- The answer --------------------------------------------------------------------------------------------------------

function answered() {
  logits = values[last];
  const shares = softmax(logits);
  if (!edited.size) before = shares;
  const order = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a]);
  byId("answer").replaceChildren(...order.slice(0, 10).map((i) => make("li", { "data-class": classes[i], "data-logit": logits[i] },
    make("span", { class: "name" }, classes[i]), make("span", { class: "share" }, percent(shares[i])), track(shares[i], edited.size ? before[i] : null))));
  if (edited.size) byId("answer").append(make("li", {}, make("span", { class: "changed" }, "The dark mark: before you changed a kernel.")));
  drawSoftmax(shares);
}

function drawFrom(first) {
  for (const view of views) if (view.number >= first) view.dirty = true;
  drawVisible();
  refreshPanel();
}

function track(share, ghost) {
  const parts = [make("i", { style: `width:${100 * share}%` })];
  if (ghost !== null) parts.push(make("b", { style: `left:${Math.min(99.5, 100 * ghost)}%` }));
  return make("span", { class: "track" }, ...parts);
}

// ---- Layers and their maps ---------------------------------------------------------------------------------------------

const views = [], viewOf = [];
const THIN = ["reshape"];
const MARGIN = 4; // around the maps, for the frames of pixels at their border; as in the style sheet

function addLayers() {
  // Nets of millions of numbers are drawn where one looks, others at once.
  const small = layers.reduce((sum, layer) => sum + sizeOf(layer.shape), 0) < 2e6;
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) viewOf[entry.target.dataset.layer].visible = small || entry.isIntersecting;
    drawVisible();
  }, { rootMargin: "300px" });
  layers.forEach((layer, number) => {
    const thin = THIN.includes(layer.op);
    const shape = layer.shape.join(" × ");
    const head = make("header", {}, make("h3", {}, layer.name), make("p", {}, layer.words), make("span", { class: "shape" }, shape));
    if (layer.op === "conv") {
      head.append(make("span", { class: "edited", hidden: true }, "changed"));
      head.append(make("button", { type: "button", onclick: () => openKernel(number, 0, 0) }, "Kernels"));
    }
    const others = layer.from.filter((from) => from !== number - 1);
    if (others.length) head.querySelector("p").append(` (takes ${layer.from.map((from) => layers[from].name).join(" and ")})`);
    const card = make("section", { class: `layer${thin ? " thin" : ""}`, id: `layer-${number}`, "data-layer": number, "aria-label": layer.name }, head);
    byId("layers").append(card);
    if (thin) {
      viewOf[number] = { number, card };
      return;
    }
    const canvas = make("canvas", { class: "values", tabindex: 0, role: "application", "aria-label": `Maps of ${layer.name}, ${shape}. Arrow keys move over a map, Page Up and Page Down change the map.` });
    const over = make("canvas", { class: "over", "aria-hidden": "true" });
    const maps = make("div", { class: "maps" }, canvas, over);
    const legend = make("p", { class: "legend" });
    if (number === 0) {
      const small = make("canvas", { id: "shrunk", width: WIDTH, height: HEIGHT, role: "img", "aria-label": "The picture as the net sees it" });
      card.append(make("div", { class: "both" },
        make("figure", {}, small, make("figcaption", {}, `${WIDTH} × ${HEIGHT} pixels`)),
        make("figure", {}, maps, make("figcaption", {}, `${channels.join(", ")}: minus the mean of the training pictures, divided by their spread`))), legend);
    } else card.append(maps, legend);
    const view = { number, layer, card, canvas, over, legend, dirty: true, visible: small, height: 1, width: 1 };
    [view.height, view.width] = mapSize(layer.shape);
    views.push(view);
    viewOf[number] = view;
    addPointing(view);
    watcher.observe(card);
  });
  views.forEach(fit);
  byId("layers").append(make("section", { class: "layer", id: "softmax", "aria-label": "softmax" },
    make("header", {}, make("h3", {}, "softmax"), make("p", {}, "Powers of e, divided by their sum: numbers become probabilities")),
    make("table", { class: "softmax" }, make("thead", {}, make("tr", {}, ...["class", "logit", "e to the logit", "probability", ""].map((word) => make("th", { scope: "col" }, word)))), make("tbody", { id: "softmax-rows" }))));
}

/** How large the pixels of a layer are shown, and how many maps stand side by side. */
function arrange(view) {
  const count = view.layer.shape[0], phone = innerWidth < 720, all = byId("layers").clientWidth - (phone ? 28 : 34);
  const room = view.number === 0 && !phone ? all - 112 : all; // beside the picture
  let target = count <= 8 ? 128 : count <= 16 ? 96 : count <= 32 ? 72 : count <= 64 ? 60 : 36;
  if (all < 720) target *= 2 / 3;
  let gap = 4;
  if (view.height * view.width === 1) {
    target = count <= 16 ? 34 : count <= 64 ? 22 : count <= 256 ? 14 : 9;
    gap = count <= 64 ? 3 : 1;
  }
  const side = Math.max(view.height, view.width);
  const scale = Math.max(1, Math.min(Math.round(target / side), Math.floor(room / view.width)));
  const columns = Math.max(1, Math.min(count, Math.floor((room + gap) / (view.width * scale + gap))));
  const even = Math.ceil(count / Math.ceil(count / columns)); // rows of equal length
  Object.assign(view, { scale, gap, columns: count % even ? columns : even, count });
  view.stepX = view.width * scale + gap;
  view.stepY = view.height * scale + gap;
}

/** Give the canvases of a layer their size, so that nothing moves when they are drawn. */
function fit(view) {
  arrange(view);
  const { canvas, over, columns, stepX, stepY, gap, count } = view, density = Math.min(2, devicePixelRatio || 1);
  view.full = [columns * stepX - gap, Math.ceil(count / columns) * stepY - gap];
  view.density = density;
  for (const [part, margin] of [[canvas, 0], [over, MARGIN]]) {
    const [wide, high] = view.full.map((side) => side + 2 * margin);
    part.width = Math.round(wide * density);
    part.height = Math.round(high * density);
    part.style.cssText = `width:${wide}px;height:${high}px`;
  }
}

function drawVisible() {
  for (const view of views) if (view.visible && view.dirty && values[view.number]) draw(view);
}

/** Draw the maps of a layer; `shown` numbers of each map, where an animation is not through yet. */
function draw(view, shown = Infinity) {
  view.dirty = false;
  const { canvas, number, count, full, density, scale, height, width } = view;
  // A changed kernel leaves the scale as it was, so that all other maps look as before.
  const numbers = values[number], limit = (view.limit = (edited.size && view.limit) || contrast(numbers));
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, ...full);
  context.imageSmoothingEnabled = false;
  const atlas = make("canvas", { width, height: height * count });
  atlas.getContext("2d").putImageData(paint(numbers, width, height * count, limit), 0, 0);
  for (let c = 0; c < count; c++) {
    const [x, y] = corner(view, c);
    context.drawImage(atlas, 0, c * height, width, height, x, y, width * scale, height * scale);
    if (shown < height * width) {
      const row = Math.floor(shown / width), column = shown % width;
      context.clearRect(x + column * scale, y + row * scale, (width - column) * scale, scale);
      context.clearRect(x, y + (row + 1) * scale, width * scale, (height - row - 1) * scale);
    }
  }
  if (number === 0) byId("shrunk").getContext("2d").putImageData(imageOf(planes), 0, 0);
  const half = lookup, stops = [0, 64, 128, 191, 255].map((i) => `rgb(${half[4 * i]},${half[4 * i + 1]},${half[4 * i + 2]})`);
  const [below, above] = largest(numbers) > limit ? ["≤ ", "≥ "] : ["", ""];
  view.legend.replaceChildren(below + show(-limit, 2), make("i", { style: `background:linear-gradient(90deg,${stops.join(",")})` }), above + show(limit, 2));
  mark(view);
}

const corner = (view, channel) => [(channel % view.columns) * view.stepX, Math.floor(channel / view.columns) * view.stepY];

/** Frames around the chosen number and around what it was made of. */
function mark(view) {
  const context = view.over.getContext("2d"), { density } = view;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, view.over.width, view.over.height);
  context.setTransform(density, 0, 0, density, MARGIN * density, MARGIN * density);
  const found = panel.tab === "number" ? panel.look : null;
  if (!found) return;
  const frames = [];
  if (found.layer === view.number) frames.push([found.channel, found.y, found.x, 1, 1]);
  for (const box of found.boxes) {
    if (resolve(box.layer) !== view.number) continue;
    if (box.whole) {
      for (let c = 0; c < (view.height * view.width > 1 ? view.count : 0); c++) frames.push([c, 0, 0, view.height, view.width]);
      continue;
    }
    for (let c = box.first; c < box.first + box.count; c++) frames.push([...across(box.layer, c, box.top, box.left), box.height, box.width]);
  }
  for (const [channel, top, left, height, width] of frames) {
    const [x, y] = corner(view, channel), s = view.scale;
    const around = [x + left * s - 1.5, y + top * s - 1.5, width * s + 3, height * s + 3];
    Object.assign(context, { lineWidth: 4, strokeStyle: theme === "dark" ? "#000" : "#fff" });
    context.strokeRect(...around);
    Object.assign(context, { lineWidth: 2, strokeStyle: theme === "dark" ? "#fff" : "#000" });
    context.strokeRect(...around);
  }
}

/** The layer that shows the numbers of another which only gives them a new shape. */
function resolve(number) {
  while (THIN.includes(layers[number].op)) number = layers[number].from[0];
  return number;
}

/** A place in a layer as a place in the one that shows it. */
function across(number, channel, y, x) {
  const shown = resolve(number);
  if (shown === number) return [channel, y, x];
  const [h, w] = mapSize(layers[number].shape), [height, width] = mapSize(layers[shown].shape);
  const index = (channel * h + y) * w + x;
  return [Math.floor(index / (height * width)), Math.floor((index % (height * width)) / width), index % width];
}

function addPointing(view) {
  const { canvas, number, height, width } = view;
  const find = (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const column = Math.floor(x / view.stepX), row = Math.floor(y / view.stepY), channel = row * view.columns + column;
    if (column < 0 || column >= view.columns || row < 0 || channel >= view.count) return null;
    // Between two maps, the nearest pixel.
    const px = Math.min(width - 1, Math.floor((x - column * view.stepX) / view.scale));
    const py = Math.min(height - 1, Math.floor((y - row * view.stepY) / view.scale));
    return (channel * height + py) * width + px;
  };
  canvas.addEventListener("pointermove", (event) => {
    const index = event.pointerType === "touch" || panel.pinned || playing ? null : find(event);
    if (index !== null && !(panel.look?.layer === number && panel.look.index === index && panel.tab === "number")) look(number, index, { quiet: true });
  });
  canvas.addEventListener("click", (event) => {
    const index = find(event);
    if (index === null) return;
    const again = panel.pinned && panel.look?.layer === number && panel.look.index === index;
    look(number, index, { pin: !again });
  });
  canvas.addEventListener("keydown", (event) => {
    const area = height * width, here = panel.look?.layer === number ? panel.look.index : 0;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width, PageUp: -area, PageDown: area, Home: -here, End: values[number].length - 1 - here, Enter: 0, " ": 0 };
    if (area === 1) [steps.ArrowUp, steps.ArrowDown] = [-view.columns, view.columns];
    if (!(event.key in steps)) return;
    event.preventDefault();
    look(number, Math.max(0, Math.min(values[number].length - 1, here + steps[event.key])), { pin: true });
  });
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible") && values[number] && panel.look?.layer !== number) look(number, 0, { pin: true });
  });
}

function drawSoftmax(shares) {
  const order = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a]);
  byId("softmax-rows").replaceChildren(...order.map((i) => make("tr", {},
    make("th", { scope: "row" }, classes[i]), make("td", {}, show(logits[i], 2)), make("td", {}, show(Math.exp(logits[i]), 2)),
    make("td", {}, percent(shares[i])), make("td", {}, track(shares[i], edited.size ? before[i] : null)))));
  const sum = logits.reduce((all, logit) => all + Math.exp(logit), 0);
  byId("softmax-rows").append(make("tr", { class: "all" }, make("th", { scope: "row" }, "together"), make("td", {}), make("td", {}, show(sum, 2)), make("td", {}, "100 %"), make("td", {})));
}

// ---- A closer look: one number, one kernel, two kernels ------------------------------------------------------------------

const panel = { look: null, pinned: false, tab: "number", kernel: null, compare: null };
const convolutions = layers.map((layer, number) => number).filter((number) => layers[number].op === "conv");

function look(number, index, { pin = panel.pinned, quiet = false } = {}) {
  panel.look = explain(layers, values, weights, number, index);
  panel.pinned = pin;
  if (panel.tab !== "number") selectTab("number");
  else refreshPanel();
  byId("panel").classList.add("open");
  if (pin && !playing) uncover(viewOf[number]);
  if (!quiet) byId("live").textContent = `${title(panel.look)}: ${show(panel.look.value)}`;
}

/** Whether the panel lies over the page, as on narrow screens. */
const overlaid = () => getComputedStyle(byId("panel")).position === "fixed";

/** On narrow screens the panel lies over the page: move what was chosen out from under it. */
function uncover(view) {
  if (!overlaid()) return;
  const [, y] = corner(view, panel.look.channel), top = view.canvas.getBoundingClientRect().top + y + panel.look.y * view.scale;
  const free = innerHeight - byId("panel").offsetHeight;
  if (top < 70 || top > free - 40) scrollBy({ top: top - free / 2, behavior: calm.matches ? "auto" : "smooth" });
}

const mapWord = (layer) => (layers[layer].shape.length === 1 ? "number" : layer === 0 ? "" : "map");
function sourceName(number, channel) {
  const shown = resolve(number);
  return shown === 0 && number === 0 ? channels[channel] : `${mapWord(number)} ${channel}`;
}
function title(found) {
  const layer = layers[found.layer], [height, width] = mapSize(layer.shape);
  const where = height * width > 1 ? `, row ${found.y}, column ${found.x}` : found.layer === last ? ` (${classes[found.channel]})` : "";
  return `${layer.name}, ${sourceName(found.layer, found.channel)}${where}`;
}

function selectTab(name) {
  panel.tab = name;
  for (const tab of ["number", "kernel", "compare"]) {
    byId(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
    byId(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
  }
  byId("view").setAttribute("aria-labelledby", `tab-${name}`);
  if (name !== "number") {
    const from = panel.look && layers[panel.look.layer].op === "conv" ? [panel.look.layer, panel.look.channel] : [convolutions[0], 0];
    panel.kernel ??= { layer: from[0], map: from[1], input: 0 };
    panel.compare ??= { layer: from[0], a: from[1], b: (from[1] + 1) % layers[from[0]].shape[0] };
  }
  refreshPanel();
}

function refreshPanel() {
  const view = byId("view");
  if (panel.look) panel.look = explain(layers, values, weights, panel.look.layer, panel.look.index);
  const key = panel.tab === "kernel" ? JSON.stringify(panel.kernel) : "";
  if (panel.tab === "number") view.replaceChildren(...numberView());
  else if (panel.tab === "compare") view.replaceChildren(...compareView());
  else {
    if (view.dataset.kernel !== key) view.replaceChildren(...kernelView());
    refreshKernel(); // in place, so that nothing loses its focus
  }
  view.dataset.kernel = key;
  views.forEach(mark);
}

/** A table of numbers on coloured ground; null is padding. */
function gridOf(numbers, columns, limit, label, best = -1) {
  const cell = columns <= 3 ? 31 : columns <= 5 ? 19 : Math.max(8, Math.floor(96 / columns)), digits = columns <= 3;
  const table = make("table", { class: "grid", "aria-label": label, style: `--cell:${cell}px;--size:${digits ? 11 : 0}px` });
  for (let at = 0; at < numbers.length; at += columns) {
    table.append(make("tr", {}, ...numbers.slice(at, at + columns).map((value, i) => (value === null
      ? make("td", { class: "outside", title: "padding: 0" })
      : make("td", { style: tint(value, limit), title: show(value, 4), class: at + i === best ? "best" : undefined }, digits ? short(value) : "")))));
  }
  return table;
}

const sign = (text) => make("span", { class: "op", "aria-hidden": "true" }, text);

function bar(name, value, limit) {
  const share = Math.min(50, (50 * Math.abs(value)) / limit);
  return make("div", {}, make("span", {}, name),
    make("span", { class: "axis" }, make("i", { style: `${value < 0 ? "right" : "left"}:50%;width:${share}%;background:${value < 0 ? "#0072b2" : "#d55e00"}` })),
    make("span", { class: "number" }, show(value)));
}

const line = (name, value, total = false) => make("div", { class: total ? "total" : undefined }, make("span", {}, name), make("span", { class: "number" }, typeof value === "number" ? show(value) : value));

function numberView() {
  const found = panel.look;
  if (!found) return [make("h3", {}, "One number, taken apart"), make("p", { class: "soft" }, "Point at a pixel of any map, or tap it: here you see the patch it looked at, the kernel, and the sum of their products. A click keeps it; the arrow keys move it.")];
  const layer = layers[found.layer], parts = [];
  const limit = viewOf[resolve(found.layer)].limit || 1;
  parts.push(make("h3", {}, title(found)));
  parts.push(make("p", { class: "value", id: "value", "data-value": found.value, "data-total": found.total },
    make("span", { class: "swatch", style: tint(found.value, limit) }), show(found.value)));
  const inputLimit = layer.from.length ? largest(values[layer.from[0]]) : 1;
  switch (layer.op) {
    case "input": {
      const byte = planes[found.index], c = found.channel;
      parts.push(make("p", {}, `The picture has ${byte} of 255 here: ${show(byte / 255)}. Normalised:`));
      parts.push(make("p", { class: "number" }, `(${show(byte / 255)} − ${mean[c]}) ÷ ${std[c]} = ${show(found.value)}`));
      break;
    }
    case "conv":
      parts.push(...convolutionParts(found, layer, inputLimit));
      break;
    case "maxpool":
    case "avgpool": {
      const { patch } = found.terms[0], max = layer.op === "maxpool";
      const best = max ? patch.indexOf(found.value) : -1;
      parts.push(make("p", { class: "soft" }, max ? `The largest of the ${patch.length} numbers under the window:` : `The mean of the ${patch.length} numbers under the window:`));
      parts.push(make("div", { class: "equation" }, gridOf(patch, layer.kernel[1], inputLimit, "window", best), sign("→"), make("span", { class: "number" }, show(found.total))));
      break;
    }
    case "linear":
      parts.push(...linearParts(found, layer));
      break;
    case "scale":
    case "affine":
      parts.push(make("p", { class: "soft" }, layer.op === "scale" ? "The number below, times a factor of this map, plus a shift. Both come from the mean and the spread of the training pictures, and from two trained numbers." : layer.words));
      parts.push(make("p", { class: "number" }, `${show(found.input)} × ${show(found.factor)} ${found.shift < 0 ? "−" : "+"} ${show(Math.abs(found.shift))} = ${show(found.total)}`));
      break;
    case "function":
      parts.push(make("p", { class: "number" }, `${layer.function.replace("_tanh", "")}(${show(found.input)}) = ${show(found.total)}`), curve(layer.function, found.input, found.total));
      break;
    case "mean":
      parts.push(make("p", { class: "soft" }, `The mean of the ${found.count} numbers of ${layers[layer.from[0]].name}, map ${found.channel}.`));
      break;
    case "add":
    case "sub":
    case "mul":
      parts.push(make("div", { class: "sum" }, ...layer.from.map((from, i) => line(layers[from].name, found.pair[i])), line({ add: "Sum", sub: "Difference", mul: "Product" }[layer.op], found.total, true)));
      break;
    case "pad":
      parts.push(make("p", { class: "soft" }, found.padding ? `Padding: ${layer.value} is put here.` : "The number below, in another place."));
      break;
    default:
      parts.push(make("p", { class: "soft" }, layer.words));
  }
  if (panel.pinned && !playing) parts.push(make("p", { class: "hint" }, "Kept. The arrow keys move it; a second click or Escape lets it go."));
  return parts;
}

function convolutionParts(found, layer, inputLimit) {
  const [kh, kw] = layer.kernel, { terms } = found, parts = [];
  const kernelLimit = largest(terms.flatMap((term) => term.kernel));
  const productsOf = (term) => term.patch.map((value, i) => (value === null ? null : value * term.kernel[i]));
  const productLimit = largest(terms.flatMap((term) => productsOf(term).map((value) => value ?? 0)));
  const few = terms.length <= 4, order = few ? terms : [...terms].sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum));
  const shown = order.slice(0, few ? 4 : 3);
  parts.push(make("p", { class: "soft" }, few ? "Patch × kernel, in each input map:" : `Patch × kernel, in the ${shown.length} input maps that count most here:`));
  for (const term of shown) {
    parts.push(make("div", { class: "term" }, make("p", {}, `${sourceName(layer.from[0], term.channel)}: ${show(term.sum)}`),
      make("div", { class: "equation" }, gridOf(term.patch, kw, inputLimit, "patch"), sign("×"), gridOf(term.kernel, kw, kernelLimit, "kernel"), sign("="), gridOf(productsOf(term), kw, productLimit, "products"))));
  }
  if (!few) {
    const limit = Math.abs(order[0].sum) || 1, rest = order.slice(11).reduce((sum, term) => sum + term.sum, 0);
    const rows = order.slice(3, 11).map((term) => bar(sourceName(layer.from[0], term.channel), term.sum, limit));
    if (order.length > 11) rows.push(bar(`${order.length - 11} others`, rest, limit));
    parts.push(make("div", { class: "bars" }, ...rows));
  }
  const sum = found.total - found.bias;
  parts.push(make("div", { class: "sum", id: "sum" }, line(`Sum of ${terms.length * kh * kw} products`, sum), line("Bias", found.bias), line("Together", found.total, true)));
  parts.push(make("div", { class: "buttons" }, make("button", { type: "button", onclick: () => openKernel(found.layer, found.channel, shown[0].channel - terms[0].channel) }, "Change this kernel")));
  return parts;
}

function linearParts(found, layer) {
  const [from] = layer.from, parts = [], products = found.products, shown = resolve(from), shape = layers[shown].shape;
  const order = Array.from(products.keys()).sort((a, b) => Math.abs(products[b]) - Math.abs(products[a]));
  const [height, width] = mapSize(shape), limit = Math.abs(products[order[0]]) || 1;
  const where = (i) => {
    const [c, y, x] = across(from, i, 0, 0);
    return height * width > 1 ? `${shown === 0 ? channels[c] : `map ${c}`} (${y}, ${x})` : `number ${c}`;
  };
  if (height * width > 1) {
    parts.push(make("p", { class: "soft" }, `Each of the ${products.length.toLocaleString("en")} inputs times its weight. Blue pulls down, orange pushes up:`));
    const scale = Math.max(1, Math.floor((shape[0] <= 4 ? 96 : 64) / Math.max(height, width)));
    const area = height * width, tiles = [];
    for (let c = 0; c < Math.min(shape[0], 64); c++) tiles.push(canvasOf(paint(products.subarray(c * area, (c + 1) * area), width, height, limit), scale, `Contributions of ${sourceName(shown, c)}`));
    parts.push(make("div", { class: "tiles" }, ...tiles));
  }
  parts.push(make("p", { class: "soft" }, "What counts most (input × weight):"));
  const rest = order.slice(8).reduce((sum, i) => sum + products[i], 0);
  const rows = order.slice(0, 8).map((i) => bar(where(i), products[i], limit));
  if (order.length > 8) rows.push(bar(`${(order.length - 8).toLocaleString("en")} others`, rest, limit));
  parts.push(make("div", { class: "bars" }, ...rows));
  parts.push(make("div", { class: "sum", id: "sum" }, line(`Sum of ${products.length.toLocaleString("en")} products`, found.total - found.bias), line("Bias", found.bias), line("Together", found.total, true)));
  return parts;
}

function curve(name, x, y) {
  const reach = Math.max(3, Math.min(12, Math.ceil(Math.abs(x)))), f = FUNCTIONS[name], points = [];
  for (let i = 0; i <= 80; i++) {
    const at = -reach + (i / 80) * 2 * reach;
    points.push([at, f(at)]);
  }
  const low = Math.min(-0.2, ...points.map((p) => p[1])), high = Math.max(...points.map((p) => p[1]));
  const place = ([a, b]) => [10 + ((a + reach) / (2 * reach)) * 220, 10 + ((high - b) / (high - low)) * 100];
  const space = "http://www.w3.org/2000/svg";
  const shape = (tag, attributes) => {
    const element = document.createElementNS(space, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const svg = shape("svg", { class: "curve", viewBox: "0 0 240 128", role: "img", "aria-label": `The curve of ${name}` });
  const [, zero] = place([0, 0]), [dotX, dotY] = place([Math.max(-reach, Math.min(reach, x)), y]);
  svg.append(shape("path", { d: `M10 ${zero}H230M120 10V110`, stroke: "var(--line)", fill: "none" }));
  svg.append(shape("path", { d: `M${points.map((p) => place(p).map((v) => v.toFixed(1)).join(" ")).join("L")}`, stroke: "var(--soft)", "stroke-width": 2, fill: "none" }));
  svg.append(shape("circle", { cx: dotX, cy: dotY, r: 5, fill: "#d55e00", stroke: "var(--card)", "stroke-width": 2 }));
  for (const [value, at] of [[-reach, 10], [reach, 222]]) {
    const text = shape("text", { x: at, y: 126, "text-anchor": value < 0 ? "start" : "middle" });
    text.textContent = show(value, 0);
    svg.append(text);
  }
  return svg;
}

// ---- Kernels -------------------------------------------------------------------------------------------------------------

/** Kernels that people know, for a side of any length: a function of the place, from -1 to 1 in both directions. */
const PRESETS = {
  "Edge (−1 0 1)": (y, x) => Math.sign(x),
  "Edge, turned": (y) => Math.sign(y),
  Blur: (y, x, area) => 1 / area,
  Sharpen: (y, x, area) => (x === 0 && y === 0 ? area : -1),
  Same: (y, x) => (x === 0 && y === 0 ? 1 : 0),
  Zero: () => 0,
};

function openKernel(layer, map, input) {
  panel.kernel = { layer, map, input };
  byId("panel").classList.add("open");
  if (overlaid()) viewOf[layer].card.scrollIntoView({ block: "start" });
  selectTab("kernel");
}

/** Where a kernel lies among the weights, and how long it is. */
function kernelPlace({ layer, map, input }) {
  const { weight, kernel, groups, from } = layers[layer], inputs = layers[from[0]].shape[0] / groups, size = kernel[0] * kernel[1];
  return { at: weight + (map * inputs + input) * size, size, inputs };
}

function changeKernel(choice, numbers, { all = false, bias = null } = {}) {
  const { size, inputs } = kernelPlace(choice), layer = layers[choice.layer];
  for (let input = 0; input < inputs; input++) if (all || input === choice.input) setWeights(kernelPlace({ ...choice, input }).at, numbers.slice(0, size));
  if (bias !== null) setWeights(layer.bias + choice.map, [bias]);
  noteEdit(choice.layer);
}

function noteEdit(number) {
  const layer = layers[number], stored = sizeOf([layer.shape[0], kernelPlace({ layer: number, map: 0, input: 0 }).inputs, ...layer.kernel]);
  const differs = (at, size) => {
    for (let i = at; i < at + size; i++) if (weights[i] !== original[i]) return true;
    return false;
  };
  if (differs(layer.weight, stored) || differs(layer.bias, layer.shape[0])) edited.add(number);
  else edited.delete(number);
  viewOf[number].card.querySelector(".edited").hidden = !edited.has(number);
  ask({ first: number });
}

function resetLayer(number) {
  const layer = layers[number], size = sizeOf([layer.shape[0], kernelPlace({ layer: number, map: 0, input: 0 }).inputs, ...layer.kernel]);
  setWeights(layer.weight, original.subarray(layer.weight, layer.weight + size));
  setWeights(layer.bias, original.subarray(layer.bias, layer.bias + layer.shape[0]));
  noteEdit(number);
}

function chooser(label, names, chosen, change) {
  const select = make("select", {}, ...names.map(([value, text]) => make("option", { value, selected: value === chosen }, text)));
  select.addEventListener("change", () => {
    change(Number(select.value));
    refreshPanel();
    byId("view").querySelectorAll("select")[[...select.closest(".choices").querySelectorAll("select")].indexOf(select)]?.focus();
  });
  return make("label", {}, label, select);
}

const mapNames = (count) => Array.from({ length: count }, (_, i) => [i, `map ${i}`]);

function kernelView() {
  if (!convolutions.length) return [make("p", { class: "soft" }, "This net has no convolution, so it has no kernels.")];
  const choice = panel.kernel, layer = layers[choice.layer], { at, size, inputs } = kernelPlace(choice);
  const [kh, kw] = layer.kernel, parts = [make("h3", {}, "Change a kernel by hand")];
  const group = Math.floor(choice.map / (layer.shape[0] / layer.groups)) * inputs;
  parts.push(make("div", { class: "choices" },
    chooser("layer", convolutions.map((n) => [n, layers[n].name]), choice.layer, (n) => (panel.kernel = { layer: n, map: 0, input: 0 })),
    chooser("makes", mapNames(layer.shape[0]), choice.map, (map) => (panel.kernel = { ...choice, map })),
    chooser("looks at", Array.from({ length: inputs }, (_, i) => [i, sourceName(layer.from[0], group + i)]), choice.input, (input) => (panel.kernel = { ...choice, input }))));
  const centre = (i, n) => i - (n - 1) / 2;
  parts.push(make("div", { class: "presets", role: "group", "aria-label": "Kernels that people know" }, ...Object.entries(PRESETS).map(([name, f]) => make("button", {
    type: "button",
    onclick: () => changeKernel(choice, Array.from({ length: size }, (_, i) => f(centre(Math.floor(i / kw), kh), centre(i % kw, kw), size)), { all: true, bias: 0 }),
  }, name))));
  parts.push(make("p", { class: "hint" }, `A click sets the kernel for all ${inputs} input maps, and the bias to 0. Below you change one of them, number by number.`));
  const fields = make("div", { class: `editor${kw > 3 ? " small" : ""}`, style: `grid-template-columns:repeat(${kw},auto)` });
  for (let i = 0; i < size; i++) {
    const field = make("input", { type: "number", step: "0.1", "aria-label": `Row ${Math.floor(i / kw)}, column ${i % kw}` });
    field.addEventListener("input", () => {
      const value = Number(field.value);
      if (field.value === "" || !Number.isFinite(value)) return;
      const numbers = Array.from(weights.subarray(at, at + size));
      numbers[i] = value;
      changeKernel(choice, numbers);
    });
    fields.append(field);
  }
  parts.push(fields);
  const bias = make("input", { type: "number", step: "0.1", id: "bias" });
  bias.addEventListener("input", () => {
    if (bias.value === "" || !Number.isFinite(Number(bias.value))) return;
    setWeights(layer.bias + choice.map, [Number(bias.value)]);
    noteEdit(choice.layer);
  });
  parts.push(make("label", { class: "bias" }, "Bias", bias));
  parts.push(make("div", { class: "buttons" },
    make("button", { type: "button", id: "reset", disabled: !edited.size, onclick: () => [...edited].forEach(resetLayer) }, "Reset all kernels")));
  parts.push(make("div", { id: "effect", class: "term" }));
  return parts;
}

/** The numbers of the kernel, the map that it makes, and what the answer has become. */
function refreshKernel() {
  const target = byId("effect"), choice = panel.kernel;
  if (!target || !values[choice.layer]) return;
  byId("reset").disabled = !edited.size;
  const { at, size } = kernelPlace(choice), highest = largest(weights.subarray(at, at + size));
  const put = (field, value) => {
    if (field !== document.activeElement) field.value = Number(value.toFixed(4)); // nobody is typing there
  };
  byId("view").querySelectorAll(".editor input").forEach((field, i) => {
    put(field, weights[at + i]);
    field.style.cssText = tint(weights[at + i], highest);
  });
  put(byId("bias"), weights[layers[choice.layer].bias + choice.map]);
  const [height, width] = mapSize(layers[choice.layer].shape), area = height * width, scale = Math.max(1, Math.floor(112 / width));
  const one = (numbers) => numbers.subarray(choice.map * area, (choice.map + 1) * area);
  const input = values[layers[choice.layer].from[0]];
  const old = edited.has(choice.layer) ? compute(layers[choice.layer], layers, values, original) : null;
  const now = one(values[choice.layer]), limit = largest(now), tiles = [];
  const tile = (numbers, word, most) => make("div", { class: "tile" }, canvasOf(paint(numbers, width, height, most), scale, `Map ${choice.map}, ${word}`), word);
  if (old && input) tiles.push(tile(one(old), "before", largest(one(old))));
  tiles.push(tile(now, old ? "now" : "its map", limit));
  const shares = softmax(logits), best = shares.indexOf(Math.max(...shares)), earlier = before.indexOf(Math.max(...before));
  const words = edited.size
    ? best === earlier ? `Still ${classes[best]}: ${percent(before[best])} before, ${percent(shares[best])} now.` : `${classes[earlier]} before (${percent(before[earlier])}), ${classes[best]} now (${percent(shares[best])}).`
    : `The answer is ${classes[best]} (${percent(shares[best])}).`;
  target.replaceChildren(make("div", { class: "tiles" }, ...tiles), make("p", { id: "effect-words" }, words));
}

function compareView() {
  if (!convolutions.length) return [make("p", { class: "soft" }, "This net has no convolution, so it has no kernels.")];
  const choice = panel.compare, layer = layers[choice.layer], parts = [make("h3", {}, "Compare two kernels")];
  const { inputs, size } = kernelPlace({ layer: choice.layer, map: 0, input: 0 }), [kh, kw] = layer.kernel, count = layer.shape[0];
  parts.push(make("div", { class: "choices" },
    chooser("layer", convolutions.map((n) => [n, layers[n].name]), choice.layer, (n) => (panel.compare = { layer: n, a: 0, b: Math.min(1, layers[n].shape[0] - 1) })),
    chooser("first", mapNames(count), choice.a, (a) => (panel.compare = { ...choice, a })),
    chooser("second", mapNames(count), choice.b, (b) => (panel.compare = { ...choice, b }))));
  const whole = (map) => weights.subarray(layer.weight + map * inputs * size, layer.weight + (map + 1) * inputs * size);
  const a = whole(choice.a), b = whole(choice.b);
  let dot = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) [dot, aa, bb] = [dot + a[i] * b[i], aa + a[i] * a[i], bb + b[i] * b[i]];
  const alike = aa && bb ? dot / Math.sqrt(aa * bb) : 0;
  const words = alike > 0.6 ? "They look for nearly the same." : alike < -0.6 ? "One is nearly the other turned over: light for dark." : "They look for different things.";
  parts.push(make("p", { id: "alike" }, `Cosine ${short(alike)}, from −1 to 1. ${words}`));
  const [height, width] = mapSize(layer.shape), area = height * width, scale = Math.max(1, Math.floor(100 / width));
  if (values[choice.layer]) {
    const maps = [choice.a, choice.b].map((map) => values[choice.layer].subarray(map * area, (map + 1) * area)), limit = largest([...maps[0], ...maps[1]]);
    parts.push(make("div", { class: "tiles" }, ...maps.map((map, i) => {
      const word = `map ${[choice.a, choice.b][i]}`;
      return make("div", { class: "tile" }, canvasOf(paint(map, width, height, limit), scale, word), word);
    })));
  }
  const limit = largest([...a, ...b]), difference = a.map((value, i) => value - b[i]);
  const most = Array.from({ length: inputs }, (_, i) => i).sort((i, j) => largest(difference.subarray(j * size, (j + 1) * size)) - largest(difference.subarray(i * size, (i + 1) * size)));
  const shown = inputs <= 4 ? most.sort((i, j) => i - j) : most.slice(0, 4);
  parts.push(make("p", { class: "soft" }, inputs <= 4 ? "First, second, and their difference, in each input map:" : `First, second, and their difference, in the 4 of ${inputs} input maps where they differ most:`));
  for (const input of shown) {
    const part = (numbers) => Array.from(numbers.subarray(input * size, (input + 1) * size));
    parts.push(make("div", { class: "term" }, make("p", {}, layer.groups === 1 ? sourceName(layer.from[0], input) : `input ${input}`),
      make("div", { class: "equation" }, gridOf(part(a), kw, limit, "first"), sign("−"), gridOf(part(b), kw, limit, "second"), sign("="), gridOf(part(difference), kw, limit, "difference"))));
  }
  return parts;
}

// ---- Step by step --------------------------------------------------------------------------------------------------------

let playing = null, step = null;
const steps = views; // filled by addLayers

function showStep(index, { scroll = true } = {}) {
  step = index;
  const now = index === null ? Infinity : steps[index].number;
  for (let number = 0; number < layers.length; number++) {
    viewOf[number].card.classList.toggle("later", number > now);
    viewOf[number].card.classList.toggle("now", number === now);
  }
  byId("softmax").classList.toggle("later", index !== null && now < last);
  byId("step").value = index === null ? steps.length - 1 : index;
  byId("step-name").textContent = index === null ? `All ${steps.length} steps` : `${index + 1} of ${steps.length}: ${steps[index].layer.name}`;
  if (index !== null && scroll) steps[index].card.scrollIntoView({ block: overlaid() ? "start" : "center", behavior: calm.matches || playing ? "auto" : "smooth" });
}

const pause = (time) => new Promise((done) => setTimeout(done, time));
const nextFrame = () => new Promise(requestAnimationFrame);

/** Fill the maps of one layer number by number, with the patch that each comes from. */
async function sweep(view, time, token) {
  const area = view.height * view.width;
  if (calm.matches || area === 1 || view.number === 0) {
    draw(view);
    look(view.number, 0, { pin: true, quiet: true });
    await pause(time);
    return;
  }
  const began = performance.now();
  let told = -Infinity;
  for (;;) {
    const share = (performance.now() - began) / time;
    if (playing !== token || share >= 1) break;
    const shown = Math.floor(share * area);
    if (performance.now() - told > 90) {
      told = performance.now();
      look(view.number, shown, { pin: true, quiet: true });
    }
    draw(view, shown + 1);
    await nextFrame();
  }
  draw(view);
}

function setPlay(sign, word) {
  byId("play").replaceChildren(make("span", { "aria-hidden": "true" }, sign), ` ${word}`);
}

async function play() {
  if (playing) return stopPlaying();
  const token = (playing = {});
  setPlay("■", "Stop");
  const from = step === null || step === steps.length - 1 ? 0 : step;
  const time = steps.length > 40 ? 350 : steps.length > 16 ? 900 : 2200;
  for (let index = from; index < steps.length && playing === token; index++) {
    showStep(index);
    await pause(steps.length > 40 ? 20 : 150);
    if (playing !== token) return;
    await sweep(steps[index], time, token);
  }
  if (playing === token) {
    stopPlaying();
    showStep(null);
    byId("softmax").scrollIntoView({ block: "center" });
  }
}

function stopPlaying() {
  playing = null;
  setPlay("▶", "Play");
  for (const view of views) view.dirty = true;
  drawVisible();
}

function addPlayer() {
  byId("step").max = steps.length - 1;
  const go = (index) => {
    stopPlaying();
    showStep(Math.max(0, Math.min(steps.length - 1, index)));
  };
  byId("play").addEventListener("click", play);
  byId("back").addEventListener("click", () => go((step ?? steps.length) - 1));
  byId("next").addEventListener("click", () => (step === steps.length - 1 ? (stopPlaying(), showStep(null)) : go((step ?? -1) + 1)));
  byId("step").addEventListener("input", ({ target }) => go(Number(target.value)));
  showStep(null);
}

// ---- Begin ---------------------------------------------------------------------------------------------------------------

function redraw() {
  views.forEach(fit);
  for (const view of views) view.dirty = true;
  drawVisible();
  refreshPanel();
}

function begin() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => (setTheme(dark.matches ? "dark" : "light"), redraw()));
  byId("theme").addEventListener("click", () => (setTheme(theme === "dark" ? "light" : "dark"), redraw()));
  addLayers();
  addPictures();
  addDrawing();
  addPlayer();
  byId("webcam").addEventListener("click", toggleWebcam);
  const tabs = ["number", "kernel", "compare"];
  tabs.forEach((name, i) => {
    byId(`tab-${name}`).addEventListener("click", () => selectTab(name));
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      const other = { ArrowRight: (i + 1) % 3, ArrowLeft: (i + 2) % 3 }[event.key];
      if (other === undefined) return;
      selectTab(tabs[other]);
      byId(`tab-${tabs[other]}`).focus();
    });
  });
  byId("close").addEventListener("click", () => byId("panel").classList.remove("open"));
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    stopPlaying();
    showStep(null, { scroll: false });
    panel.pinned = false;
    byId("panel").classList.remove("open");
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    redraw();
  });
  startNet();
  refreshPanel();
  showDrawing(content.pictures[0], null); // the time of which is that of the page's start
  // Browsers compile what has run a few times: the first picture that is dropped shall not wait for that.
  const { data } = surface.getImageData(0, 0, source.width, source.height);
  setTimeout(() => {
    for (let i = 0; i < 4; i++) shrink(data, source.width, source.height, WIDTH, HEIGHT, channels.length);
  }, 100);
}

begin();
