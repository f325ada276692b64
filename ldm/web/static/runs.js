// The page of training runs: a list of them, and of the chosen one its curves, previews, ledger and output.

import { Chart } from "./chart.js";
import { attempt, call, element, get, say } from "./requests.js";

const POLL_MS = 2000;
const LOG_LINES = 200;
const GAP_PX = 2; // between the images of a preview, see image_grid in ldm/io/images.py
const SMALL_PX = 128; // smaller images are enlarged pixel by pixel
const ENLARGED = 3; // a grid whose prompts are not known
const PAGES = { "data-report": "Data report", ledger: "Ledger with images" };

let chosen = null; // the number of the run that is shown
let known = null; // what the server has told of it
let turn = 0; // of the requests for details: an answer of an earlier turn is dropped
const chart = new Chart(get("chart"), (text) => { get("readout").textContent = text; });

const count = (number) => number.toLocaleString("en");

function duration(sec) {
  const whole = Math.round(sec);
  const two = (value) => String(value).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

const speed = (rate) => (rate >= 0.1 ? `${rate.toPrecision(3)} steps/s` : `${(1 / rate).toPrecision(3)} s per step`);
const stateText = (run) => [run.state, run.note].filter(Boolean).join(", ");

// The list

function showList(runs) {
  get("empty").hidden = runs.length > 0;
  const items = get("list").children;
  if (items.length !== runs.length) get("list").replaceChildren(...runs.map((run) => element("li", {}, listButton(run.number))));
  runs.forEach((run, index) => {
    const button = items[index].firstElementChild;
    button.setAttribute("aria-current", String(run.number === chosen));
    button.querySelector("strong").textContent = run.name;
    const state = button.querySelector(".state");
    state.textContent = run.state;
    state.dataset.state = run.state;
    const done = run.num_steps ? Math.min(1, run.step / run.num_steps) : 0;
    button.querySelector("progress").value = done;
    button.querySelector(".share").textContent = run.num_steps ? `${Math.floor(done * 100)} %` : "";
  });
}

function listButton(number) {
  const progress = element("progress", { max: 1, value: 0 });
  progress.setAttribute("aria-label", "Steps done");
  const button = element("button", { type: "button" }, element("strong"), progress,
    element("span", {}, element("span", { className: "state" }), element("span", { className: "share" })));
  button.addEventListener("click", () => choose(number));
  return button;
}

function choose(number) {
  history.replaceState(null, "", `#run-${number}`);
  if (number === chosen) return;
  chosen = number;
  known = null;
  say("");
  get("images").replaceChildren();
  get("log").textContent = "";
  attempt(look);
}

// The chosen run

async function look() {
  showList((await call("/ldm/runs")).runs);
  if (chosen === null) return;
  const mine = (turn += 1);
  const curves = known?.curves;
  const query = curves ? `?after=${curves.next}&key=${curves.key}&log=${known.log.num_lines}` : "";
  const answer = await call(`/ldm/runs/${chosen}${query}`);
  if (mine !== turn) return;
  const before = known;
  known = { ...answer, curves: joined(curves, answer.curves) };
  get("run").hidden = false;
  showHead(known);
  chart.show({ ...known.curves, num_steps: known.num_steps });
  get("legend").hidden = !known.curves.loss.length && !known.curves.held_out.length;
  for (const name of ["held-out", "best"]) get("legend").querySelector(`.${name}`).hidden = !known.curves.held_out.length;
  showPreviews(before);
  showLog(before, answer.log);
  if (known.ledger !== before?.ledger) await showLedger();
}

function joined(before, now) {
  const join = (name) => [...(before?.[name] ?? []).filter((point) => point[0] <= now.after), ...now[name]];
  return { ...now, loss: join("loss"), held_out: join("held_out") };
}

function showHead(run) {
  get("name").textContent = run.name;
  document.title = `${run.name}: ${run.state}`;
  if (get("state").textContent !== stateText(run)) get("state").textContent = stateText(run);
  get("state").dataset.state = run.state;
  get("fault").textContent = run.message;
  get("progress").value = run.num_steps ? Math.min(1, run.step / run.num_steps) : 0;
  get("start").hidden = !run.can_start;
  get("start").textContent = run.has_begun ? "Resume" : "Start";
  get("stop").hidden = !run.can_stop;
  const facts = {
    Step: run.num_steps ? `${count(run.step)} of ${count(run.num_steps)}` : count(run.step),
    Speed: run.steps_per_sec ? speed(run.steps_per_sec) : null,
    "Time left": run.left_sec === null ? null : duration(run.left_sec),
    "Time so far": run.elapsed_sec === null ? null : duration(run.elapsed_sec),
    "Lowest held-out loss": run.curves.best ? `${run.curves.best[1].toPrecision(4)} at ${count(run.curves.best[0])}` : null,
  };
  get("facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value !== null)
    .map(([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))));
  showLinks(run);
}

function showLinks(run) {
  const urls = run.pages.map((name) => `/ldm/runs/${run.number}/pages/${name}`);
  const shown = [...get("pages").children].map((link) => link.getAttribute("href"));
  if (urls.join() === shown.join()) return; // a link that has the focus keeps it
  get("pages").replaceChildren(...run.pages.map((name, index) =>
    element("a", { href: urls[index], target: "_blank", textContent: PAGES[name] })));
}

// Previews

function showPreviews(before) {
  get("previews").hidden = known.previews.length === 0;
  const slider = get("at");
  const wasNewest = !before || Number(slider.value) >= before.previews.length - 1;
  slider.max = Math.max(0, known.previews.length - 1);
  slider.disabled = known.previews.length < 2;
  if (wasNewest) slider.value = slider.max;
  showPreview();
}

async function showPreview() {
  const found = known?.previews[Number(get("at").value)];
  if (!found) return;
  const [step, time] = found;
  get("shown-step").textContent = count(step);
  get("at").setAttribute("aria-valuetext", `step ${step}`);
  const url = `/ldm/runs/${known.number}/previews/${step}.png?v=${time}`;
  if (get("images").dataset.url === url && get("images").children.length) return;
  get("images").dataset.url = url;
  const { prompts, columns } = known;
  const grid = new Image();
  grid.src = url;
  try {
    await grid.decode();
  } catch {
    get("images").dataset.url = ""; // it may be there next time
    return;
  }
  if (get("images").dataset.url !== url) return; // the slider has moved on
  get("images").classList.toggle("whole", prompts.length === 0);
  get("images").replaceChildren(...(prompts.length ? prompts.map((prompt, index) =>
    figure(grid, partOf(grid, index, columns, prompts.length), prompt, `step ${step}`))
    : [figure(grid, { x: 0, y: 0, width: grid.naturalWidth, height: grid.naturalHeight }, "", `Preview of step ${step}`)]));
}

function partOf(grid, index, columns, total) {
  const width = (grid.naturalWidth - GAP_PX) / columns - GAP_PX;
  const height = (grid.naturalHeight - GAP_PX) / Math.ceil(total / columns) - GAP_PX;
  const [row, column] = [Math.floor(index / columns), index % columns];
  return { x: GAP_PX + column * (width + GAP_PX), y: GAP_PX + row * (height + GAP_PX), width, height };
}

function figure(grid, part, prompt, where) {
  const canvas = element("canvas", { width: Math.max(1, Math.round(part.width)), height: Math.max(1, Math.round(part.height)) });
  canvas.className = part.width >= SMALL_PX ? "smooth" : "";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", prompt ? `${prompt}, ${where}` : where);
  canvas.getContext("2d").drawImage(grid, part.x, part.y, part.width, part.height, 0, 0, canvas.width, canvas.height);
  if (!prompt) canvas.style.width = `${ENLARGED * canvas.width}px`;
  return element("figure", {}, canvas, ...(prompt ? [element("figcaption", { textContent: prompt })] : []));
}

// The ledger and the output

async function showLedger() {
  get("ledger").hidden = !known.ledger;
  if (!known.ledger) return;
  const found = await call(`/ldm/runs/${known.number}/ledger`).catch((error) => {
    say(error.message); // once: it is asked for again when it has changed
    return { step: null, samples: [] };
  });
  get("ledger-title").textContent = found.step === null ? "Samples with the highest loss" : `Samples with the highest loss, at step ${count(found.step)}`;
  get("samples").replaceChildren(...found.samples.map((each) => {
    const noted = [...each.reasons, ...(each.held_out ? ["held out"] : [])].join(", ");
    const error = each.stderr === null ? [] : [" ", element("small", { textContent: `± ${each.stderr.toPrecision(2)}` })];
    return element("tr", {}, element("td", {}, each.loss.toPrecision(4), ...error),
      ...[each.sample_id, each.caption, noted].map((text) => element("td", { textContent: text })));
  }));
}

function showLog(before, log) {
  get("output").hidden = log.num_lines === 0;
  if (!log.lines.length) return;
  const lines = before?.log.num_lines ? [...get("log").textContent.split("\n"), ...log.lines] : log.lines;
  const wasAtEnd = get("log").scrollTop + get("log").clientHeight >= get("log").scrollHeight - 4;
  get("log").textContent = lines.slice(-LOG_LINES).join("\n");
  if (wasAtEnd) get("log").scrollTop = get("log").scrollHeight;
}

// Start

async function act(name) {
  await attempt(async () => {
    await call(`/ldm/runs/${chosen}/${name}`, { method: "POST" });
    await look();
  });
}

async function poll() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    if (document.hidden) continue;
    try {
      await look();
    } catch (error) {
      const isGone = error instanceof TypeError; // of fetch
      get("fault").textContent = isGone ? "the server cannot be reached: is ldm serve still running?" : error.message;
    }
  }
}

get("start").addEventListener("click", () => act("start"));
get("stop").addEventListener("click", () => act("stop"));
get("at").addEventListener("input", showPreview);
await attempt(async () => {
  const { runs } = await call("/ldm/runs");
  showList(runs);
  const wanted = Number(location.hash.replace("#run-", "") || NaN);
  const active = runs.find((run) => run.number === wanted) ?? runs.find((run) => run.state === "running") ?? runs[0];
  if (active) choose(active.number);
});
poll();
