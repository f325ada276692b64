// The chart of a run's losses, as SVG: training loss as logged (faint) and smoothed, held-out loss, its best step.

const HEIGHT = 300;
const MARGIN = { top: 14, right: 26, bottom: 42, left: 62 };
const SMOOTH_FRACTION = 0.05; // as of `ldm plot`
const LOG_FROM = 8; // as of `ldm plot`: a wider range gets a logarithmic axis
const FEW = 40; // points of the held-out loss that are drawn as dots, too

const svg = (tag, attributes = {}, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
};

// A moving mean over a share of the points; at both ends the window stays within them, at the start symmetric.
export function smoothed(points) {
  const half = Math.floor((points.length * SMOOTH_FRACTION) / 2);
  return points.map(([step], index) => {
    const back = Math.min(half, index);
    const near = points.slice(index - back, index + back + 1).map((point) => point[1]).filter((value) => value !== null);
    return [step, near.length ? near.reduce((sum, value) => sum + value, 0) / near.length : null];
  });
}

const shorter = (value) => (value === 0 ? "0" : Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5
  ? value.toExponential(1).replace(".0e", "e") : String(Number(value.toPrecision(3))));
export const exact = (value) => (value === null ? "not finite" : Math.abs(value) < 1e-3 ? value.toExponential(3) : value.toPrecision(4));

function linearTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const ticks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high * (1 + 1e-12) + step * 1e-9; index += 1) ticks.push(index * step || 0); // never -0
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const first of [1, 2, 5]) ticks.push(first * 10 ** power);
  }
  const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return inside.length > 8 ? inside.filter((tick) => /^1e|^1(\.0*)?$/.test(tick.toExponential().split("e")[0])) : inside;
}

function axisOf(values) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (low > 0 && high > LOG_FROM * low) {
    const pad = (high / low) ** 0.04;
    [low, high] = [low / pad, high * pad];
    return { low, high, place: (value) => Math.log(value / low) / Math.log(high / low), ticks: logTicks(low, high) };
  }
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - pad, high + pad];
  return { low, high, place: (value) => (value - low) / (high - low), ticks: linearTicks(low, high, 6) };
}

export class Chart {
  constructor(element, onReadout) {
    this.element = element;
    this.onReadout = onReadout;
    this.data = { loss: [], held_out: [], best: null, num_steps: null };
    new ResizeObserver(() => this.draw()).observe(element);
  }

  show(data) {
    this.data = data;
    this.draw();
  }

  draw() {
    const { loss, held_out: heldOut, best } = this.data;
    const smooth = smoothed(loss);
    const values = [...smooth, ...heldOut, ...loss.slice(Math.ceil(loss.length / 50))].map((point) => point[1]).filter((value) => value !== null);
    const width = this.element.clientWidth;
    if (!values.length || width < 50) {
      const nothing = Object.assign(document.createElement("p"), { className: "nothing", textContent: "Nothing is logged yet." });
      this.element.replaceChildren(nothing);
      this.onReadout("");
      return;
    }
    const steps = [...loss, ...heldOut].map((point) => point[0]);
    this.first = Math.min(0, ...steps);
    this.last = Math.max(1, ...steps);
    this.axis = axisOf(values);
    this.width = width;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": this.describe(smooth) });
    this.drawAxes(picture);
    picture.append(this.line(loss, "raw"), this.line(smooth, "smooth"), this.line(heldOut, "held-out"));
    if (heldOut.length <= FEW) for (const point of heldOut) this.dot(picture, point, "dot", 3);
    if (loss.length === 1) this.dot(picture, loss[0], "dot first", 3);
    if (best) this.drawBest(picture, best);
    this.cross = svg("line", { class: "cross", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    picture.append(this.cross);
    picture.addEventListener("pointermove", (event) => this.point(event, picture, smooth));
    picture.addEventListener("pointerleave", () => this.rest(smooth));
    this.element.replaceChildren(picture);
    this.rest(smooth);
  }

  x(step) {
    return MARGIN.left + ((step - this.first) / (this.last - this.first)) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    const inside = Math.max(0, Math.min(1, this.axis.place(value)));
    return HEIGHT - MARGIN.bottom - inside * (HEIGHT - MARGIN.top - MARGIN.bottom);
  }

  drawAxes(picture) {
    const [left, right, bottom] = [MARGIN.left, this.width - MARGIN.right, HEIGHT - MARGIN.bottom];
    for (const tick of this.axis.ticks) {
      const y = this.y(tick);
      picture.append(svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }),
        svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, shorter(tick)));
    }
    for (const tick of linearTicks(this.first, this.last, Math.max(2, Math.min(8, this.width / 110)))) {
      if (!Number.isInteger(tick)) continue;
      picture.append(svg("text", { x: this.x(tick), y: bottom + 18, "text-anchor": "middle" }, tick.toLocaleString("en")));
    }
    picture.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
      svg("text", { x: (left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "optimizer step"),
      svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(13 ${(MARGIN.top + bottom) / 2}) rotate(-90)` }, "loss"));
  }

  line(points, name) {
    let path = "";
    let pen = "M";
    for (const [step, value] of points) {
      path += value === null ? "" : `${pen}${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`;
      pen = value === null ? "M" : "L"; // a gap where the loss was not finite
    }
    return svg("path", { class: name, d: path });
  }

  dot(picture, [step, value], name, r) {
    if (value !== null) picture.append(svg("circle", { class: name, cx: this.x(step), cy: this.y(value), r }));
  }

  drawBest(picture, [step, value]) {
    this.dot(picture, [step, value], "ring", 6);
    const x = this.x(step);
    const anchor = x > this.width * 0.7 ? "end" : x < this.width * 0.25 ? "start" : "middle";
    const y = this.y(value) > HEIGHT - MARGIN.bottom - 30 ? this.y(value) - 14 : this.y(value) + 24;
    picture.append(svg("text", { class: "best-text", x, y, "text-anchor": anchor }, `best ${exact(value)} at step ${step.toLocaleString("en")}`));
  }

  describe(smooth) {
    const [step, value] = smooth.at(-1) ?? [null, null];
    const { best } = this.data;
    const told = step === null ? "no training loss" : `training loss ${exact(value)} at step ${step}, smoothed`;
    return `Loss over optimizer steps: ${told}${best ? `; lowest held-out loss ${exact(best[1])} at step ${best[0]}` : ""}`;
  }

  readout(step, smooth) {
    const near = (points) => points.reduce((best, point) => (best && Math.abs(best[0] - step) <= Math.abs(point[0] - step) ? best : point), null);
    const [raw, mean, held] = [near(this.data.loss), near(smooth), near(this.data.held_out)];
    const told = raw ? [`step ${raw[0].toLocaleString("en")}`, `training ${exact(raw[1])}, smoothed ${exact(mean[1])}`] : [];
    if (held) told.push(`held out ${exact(held[1])} at step ${held[0].toLocaleString("en")}`);
    return told.join(" · ");
  }

  rest(smooth) {
    this.cross.setAttribute("visibility", "hidden");
    this.onReadout(this.readout(this.last, smooth));
  }

  point(event, picture, smooth) {
    const x = event.clientX - picture.getBoundingClientRect().left;
    const share = (x - MARGIN.left) / (this.width - MARGIN.left - MARGIN.right);
    const step = this.first + Math.max(0, Math.min(1, share)) * (this.last - this.first);
    for (const end of ["x1", "x2"]) this.cross.setAttribute(end, this.x(step));
    this.cross.setAttribute("visibility", "visible");
    this.onReadout(this.readout(step, smooth));
  }
}
