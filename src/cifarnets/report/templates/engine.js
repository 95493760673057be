"use strict";
// The arithmetic of the page: pictures as the net sees them, every layer, and the sum behind every number.
// Plain functions of plain arrays, so that a worker can run them too.

/** Decode base64 into float32 numbers. */
function decodeFloats(text) {
  const bytes = decodeBytes(text);
  return new Float32Array(bytes.buffer, 0, bytes.length >> 2);
}

function decodeBytes(text) {
  const binary = atob(text.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// ---- Pictures --------------------------------------------------------------------------------------------------------

/** Weights of Pillow's bilinear filter for one axis, as the fixed-point numbers that it uses. */
function resizeWeights(from, to) {
  const scale = from / to, support = Math.max(1, scale), weights = [];
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const row = new Float64Array(last - first);
    let sum = 0;
    for (let x = 0; x < row.length; x++) {
      row[x] = Math.max(0, 1 - Math.abs((x + first - centre + 0.5) / support));
      sum += row[x];
    }
    for (let x = 0; x < row.length; x++) row[x] = Math.trunc(0.5 + (row[x] / sum) * 4194304);
    weights.push({ first, row });
  }
  return weights;
}

const toByte = (sum) => Math.min(255, Math.max(0, Math.floor((sum + 2097152) / 4194304)));

/**
 * A picture as Pillow resizes it (bilinear, antialiased, rows before columns, rounded to bytes between the two).
 * rgba: the bytes of a canvas. Gives planes, channels × height × width bytes.
 */
function shrink(rgba, width, height, toWidth, toHeight, channels) {
  const planes = new Uint8Array(channels * toHeight * toWidth);
  const across = resizeWeights(width, toWidth), down = resizeWeights(height, toHeight);
  const plane = new Uint8Array(width * height), narrow = new Uint8Array(toWidth * height);
  for (let c = 0; c < channels; c++) {
    for (let i = 0, j = 0; i < plane.length; i++, j += 4) {
      plane[i] = channels === 3 ? rgba[j + c] : (rgba[j] * 19595 + rgba[j + 1] * 38470 + rgba[j + 2] * 7471 + 32768) >> 16;
    }
    if (width === toWidth) narrow.set(plane);
    else {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < toWidth; x++) {
          const { first, row } = across[x];
          let sum = 0;
          for (let k = 0, p = y * width + first; k < row.length; k++, p++) sum += plane[p] * row[k];
          narrow[y * toWidth + x] = toByte(sum);
        }
      }
    }
    const target = planes.subarray(c * toHeight * toWidth, (c + 1) * toHeight * toWidth);
    if (height === toHeight) target.set(narrow);
    else {
      for (let y = 0; y < toHeight; y++) {
        const { first, row } = down[y];
        for (let x = 0; x < toWidth; x++) {
          let sum = 0;
          for (let k = 0, p = first * toWidth + x; k < row.length; k++, p += toWidth) sum += narrow[p] * row[k];
          target[y * toWidth + x] = toByte(sum);
        }
      }
    }
  }
  return planes;
}

/** Bytes as the net is fed them: in 0..1, minus the mean, divided by the standard deviation, each step in float32. */
function normalise(planes, mean, std) {
  const values = new Float32Array(planes.length), size = planes.length / mean.length, round = Math.fround;
  for (let c = 0, i = 0; c < mean.length; c++) {
    const centre = round(mean[c]), spread = round(std[c]);
    for (let end = i + size; i < end; i++) values[i] = round(round(round(planes[i] / 255) - centre) / spread);
  }
  return values;
}

// ---- Layers ----------------------------------------------------------------------------------------------------------

const FUNCTIONS = {
  tanh: Math.tanh,
  relu: (x) => Math.max(0, x),
  relu6: (x) => Math.min(6, Math.max(0, x)),
  sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  silu: (x) => x / (1 + Math.exp(-x)),
  gelu: (x) => 0.5 * x * erfc(-x * Math.SQRT1_2),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x))),
};

/** 1 - erf(x), to 1.2e-7 of its value (Press et al., Numerical Recipes, section 6.2). */
function erfc(x) {
  const t = 2 / (2 + Math.abs(x));
  const sum = 1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 +
    t * (1.48851587 + t * (-0.82215223 + t * 0.17087277)))))));
  const y = t * Math.exp(-x * x - 1.26551223 + t * sum);
  return x < 0 ? 2 - y : y;
}

const sizeOf = (shape) => shape.reduce((product, side) => product * side, 1);

/** Height and width of a layer's maps; a vector is a column of maps of one pixel. */
const mapSize = (shape) => (shape.length === 3 ? [shape[1], shape[2]] : [1, sizeOf(shape.slice(1))]);

function convolve(layer, input, source, weights) {
  const [C, H, W] = source, [O, OH, OW] = layer.shape, [kh, kw] = layer.kernel;
  const [sy, sx] = layer.stride, [py, px] = layer.padding, [dy, dx] = layer.dilation;
  const PH = H + 2 * py, PW = W + 2 * px, inputs = C / layer.groups, outputs = O / layer.groups;
  let padded = input;
  if (py || px) {
    padded = new Float32Array(C * PH * PW);
    for (let c = 0; c < C; c++) {
      for (let y = 0; y < H; y++) {
        padded.set(input.subarray((c * H + y) * W, (c * H + y + 1) * W), (c * PH + y + py) * PW + px);
      }
    }
  }
  const output = new Float32Array(O * OH * OW), sum = new Float64Array(OH * OW);
  for (let o = 0; o < O; o++) {
    sum.fill(weights[layer.bias + o]);
    const group = Math.floor(o / outputs) * inputs;
    for (let i = 0; i < inputs; i++) {
      const base = (group + i) * PH * PW;
      let w = layer.weight + (o * inputs + i) * kh * kw;
      if (kh === 3 && kw === 3 && sx === 1 && dx === 1) {
        // Nine products at a time: the usual case, four times as fast as one by one.
        const a = weights[w], b = weights[w + 1], c = weights[w + 2], d = weights[w + 3], e = weights[w + 4];
        const f = weights[w + 5], g = weights[w + 6], h = weights[w + 7], k = weights[w + 8];
        for (let y = 0, q = 0; y < OH; y++) {
          let p = base + y * sy * PW, r = p + dy * PW, s = r + dy * PW;
          let p0 = padded[p++], p1 = padded[p++], r0 = padded[r++], r1 = padded[r++], s0 = padded[s++], s1 = padded[s++];
          for (const end = q + OW; q < end; q++) {
            const p2 = padded[p++], r2 = padded[r++], s2 = padded[s++];
            sum[q] += a * p0 + b * p1 + c * p2 + d * r0 + e * r1 + f * r2 + g * s0 + h * s1 + k * s2;
            p0 = p1; p1 = p2; r0 = r1; r1 = r2; s0 = s1; s1 = s2;
          }
        }
        continue;
      }
      for (let ky = 0; ky < kh; ky++) {
        for (let kx = 0; kx < kw; kx++, w++) {
          const weight = weights[w];
          for (let y = 0, q = 0; y < OH; y++) {
            let p = base + (y * sy + ky * dy) * PW + kx * dx;
            for (const end = q + OW; q < end; q++, p += sx) sum[q] += weight * padded[p];
          }
        }
      }
    }
    output.set(sum, o * OH * OW);
  }
  return output;
}

function pool(layer, input, source) {
  const [, H, W] = source, [C, OH, OW] = layer.shape, [kh, kw] = layer.kernel;
  const output = new Float32Array(C * OH * OW), max = layer.op === "maxpool";
  for (let c = 0, q = 0; c < C; c++) {
    for (let y = 0; y < OH; y++) {
      const top = y * layer.stride[0] - layer.padding[0];
      for (let x = 0; x < OW; x++, q++) {
        const left = x * layer.stride[1] - layer.padding[1];
        let value = max ? -Infinity : 0;
        for (let yy = Math.max(0, top); yy < Math.min(H, top + kh); yy++) {
          for (let xx = Math.max(0, left); xx < Math.min(W, left + kw); xx++) {
            const v = input[(c * H + yy) * W + xx];
            value = max ? Math.max(value, v) : value + v;
          }
        }
        output[q] = max ? value : value / (kh * kw);
      }
    }
  }
  return output;
}

/** Where a number of a layer comes from in an input of another shape: axes of length 1 are repeated. */
function broadcast(index, shape, source) {
  let place = 0, stride = 1;
  for (let axis = shape.length - 1, other = source.length - 1; axis >= 0; axis--, other--) {
    const position = index % shape[axis];
    index = Math.floor(index / shape[axis]);
    if (other < 0) continue;
    if (source[other] !== 1) place += position * stride;
    stride *= source[other];
  }
  return place;
}

/** The place in the input of a number of a slice or a padded layer; -1 for padding. */
function place(layer, index, source) {
  let result = 0, stride = 1;
  for (let axis = source.length - 1; axis >= 0; axis--) {
    let position = index % layer.shape[axis];
    index = Math.floor(index / layer.shape[axis]);
    if (layer.op === "pad") position -= layer.before[axis];
    else if (layer.dim === axis) position = layer.start + position * layer.step;
    if (position < 0 || position >= source[axis]) return -1;
    result += position * stride;
    stride *= source[axis];
  }
  return result;
}

/** What one layer gives, float32; `values` has what the earlier ones gave. */
function compute(layer, layers, values, weights) {
  const inputs = layer.from.map((number) => values[number]), shapes = layer.from.map((number) => layers[number].shape);
  const [input] = inputs, size = sizeOf(layer.shape);
  const output = ["conv", "maxpool", "avgpool", "reshape"].includes(layer.op) ? null : new Float32Array(size);
  switch (layer.op) {
    case "conv":
      return convolve(layer, input, shapes[0], weights);
    case "maxpool":
    case "avgpool":
      return pool(layer, input, shapes[0]);
    case "reshape":
      return input;
    case "linear":
      for (let o = 0, w = layer.weight; o < size; o++) {
        let sum = weights[layer.bias + o];
        for (let i = 0; i < input.length; i++, w++) sum += weights[w] * input[i];
        output[o] = sum;
      }
      return output;
    case "scale": {
      const area = size / layer.shape[0];
      for (let c = 0, i = 0; c < layer.shape[0]; c++) {
        const factor = weights[layer.weight + c], shift = weights[layer.bias + c];
        for (const end = i + area; i < end; i++) output[i] = input[i] * factor + shift;
      }
      return output;
    }
    case "function": {
      const f = FUNCTIONS[layer.function];
      for (let i = 0; i < size; i++) output[i] = f(input[i]);
      return output;
    }
    case "affine":
      for (let i = 0; i < size; i++) output[i] = input[i] * layer.factor + layer.shift;
      return output;
    case "mean": {
      const area = input.length / size;
      for (let c = 0, i = 0; c < size; c++) {
        let sum = 0;
        for (const end = i + area; i < end; i++) sum += input[i];
        output[c] = sum / area;
      }
      return output;
    }
    case "add":
    case "sub":
    case "mul": {
      const same = shapes.every((shape) => sizeOf(shape) === size), other = inputs[1];
      for (let i = 0; i < size; i++) {
        const a = input[same ? i : broadcast(i, layer.shape, shapes[0])];
        const b = other[same ? i : broadcast(i, layer.shape, shapes[1])];
        output[i] = layer.op === "add" ? a + b : layer.op === "sub" ? a - b : a * b;
      }
      return output;
    }
    case "slice":
    case "pad":
      for (let i = 0; i < size; i++) {
        const from = place(layer, i, shapes[0]);
        output[i] = from < 0 ? layer.value : input[from];
      }
      return output;
    case "cat": {
      let at = 0;
      for (const part of inputs) {
        output.set(part, at);
        at += part.length;
      }
      return output;
    }
  }
  throw new Error(`unknown layer ${layer.op}`);
}

/** Compute the layers from number `first` on, into `values`. */
function run(layers, weights, values, first) {
  for (let number = Math.max(1, first); number < layers.length; number++) {
    values[number] = compute(layers[number], layers, values, weights);
  }
  return values;
}

function softmax(logits) {
  const highest = Math.max(...logits), powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// ---- The sum behind a number -----------------------------------------------------------------------------------------

/**
 * Take one number of a layer apart: { total, terms, … }, computed anew from what the layer was given.
 * index: its place among the numbers of the layer.
 */
function explain(layers, values, weights, number, index) {
  const layer = layers[number], [source] = layer.from, input = values[source];
  const shape = source === undefined ? layer.shape : layers[source].shape;
  const [height, width] = mapSize(layer.shape), area = height * width;
  const channel = Math.floor(index / area), y = Math.floor((index % area) / width), x = index % width;
  const result = { layer: number, index, channel, y, x, value: values[number][index], boxes: [] };
  const sourceArea = sizeOf(shape) / shape[0];
  if (layer.op === "conv" || layer.op === "maxpool" || layer.op === "avgpool") {
    const [kh, kw] = layer.kernel, [H, W] = mapSize(shape), conv = layer.op === "conv";
    const [dy, dx] = conv ? layer.dilation : [1, 1];
    const top = y * layer.stride[0] - layer.padding[0], left = x * layer.stride[1] - layer.padding[1];
    const inputs = conv ? shape[0] / layer.groups : 1;
    const first = conv ? Math.floor(channel / (layer.shape[0] / layer.groups)) * inputs : channel;
    result.terms = [];
    for (let i = 0; i < inputs; i++) {
      const patch = [], kernel = [];
      let sum = 0;
      for (let ky = 0; ky < kh; ky++) {
        for (let kx = 0; kx < kw; kx++) {
          const yy = top + ky * dy, xx = left + kx * dx;
          const inside = yy >= 0 && yy < H && xx >= 0 && xx < W;
          patch.push(inside ? input[((first + i) * H + yy) * W + xx] : null);
          if (conv) {
            kernel.push(weights[layer.weight + ((channel * inputs + i) * kh + ky) * kw + kx]);
            sum += (patch.at(-1) ?? 0) * kernel.at(-1);
          }
        }
      }
      result.terms.push({ channel: first + i, patch, kernel, sum });
    }
    result.boxes.push({ layer: source, first, count: inputs, top, left, height: (kh - 1) * dy + 1, width: (kw - 1) * dx + 1 });
    if (conv) {
      result.bias = weights[layer.bias + channel];
      result.total = result.terms.reduce((sum, term) => sum + term.sum, result.bias);
    } else {
      const seen = result.terms[0].patch.filter((v) => v !== null);
      result.total = layer.op === "maxpool" ? Math.max(...seen) : seen.reduce((a, b) => a + b, 0) / (kh * kw);
    }
    return result;
  }
  const pixel = (from, at) => {
    const [h, w] = mapSize(layers[from].shape);
    return { layer: from, first: Math.floor(at / (h * w)), count: 1, top: Math.floor((at % (h * w)) / w), left: at % w, height: 1, width: 1 };
  };
  const one = (from, at) => {
    result.boxes.push(pixel(from, at));
    return values[from][at];
  };
  switch (layer.op) {
    case "linear":
      result.bias = weights[layer.bias + index];
      result.products = new Float64Array(input.length);
      for (let i = 0; i < input.length; i++) result.products[i] = weights[layer.weight + index * input.length + i] * input[i];
      result.total = result.products.reduce((sum, product) => sum + product, result.bias);
      result.boxes.push({ layer: source, whole: true });
      break;
    case "scale":
      result.input = one(source, index);
      result.factor = weights[layer.weight + channel];
      result.shift = weights[layer.bias + channel];
      result.total = result.input * result.factor + result.shift;
      break;
    case "affine":
      result.input = one(source, index);
      [result.factor, result.shift] = [layer.factor, layer.shift];
      result.total = result.input * result.factor + result.shift;
      break;
    case "function":
      result.input = one(source, index);
      result.total = FUNCTIONS[layer.function](result.input);
      break;
    case "mean": {
      const [H, W] = mapSize(shape), part = input.subarray(index * sourceArea, (index + 1) * sourceArea);
      result.total = part.reduce((a, b) => a + b, 0) / sourceArea;
      result.count = sourceArea;
      result.boxes.push({ layer: source, first: index, count: 1, top: 0, left: 0, height: H, width: W });
      break;
    }
    case "add":
    case "sub":
    case "mul": {
      const [a, b] = layer.from.map((from) => one(from, broadcast(index, layer.shape, layers[from].shape)));
      result.pair = [a, b];
      result.total = layer.op === "add" ? a + b : layer.op === "sub" ? a - b : a * b;
      break;
    }
    case "slice":
    case "pad": {
      const at = place(layer, index, shape);
      result.padding = at < 0;
      result.total = at < 0 ? layer.value : one(source, at);
      break;
    }
    case "cat": {
      let at = index, part = 0;
      while (at >= values[layer.from[part]].length) at -= values[layer.from[part++]].length;
      result.total = one(layer.from[part], at);
      break;
    }
    case "reshape":
      result.total = one(source, index);
      break;
    default:
      result.total = result.value;
  }
  return result;
}

// ---- The worker ------------------------------------------------------------------------------------------------------

/** What a worker does with its messages: keep the net, take changed weights, answer pictures. */
function serve(scope) {
  let layers, weights, original, values = [];
  scope.onmessage = ({ data }) => {
    if (data.layers) {
      [layers, weights] = [data.layers, data.weights];
      original = weights.slice();
    }
    if (data.set) weights.set(data.set.numbers, data.set.at);
    if (!data.input && data.first === undefined) return;
    if (data.input) values = [data.input];
    const first = data.input ? 0 : data.first;
    const began = performance.now(), fresh = !scope.warm;
    run(layers, weights, values, first);
    // Of changed weights, also what the net said before the change.
    const before = data.input && data.compare ? run(layers, original, [data.input], 0).at(-1) : null;
    scope.postMessage({ first, values: values.slice(first), before });
    // Browsers compile what has run a few times: a small net does so before the first picture is dropped.
    if (fresh && performance.now() - began < 60) for (let i = 0; i < 12; i++) run(layers, weights, [values[0]], 0);
    scope.warm = true;
  };
}
