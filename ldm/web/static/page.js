// The page: a form built from the server's description of the settings, the jobs of this browser, and a viewer.

import { attempt, call, element, get, say } from "./requests.js";

const POLL_MS = 300;
const MOST_CELLS = 64;
const MOST_MISSES = 10; // answers in a row that do not come
const INK = "#6d28d9"; // of the mask as it is shown
const SPECIAL = ["expand"]; // settings with an input of their own in page.html

let form = { model: "", models: [], fields: [], tasks: {}, loras: [], controls: [], caps: {} };
let viewed = null; // { job, image } in the viewer
let maskIsDrawn = false;
const cards = new Map(); // job id -> { element, data }

// The form

function inputOf(field) {
  const id = `set-${field.name}`;
  const shown = field.default === null || field.default === "" ? "" : String(field.default);
  if (field.input === "choice") {
    const select = element("select", { id });
    const standard = field.choices[field.default] ?? shown;
    select.append(element("option", { value: "", textContent: `${standard} (default)` }));
    for (const [value, title] of Object.entries(field.choices)) {
      if (value !== "" && value !== field.default) select.append(element("option", { value, textContent: title }));
    }
    return select;
  }
  if (field.input === "switch") return element("input", { id, type: "checkbox", checked: field.default === true });
  if (field.input === "number") {
    const step = field.whole ? (["width", "height"].includes(field.name) ? 8 : 1) : "any";
    const input = element("input", { id, type: "number", placeholder: field.name === "seed" ? "random" : shown });
    input.step = step === 8 ? "1" : String(step);
    if (field.min !== null) input.min = field.min;
    if (field.max !== null) input.max = field.max;
    return input;
  }
  if (field.input === "pair") {
    const one = (index, suffix) => {
      const input = element("input", { id: `${id}${suffix}`, type: "number", step: field.whole ? "1" : "any" });
      input.placeholder = field.default === null ? "" : String(field.default[index]);
      input.setAttribute("aria-label", `${field.label}, ${index ? "second" : "first"} number`);
      return input;
    };
    return element("div", { className: "pair" }, one(0, ""), one(1, "-2"));
  }
  if (field.long) return element("textarea", { id, rows: 2 });
  return element("input", { id, type: "text", placeholder: shown });
}

function fieldElement(field) {
  const input = inputOf(field);
  const label = element("label", { htmlFor: `set-${field.name}`, textContent: field.label, title: field.help });
  const target = field.input === "pair" ? input.firstChild : input;
  const help = element("p", { id: `help-${field.name}`, className: "hint", textContent: field.help });
  help.hidden = Boolean(field.first);  // read out all the same
  target.setAttribute("aria-describedby", help.id);
  const made = element("div", { className: "field" });
  made.dataset.setting = field.name;
  if (field.input === "switch") {
    label.className = "switch";
    label.prepend(input);
    made.classList.add("switch-field");
    made.append(label);
  } else {
    made.append(label, input);
  }
  if (field.long || !field.first || field.name === "scheduler") made.classList.add("wide");
  made.append(help);
  return made;
}

function buildForm(description) {
  form = description;
  get("model").textContent = form.model;
  get("models").replaceChildren(
    ...form.models.map((name) => element("option", { value: name, textContent: name, selected: name === form.model })));
  get("model-choice").hidden = form.models.length < 2;
  get("one-model").hidden = form.models.length > 1;
  for (const id of ["first", "rest"]) get(id).replaceChildren();
  for (const id of ["loras", "controls"]) get(id).replaceChildren(get(id).firstElementChild);
  for (const field of form.fields.filter((each) => !SPECIAL.includes(each.name))) {
    get(field.first ? "first" : "rest").append(fieldElement(field));
  }
  form.loras.forEach((lora, index) => {
    const id = `lora-${index}`;
    const output = element("output", { htmlFor: id, textContent: lora.weight.toFixed(2) });
    const range = element("input", { id, type: "range", min: -1, max: 2, step: 0.05, value: lora.weight });
    range.addEventListener("input", () => { output.textContent = Number(range.value).toFixed(2); });
    get("loras").append(
      element("div", { className: "lora" }, element("label", { htmlFor: id, textContent: lora.name }), range, output));
  });
  get("loras").hidden = form.loras.length === 0;
  for (const kind of form.controls) {
    get("controls").append(element("div", { className: "field" },
      element("label", { htmlFor: `control-${kind}`, textContent: kind }),
      element("input", { id: `control-${kind}`, type: "file", accept: "image/*" }),
      element("label", { htmlFor: `scale-${kind}`, textContent: `${kind}: scale` }),
      element("input", { id: `scale-${kind}`, type: "number", step: "any", min: 0, placeholder: "1" })));
  }
  get("controls").hidden = form.controls.length === 0;
  showFittingFields();
}

// The form for another model; what was typed stays where that model has the field, too.
async function chooseModel(name) {
  const typed = new Map();
  for (const field of form.fields.filter((each) => !SPECIAL.includes(each.name))) typed.set(field.name, valueOf(field));
  localStorage.setItem("model", name);
  buildForm(await call(`/ldm/form?model=${encodeURIComponent(name)}`));
  for (const field of form.fields) if (typed.get(field.name) !== undefined) setValue(field, typed.get(field.name));
}

function expansion() {
  const sides = [...document.querySelectorAll("[data-side]")].filter((input) => Number(input.value) > 0);
  return sides.map((input) => `${input.dataset.side}=${Math.round(Number(input.value))}`).join(",");
}

function hasImage() {
  return !get("drawing").hidden;
}

function hasMask() {
  return hasImage() && (maskIsDrawn || get("mask-file").files.length > 0 || expansion() !== "");
}

function currentTask() {
  return form.tasks[hasMask() ? "image mask" : hasImage() ? "image" : ""];
}

function showFittingFields() {
  const task = currentTask();
  for (const field of form.fields) {
    const shown = document.querySelector(`[data-setting="${field.name}"]`);
    if (shown) shown.hidden = field.tasks.length > 0 && !field.tasks.includes(task);
  }
}

function valueOf(field) {
  const input = get(`set-${field.name}`);
  if (field.input === "switch") return input.checked === (field.default === true) ? undefined : input.checked;
  if (field.input === "pair") {
    const values = [input, get(`${input.id}-2`)].map((each) => each.value.trim());
    if (values.every((value) => value === "")) return undefined;
    return values.map((value, index) => (value === "" ? field.default?.[index] ?? 0 : Number(value)));
  }
  const value = input.value;
  if (value.trim() === "") return undefined;
  return field.input === "number" ? Number(value) : value;
}

function setValue(field, value) {
  const input = get(`set-${field.name}`);
  const isDefault = value === undefined || JSON.stringify(value) === JSON.stringify(field.default);
  if (field.input === "switch") {
    input.checked = value ?? field.default === true;
  } else if (field.input === "pair") {
    input.value = isDefault ? "" : value[0];
    get(`${input.id}-2`).value = isDefault ? "" : value[1];
  } else {
    input.value = isDefault ? "" : String(value);
    if (field.input === "choice" && input.selectedIndex < 0) input.value = "";
  }
}

async function dataUrl(blob) {
  return await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file cannot be read"));
    reader.readAsDataURL(blob);
  });
}

async function request() {
  const asked = { prompt: get("prompt").value, model: form.model };
  for (const field of form.fields) {
    const shown = document.querySelector(`[data-setting="${field.name}"]`);
    const value = shown && !shown.hidden ? valueOf(field) : undefined;
    if (value !== undefined) asked[field.name] = value;
  }
  if (form.loras.length) asked.loras = form.loras.map((_, index) => Number(get(`lora-${index}`).value));
  if (get("grid-x").value.trim()) asked.grid_x = get("grid-x").value;
  if (get("grid-y").value.trim()) asked.grid_y = get("grid-y").value;
  if (hasImage()) {
    asked.image = get("picture").src;
    const file = get("mask-file").files[0];
    if (file) asked.mask = await dataUrl(file);
    else if (maskIsDrawn) asked.mask = drawnMask();
    if (expansion()) asked.expand = expansion();
  }
  for (const kind of form.controls) {
    const file = get(`control-${kind}`).files[0];
    if (!file) continue;
    asked.controls ??= {};
    asked.controls[kind] = { image: await dataUrl(file), scale: Number(get(`scale-${kind}`).value || 1) };
  }
  return asked;
}

function resetForm() {
  for (const field of form.fields) if (!SPECIAL.includes(field.name)) setValue(field, undefined);
  for (const id of ["grid-x", "grid-y"]) get(id).value = "";
}

async function useSettings(blob) {
  const found = await call("/ldm/read", { method: "POST", body: { image: await dataUrl(blob) } });
  if (found.model && found.model !== form.model) await chooseModel(found.model);
  resetForm();
  get("prompt").value = found.prompt;
  for (const field of form.fields) {
    if (!SPECIAL.includes(field.name) && field.name in found.settings) setValue(field, found.settings[field.name]);
  }
  const needs = found.needs.filter(() => !hasImage());
  const notes = [found.note, needs.length ? `it was made from another image: give that one too (${needs.join(", ")})` : ""];
  say(notes.filter(Boolean).join("; "));
  get("prompt").focus();
}

// The image to start from, and its mask

async function useImage(blob) {
  const url = await dataUrl(blob);
  const picture = get("picture");
  await new Promise((resolve, reject) => {
    picture.onload = resolve;
    picture.onerror = () => reject(new Error("the browser cannot show this image: save it as PNG or JPEG"));
    picture.src = url;
  });
  get("mask").width = picture.naturalWidth;
  get("mask").height = picture.naturalHeight;
  clearMask();
  get("brush").max = Math.max(10, Math.round(Math.max(picture.naturalWidth, picture.naturalHeight) / 3));
  get("brush").value = Math.max(2, Math.round(picture.naturalWidth / 10));
  get("source").open = true;
  get("drawing").hidden = false;
  showFittingFields();
}

function clearMask() {
  get("mask").getContext("2d").clearRect(0, 0, get("mask").width, get("mask").height);
  maskIsDrawn = false;
  get("mask-file").value = "";
  showFittingFields();
}

function removeImage() {
  get("drawing").hidden = true;
  get("picture").removeAttribute("src");
  get("image").value = "";
  for (const input of document.querySelectorAll("[data-side]")) input.value = "";
  clearMask();
}

function drawnMask() {
  const source = get("mask");
  const flat = element("canvas", { width: source.width, height: source.height });
  const context = flat.getContext("2d");
  context.drawImage(source, 0, 0);
  context.globalCompositeOperation = "source-in"; // white where anything is drawn
  context.fillStyle = "#fff";
  context.fillRect(0, 0, flat.width, flat.height);
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "#000";
  context.fillRect(0, 0, flat.width, flat.height);
  return flat.toDataURL("image/png");
}

function invertMask() {
  const canvas = get("mask");
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "xor";
  context.fillStyle = INK;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
  maskIsDrawn = true;
  showFittingFields();
}

function drawingOnMask() {
  const canvas = get("mask");
  let last = null;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * canvas.width,
      y: ((event.clientY - box.top) / box.height) * canvas.height,
    };
  };
  const stroke = (event) => {
    const context = canvas.getContext("2d");
    const to = place(event);
    context.globalCompositeOperation = get("eraser").checked ? "destination-out" : "source-over";
    context.strokeStyle = INK;
    context.lineWidth = Number(get("brush").value);
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(last.x, last.y);
    context.lineTo(to.x + 0.01, to.y);
    context.stroke();
    context.globalCompositeOperation = "source-over";
    last = to;
    maskIsDrawn = true;
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(event);
    showFittingFields();
  });
  canvas.addEventListener("pointermove", (event) => { if (last) stroke(event); });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { last = null; });
}

// Jobs

const isFinished = (job) => ["done", "failed", "cancelled"].includes(job.state);

function headline(job) {
  if (job.state === "waiting") return job.place ? `waiting, ${job.place} before it` : "waiting";
  if (job.state === "running") {
    const steps = job.num_steps ? `, step ${job.step} of ${job.num_steps}` : "";
    return `${job.images.length} of ${job.num_images} made${steps}`;
  }
  const counted = `${job.images.length} image${job.images.length === 1 ? "" : "s"}`;
  return job.state === "done" ? counted : `${job.state}, ${counted}`;
}

function cardOf(id) {
  if (!cards.has(id)) {
    const card = element("article", { className: "job" },
      element("div", { className: "job-head" }, element("h2"), element("p")),
      element("progress", { max: 1, value: 0 }), element("div", { className: "images" }),
      element("p", { className: "message" }), element("ul", { className: "notes" }));
    card.querySelector("progress").setAttribute("aria-label", "Progress");
    get("results").prepend(card);
    cards.set(id, { element: card, data: null });
    get("empty").hidden = true;
  }
  return cards.get(id);
}

function imageButton(job, image) {
  const button = element("button", { type: "button", className: "cell" },
    element("img", { src: image.url, alt: image.prompt }), element("span", { textContent: `seed ${image.seed}` }));
  button.addEventListener("click", () => view(job.id, image.number));
  return button;
}

function showJob(job, prompt) {
  const card = cardOf(job.id);
  const known = card.data;
  card.data = job;
  const part = (selector) => card.element.querySelector(selector);
  part("h2").textContent = job.images[0]?.prompt ?? prompt ?? part("h2").textContent;
  part(".job-head p").textContent = headline(job);
  part("progress").value = job.progress;
  part("progress").hidden = isFinished(job);
  part(".message").textContent = job.error ?? "";
  part(".notes").replaceChildren(...job.warnings.map((text) => element("li", { textContent: text })));
  showCells(job, known, part(".images"));
  if (isFinished(job) && job.images.length > 1 && !part(".grid-link")) addGrid(job, card.element);
}

function showCells(job, known, cells) {
  if ((known?.images.length ?? 0) !== job.images.length || !cells.children.length || isFinished(job)) {
    const made = job.images.map((image) => imageButton(job, image));
    const open = isFinished(job) ? 0 : Math.min(job.num_images, MOST_CELLS) - made.length;
    cells.replaceChildren(...made, ...Array.from({ length: Math.max(0, open) }, () => element("div", { className: "cell" })));
  }
  const empty = [...cells.querySelectorAll("div.cell")];
  job.previews.forEach((url, index) => {
    if (!empty[index]) return;
    const shown = empty[index].querySelector("img") ?? element("img", { className: "preview", alt: "Preview" });
    shown.src = url;
    empty[index].append(shown);
  });
}

function addGrid(job, card) {
  const url = `/ldm/jobs/${job.id}/grid.png`;
  const link = element("a", { className: "button grid-link", href: url, download: "grid.png", textContent: "Download grid" });
  if (job.has_axes) card.append(element("img", { className: "sheet", src: url, alt: "All images over the settings" }));
  card.append(element("div", { className: "actions" }, link));
}

function unfinished() {
  return [...cards.values()].map((card) => card.data).filter((job) => job && !isFinished(job));
}

function showStatus() {
  const open = unfinished();
  get("stop").disabled = open.length === 0;
  get("status").textContent = open.length ? `${open.length} request${open.length === 1 ? "" : "s"} at work` : "ready";
}

async function lookAtJobs() {
  const ids = unfinished().map((job) => job.id);
  const found = new Map((await call(`/ldm/jobs?ids=${ids.join(",")}`)).jobs.map((job) => [job.id, job]));
  for (const id of ids) {
    const gone = { ...cards.get(id).data, state: "failed", previews: [], error: "the server has dropped this request" };
    showJob(found.get(id) ?? gone);
  }
  showStatus();
}

let isPolling = false;
async function poll() {
  if (isPolling) return;
  isPolling = true;
  let misses = 0;
  while (unfinished().length) {
    try {
      await lookAtJobs();
      misses = 0;
    } catch (error) {
      misses += 1;
      if (misses === MOST_MISSES) {
        say(`the server cannot be reached (${error.message}): is ldm serve still running? Then reload this page`);
        break;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, misses ? 1000 : POLL_MS));
  }
  isPolling = false;
}

async function generate() {
  await attempt(async () => {
    const asked = await request();
    showJob(await call("/ldm/jobs", { method: "POST", body: asked }), asked.prompt || "no words");
    if (matchMedia("(max-width: 820px)").matches) get("results").scrollIntoView({ block: "start" });
    showStatus();
    poll();
  });
}

async function stop() {
  await attempt(async () => {
    for (const job of unfinished()) showJob(await call(`/ldm/jobs/${job.id}`, { method: "DELETE" }));
  });
}

// The viewer

function view(jobId, number) {
  const job = cards.get(jobId).data;
  const image = job.images.find((each) => each.number === number);
  if (!image) return;
  viewed = { jobId, image };
  get("large").src = image.url;
  get("large").alt = image.prompt;
  const maker = form.models.length > 1 ? `, ${image.model}` : "";
  get("caption").textContent = `${image.prompt} — seed ${image.seed}, ${image.width} × ${image.height}${maker}`;
  get("download").href = image.url;
  get("download").download = image.file_name;
  if (!get("viewer").open) get("viewer").showModal();
}

function viewNext(offset) {
  const images = cards.get(viewed.jobId).data.images;
  const index = images.findIndex((each) => each.number === viewed.image.number) + offset;
  if (images[index]) view(viewed.jobId, images[index].number);
}

async function viewedBlob() {
  return await (await fetch(viewed.image.url)).blob();
}

// Start

function listen() {
  get("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
  get("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate();
  });
  get("stop").addEventListener("click", stop);
  get("models").addEventListener("change", () => attempt(() => chooseModel(get("models").value)));
  get("reset").addEventListener("click", resetForm);
  const files = { image: useImage, reuse: useSettings };
  for (const [id, action] of Object.entries(files)) {
    get(id).addEventListener("change", async () => {
      const file = get(id).files[0];
      if (file) await attempt(() => action(file));
      get(id).value = "";
    });
  }
  get("mask-file").addEventListener("change", showFittingFields);
  for (const input of document.querySelectorAll("[data-side]")) input.addEventListener("input", showFittingFields);
  get("clear").addEventListener("click", clearMask);
  get("invert").addEventListener("click", invertMask);
  get("remove").addEventListener("click", removeImage);
  get("close").addEventListener("click", () => get("viewer").close());
  get("again").addEventListener("click", () => attempt(async () => {
    const blob = await viewedBlob();
    get("viewer").close();
    await useSettings(blob);
  }));
  get("start").addEventListener("click", () => attempt(async () => {
    const blob = await viewedBlob();
    get("viewer").close();
    await useImage(blob);
  }));
  get("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") viewNext(1);
    if (event.key === "ArrowLeft") viewNext(-1);
  });
  drawingOnMask();
  dropping();
}

function dropping() {
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    get("source").classList.toggle("over", get("source").contains(event.target));
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    get("source").classList.remove("over");
    const file = event.dataTransfer.files[0];
    if (file) attempt(() => (get("source").contains(event.target) ? useImage(file) : useSettings(file)));
  });
}

listen();
attempt(async () => {
  buildForm(await call("/ldm/form"));
  const before = localStorage.getItem("model");
  if (before !== form.model && form.models.includes(before)) await chooseModel(before);
  get("runs-link").hidden = (await call("/ldm/runs")).runs.length === 0;
  for (const job of (await call("/ldm/jobs")).jobs) showJob(job);
  showStatus();
  poll();
});
