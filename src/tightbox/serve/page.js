"use strict";
// The server finds every box above the detector's own threshold once; the sliders choose among them here.

const $ = (id) => document.getElementById(id);
const model = document.body.dataset.model;
const maxBytes = Number(document.body.dataset.maxMb) * 1e6;
// Okabe and Ito's colours, which people of any colour vision tell apart; the order is that of the drawn copies.
const PALETTE = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"];
const DARKEST = "#0072B2"; // white text stands out on this one, dark text on the others
const SVG = "http://www.w3.org/2000/svg";

let token = "";
let about = { class_names: [], predicts_iou: true, calibrated: false, score_threshold: 0 };
let image = null; // {name, width, height, detections}
let shown = []; // indices of the boxes that the sliders leave
let selected = null; // index of a box
let loosestFirst = false;
let retry = null; // what to send again once there is a token
let turn = 0; // of the image sent last; answers to earlier ones are dropped
let address = null; // of the image on show
let stream = null; // of the camera

const colour = (box) => PALETTE[box.label % PALETTE.length];
const two = (value) => value.toFixed(2);

function say(text, problem = false) {
  $("status").textContent = text || "\u00a0";
  $("status").classList.toggle("problem", problem);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
  }
  if (!answer.ok) {
    const content = await answer.json().catch(() => ({}));
    throw new Error(content.error || `the server answered ${answer.status}`);
  }
  return answer.json();
}

async function introduce() {
  const metadata = await ask(`/v2/models/${encodeURIComponent(model)}`);
  about = metadata.parameters;
  const names = about.class_names;
  const few = names.slice(0, 6).join(", ");
  $("facts").textContent = `${metadata.platform.replace("tightbox_", "")} · finds ${few}` +
    (names.length > 6 ? ` and ${names.length - 6} more` : "");
  document.body.classList.toggle("no-iou", !about.predicts_iou);
  $("iou-part").hidden = !about.predicts_iou;
  $("calibrated").textContent = !about.predicts_iou ? "This detector predicts none."
    : about.calibrated ? "The predicted ones are calibrated." : "The predicted ones are raw: this detector was not calibrated.";
}

async function send(file, name) {
  const mine = ++turn;
  retry = () => send(file, name);
  if (file.size > maxBytes) {
    say(`${name} is larger than ${document.body.dataset.maxMb} MB, the most accepted`, true);
    return;
  }
  show(file, name);
  say("Looking …");
  $("stage").classList.add("busy");
  const start = performance.now();
  try {
    const found = await ask("/predict?score_threshold=0", { method: "POST", body: file });
    if (mine !== turn) return;
    image = { name, ...found };
    retry = null;
    const seconds = (performance.now() - start) / 1000;
    say(`${name}, ${found.width} × ${found.height} pixels, answered in ${two(seconds)} s`);
  } catch (error) {
    if (mine !== turn) return;
    say(error.message, true);
  }
  $("stage").classList.remove("busy");
  $("download").disabled = image === null;
  draw();
}

function show(file, name) {
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  image = null;
  selected = null;
  $("photo").src = address;
  $("photo").alt = name;
  $("invitation").hidden = true;
  $("shown").hidden = false;
  $("download").disabled = true;
  draw();
}

function draw() {
  const boxes = image ? image.detections : [];
  const score = Number($("score").value), iou = Number($("iou").value);
  $("score-value").textContent = two(score);
  $("iou-value").textContent = two(iou);
  shown = boxes.map((_, i) => i).filter((i) => boxes[i].score >= score && (boxes[i].iou ?? 1) >= iou);
  if (loosestFirst) shown.sort((a, b) => (boxes[a].iou ?? 1) - (boxes[b].iou ?? 1));
  if (!shown.includes(selected)) selected = null;
  $("count").textContent = image === null ? "No image yet"
    : `${shown.length} of ${boxes.length} boxes${loosestFirst ? ", loosest first" : ""}`;
  drawBoxes(boxes);
  drawClasses(boxes);
  drawList(boxes);
  placeTags();
}

function drawBoxes(boxes) {
  const svg = $("boxes");
  if (image) svg.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const bySize = [...shown].sort((a, b) => area(boxes[b]) - area(boxes[a])); // small ones on top, to be clicked
  svg.replaceChildren(...bySize.map((i) => {
    const group = document.createElementNS(SVG, "g");
    group.dataset.box = i;
    for (const kind of ["rim", "line"]) {
      const [x1, y1, x2, y2] = boxes[i].box, rect = document.createElementNS(SVG, "rect");
      for (const [key, value] of Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: kind }))
        rect.setAttribute(key, value);
      if (kind === "line") rect.setAttribute("stroke", colour(boxes[i]));
      group.append(rect);
    }
    group.addEventListener("click", () => select(i));
    return group;
  }));
  $("tags").replaceChildren(...shown.map((i) => {
    const tag = document.createElement("div"), box = boxes[i];
    tag.className = "tag";
    tag.dataset.box = i;
    tag.textContent = `${box.class} ${two(box.score)}` + (box.iou === undefined ? "" : ` · IoU ${two(box.iou)}`);
    tag.style.background = colour(box);
    tag.style.color = colour(box) === DARKEST ? "#fff" : "#111";
    return tag;
  }));
  mark();
}

const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);

// The image fills the stage, but small ones are not blown up to a blur.
function fit() {
  const photo = $("photo"), most = innerHeight * (innerWidth > 960 ? 0.78 : 0.62);
  if (!photo.naturalWidth) return;
  const scale = Math.min($("stage").clientWidth / photo.naturalWidth, most / photo.naturalHeight, 2.5);
  photo.style.width = `${Math.max(1, Math.floor(photo.naturalWidth * scale))}px`;
  photo.style.height = `${Math.max(1, Math.floor(photo.naturalHeight * scale))}px`;
  placeTags();
}

// Tags of better boxes are placed first; one that would cover another is left out until its box is selected.
function placeTags() {
  if (image === null) return;
  const width = $("boxes").clientWidth, height = $("boxes").clientHeight;
  const taken = [];
  const tags = [...$("tags").children].sort((a, b) =>
    (Number(b.dataset.box) === selected) - (Number(a.dataset.box) === selected) || a.dataset.box - b.dataset.box);
  for (const tag of tags) {
    const [x1, y1, , y2] = image.detections[tag.dataset.box].box;
    const w = tag.offsetWidth, h = tag.offsetHeight;
    const x = Math.max(0, Math.min(x1 / image.width * width - 1, width - w));
    const above = y1 / image.height * height - h - 1, below = y2 / image.height * height + 1;
    const free = [above, below].filter((y) => y >= 0 && y + h <= height)
      .find((y) => !taken.some((t) => x < t.x + t.w && t.x < x + w && y < t.y + t.h && t.y < y + h));
    const forced = Number(tag.dataset.box) === selected ? Math.max(0, above) : undefined;
    const y = free ?? forced;
    tag.classList.toggle("hidden", y === undefined);
    if (y === undefined) continue;
    tag.style.transform = `translate(${x}px, ${y}px)`;
    taken.push({ x, y, w, h });
  }
}

function drawClasses(boxes) {
  const counts = new Map();
  for (const i of shown) counts.set(boxes[i].label, (counts.get(boxes[i].label) ?? 0) + 1);
  $("classes").replaceChildren(...[...counts].sort((a, b) => b[1] - a[1]).map(([label, count]) => {
    const item = document.createElement("li");
    item.append(swatch({ label }), `${count} ${about.class_names[label] ?? label}`);
    return item;
  }));
}

function swatch(box) {
  const square = document.createElement("span");
  square.className = "swatch";
  square.style.background = colour(box);
  return square;
}

function drawList(boxes) {
  const focused = Boolean(document.activeElement?.closest("#list"));
  $("list").replaceChildren(...shown.map((i) => {
    const row = document.createElement("div"), name = document.createElement("span"), text = document.createElement("span");
    row.className = "row";
    row.setAttribute("role", "option");
    row.dataset.box = i;
    name.className = "name";
    text.textContent = boxes[i].class;
    name.append(swatch(boxes[i]), text);
    row.append(name, cell(boxes[i].score));
    if (boxes[i].iou !== undefined) row.append(cell(boxes[i].iou));
    row.setAttribute("aria-label", `${boxes[i].class}, score ${two(boxes[i].score)}` +
      (boxes[i].iou === undefined ? "" : `, predicted IoU ${two(boxes[i].iou)}`));
    row.addEventListener("click", () => select(i));
    return row;
  }));
  mark(focused);
}

function cell(value) {
  const span = document.createElement("span");
  span.textContent = two(value);
  return span;
}

function select(i, focus = false) {
  selected = i === selected && !focus ? null : i;
  mark(focus);
  placeTags();
}

function mark(focus = false) {
  for (const layer of [$("boxes"), $("tags")]) {
    layer.classList.toggle("some-selected", selected !== null);
    for (const part of layer.children) part.classList.toggle("selected", Number(part.dataset.box) === selected);
  }
  [...$("list").children].forEach((row, position) => {
    const here = Number(row.dataset.box) === selected;
    row.setAttribute("aria-selected", here);
    row.tabIndex = here || (selected === null && position === 0) ? 0 : -1; // one stop of the tab key for the list
    if (here && focus) row.focus({ preventScroll: true });
    if (here) row.scrollIntoView({ block: "nearest" });
  });
}

function step(by) {
  if (!shown.length) return;
  const at = shown.indexOf(selected);
  const next = at < 0 ? (by > 0 ? 0 : shown.length - 1) : Math.max(0, Math.min(at + by, shown.length - 1));
  select(shown[next], true);
}

// A data set of one image; box coordinates as COCO has them, [x, y, width, height], and ids from 1.
function coco() {
  const annotations = shown.map((i, position) => {
    const { box: [x1, y1, x2, y2], score, label, iou } = image.detections[i];
    const row = {
      id: position + 1, image_id: 1, category_id: label + 1, bbox: [x1, y1, x2 - x1, y2 - y1].map((v) => Math.round(v * 1000) / 1000),
      area: Math.round((x2 - x1) * (y2 - y1) * 1000) / 1000, iscrowd: 0, score,
    };
    return iou === undefined ? row : { ...row, iou };
  });
  return {
    images: [{ id: 1, file_name: image.name, width: image.width, height: image.height }],
    annotations,
    categories: about.class_names.map((name, i) => ({ id: i + 1, name })),
  };
}

function download() {
  if (image === null) return;
  const file = new Blob([JSON.stringify(coco(), null, 2) + "\n"], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = `${image.name.replace(/\.[^.]*$/, "")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function openCamera() {
  if (stream) return;
  try {
    if (!navigator.mediaDevices) throw new Error("a browser gives the camera to https and localhost only");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch (error) {
    say(`The camera cannot be used: ${error.message}`, true);
    return;
  }
  $("video").srcObject = stream;
  $("live").hidden = false;
  $("invitation").hidden = $("shown").hidden = true;
  $("take").focus();
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("live").hidden = true;
  $("shown").hidden = address === null;
  $("invitation").hidden = address !== null;
}

function take() {
  const video = $("video"), canvas = document.createElement("canvas");
  if (!video.videoWidth) return;
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  closeCamera();
  canvas.toBlob((blob) => send(blob, "camera.jpg"), "image/jpeg", 0.95);
}

const imageIn = (transfer) => [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));

function receive(transfer) {
  const file = imageIn(transfer);
  if (file) {
    closeCamera();
    send(file, file.name || "pasted.png");
  } else say("That was no image", true);
}

$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  if ($("file").files.length) receive($("file"));
  $("file").value = "";
});
$("camera").addEventListener("click", openCamera);
$("take").addEventListener("click", take);
$("leave").addEventListener("click", closeCamera);
$("download").addEventListener("click", download);
for (const id of ["score", "iou"]) $(id).addEventListener("input", draw);
$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = $("token").value;
  $("token-form").hidden = true;
  try {
    await introduce();
    say("");
    retry?.();
  } catch (error) {
    say(error.message, true);
  }
});

let depth = 0; // of nested elements that a file is dragged over
addEventListener("dragenter", (event) => { event.preventDefault(); depth++; $("stage").classList.add("over"); });
addEventListener("dragleave", () => { if (--depth <= 0) { depth = 0; $("stage").classList.remove("over"); } });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("stage").classList.remove("over");
  receive(event.dataTransfer);
});
addEventListener("paste", (event) => {
  if (event.target.closest?.("input[type=password]")) return;
  receive(event.clipboardData);
});
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input[type=password]")) return;
  const inList = Boolean(event.target.closest?.("#list"));
  const actions = {
    o: () => $("file").click(), c: openCamera, s: download, j: () => step(1), k: () => step(-1),
    l: () => { loosestFirst = !loosestFirst; draw(); },
    Escape: () => { if (stream) closeCamera(); else if (selected !== null) select(selected); },
    ...(inList ? { ArrowDown: () => step(1), ArrowUp: () => step(-1), Home: () => shown.length && select(shown[0], true),
      End: () => shown.length && select(shown.at(-1), true) } : {}),
  };
  if (Object.hasOwn(actions, event.key)) {
    event.preventDefault();
    actions[event.key]();
  }
});
new ResizeObserver(fit).observe($("stage"));
addEventListener("resize", fit);
$("photo").addEventListener("load", fit);
$("photo").addEventListener("error", () => say("The browser cannot show this image", true));

draw();
introduce().catch((error) => { $("facts").textContent = ""; say(error.message, true); });
