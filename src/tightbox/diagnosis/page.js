"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const cards = JSON.parse(document.getElementById("cards").textContent);
  const by = (id) => document.getElementById(id);
  const list = by("list");
  const SORTS = {
    better: { severity: "IoU lost, most first", kept: "IoU kept, least first", score: "score, highest first", file: "image" },
    miss: { severity: "area, largest first", kept: "nearest IoU, least first", file: "image" },
    false_positive: { severity: "score, highest first", kept: "IoU, least first", file: "image" },
  };
  const NAMES = {
    better: { ground_truth: "object", kept: "kept", better: "better" },
    miss: { ground_truth: "object", kept: "nearest", better: "suppressed" },
    false_positive: { ground_truth: "nearest object", kept: "reported" },
  };
  const LAYERS = ["ground_truth", "kept", "better"];
  let shown = [];
  let current = 0;

  // A table that is wider than its place says so, until its last column is in sight.
  function watchTable(scroller) {
    const hint = scroller.previousElementSibling;
    const update = () => {
      const hidden = scroller.scrollWidth - scroller.clientWidth;
      const more = scroller.scrollLeft < hidden - 1; // half pixels are none
      scroller.classList.toggle("more", more);
      scroller.classList.toggle("scrolled", scroller.scrollLeft > 0);
      hint.hidden = hidden <= 0;
      hint.classList.toggle("at-end", !more); // it keeps its place, so that nothing jumps
      // The tab key stops only where the arrow keys have something to scroll.
      if (hidden > 0) scroller.tabIndex = 0;
      else scroller.removeAttribute("tabindex");
    };
    scroller.addEventListener("scroll", update, { passive: true });
    const observer = new ResizeObserver(update);
    observer.observe(scroller);
    observer.observe(scroller.firstElementChild);
  }
  document.querySelectorAll(".scroll").forEach(watchTable);

  const number = (value) => (value === null ? "–" : value.toFixed(2));
  const kind = () => document.querySelector("input[name=kind]:checked").value;

  function element(name, attributes = {}, text = null) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return made;
  }

  function shape(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function numbers(card, layer) {
    const box = card[layer];
    const parts = [NAMES[card.kind][layer]];
    if (box.iou !== null) parts.push(`IoU ${number(box.iou)}`);
    if (box.score !== null) parts.push(`score ${number(box.score)}`);
    if (box.predicted_iou !== null) parts.push(`predicted IoU ${number(box.predicted_iou)}`);
    return parts.join(", ");
  }

  function describe(card) {
    const boxes = LAYERS.filter((layer) => card[layer]).map((layer) => numbers(card, layer));
    return `${card.class_name} in ${card.image.file}: ${boxes.join("; ")}; ${card.why}`;
  }

  function drawing(card) {
    const [x, y, width, height] = card.view;
    const svg = shape("svg", { viewBox: `${x} ${y} ${width} ${height}`, role: "img", "aria-label": describe(card) });
    if (card.source) {
      svg.append(shape("image", { href: card.source, x, y, width, height, preserveAspectRatio: "none" }));
    }
    for (const layer of LAYERS) {
      if (!card[layer]) continue;
      const [left, top, w, h] = card[layer].box;
      const place = { x: left, y: top, width: Math.max(w, 0), height: Math.max(h, 0) };
      const rect = shape("rect", { ...place, class: `box ${layer}`, "data-layer": layer });
      const title = shape("title", {});
      title.textContent = numbers(card, layer);
      rect.append(title);
      svg.append(shape("rect", { ...place, class: "halo" }), rect);
    }
    return svg;
  }

  function result(card) {
    if (card.kind === "better") return `−${number(card.severity)}`;
    if (card.kind === "false_positive") return number(card.severity);
    return `${Math.round(card.severity).toLocaleString("en")} px`;
  }

  function option(card, index) {
    const made = element("div", { class: "card", role: "option", tabindex: "-1", "aria-selected": "false", "aria-label": describe(card) });
    const overlay = element("div", { class: "numbers", "aria-hidden": "true" });
    for (const layer of LAYERS) if (card[layer]) overlay.append(element("div", {}, numbers(card, layer)));
    const line = element("div", { class: "line" });
    line.append(element("span", {}, card.class_name), element("strong", {}, result(card)));
    const svg = drawing(card);
    svg.setAttribute("aria-hidden", "true");
    made.append(svg, overlay, line);
    made.addEventListener("click", () => select(index, true));
    return made;
  }

  function highlight(layer, on) {
    for (const part of document.querySelectorAll(`#selected [data-layer="${layer}"]`)) part.classList.toggle("highlighted", on);
  }

  function showSelected(card) {
    by("canvas").replaceChildren(drawing(card));
    by("selected-title").textContent = `${card.class_name} in ${card.image.file}`;
    by("why").textContent = card.why;
    const rows = LAYERS.filter((layer) => card[layer]).map((layer) => {
      const box = card[layer];
      const row = element("tr", { "data-layer": layer });
      const head = element("th", { scope: "row" }, NAMES[card.kind][layer]);
      head.prepend(element("span", { class: `key ${layer}` }));
      row.append(head, element("td", {}, box.class_name), ...[box.iou, box.score, box.predicted_iou].map((v) => element("td", {}, number(v))));
      return row;
    });
    by("boxes").tBodies[0].replaceChildren(...rows);
    for (const part of document.querySelectorAll("#selected [data-layer]")) {
      part.addEventListener("mouseenter", () => highlight(part.dataset.layer, true));
      part.addEventListener("mouseleave", () => highlight(part.dataset.layer, false));
    }
  }

  function select(index, focus) {
    if (!shown.length) return;
    list.children[current]?.setAttribute("aria-selected", "false");
    list.children[current]?.setAttribute("tabindex", "-1");
    current = Math.min(Math.max(index, 0), shown.length - 1);
    const chosen = list.children[current];
    chosen.setAttribute("aria-selected", "true");
    chosen.setAttribute("tabindex", "0");
    if (focus) {
      chosen.focus({ preventScroll: true });
      const [room, place] = [list.getBoundingClientRect(), chosen.getBoundingClientRect()];
      if (place.top < room.top || place.bottom > room.bottom) list.scrollTop += place.top - room.top - 4;
      if (place.left < room.left || place.right > room.right) list.scrollLeft += place.left - room.left - 4;
    }
    showSelected(shown[current]);
    by("place").textContent = `${current + 1} of ${shown.length}`;
    by("previous").disabled = current === 0;
    by("next").disabled = current === shown.length - 1;
    by("status").textContent = focus ? `${current + 1} of ${shown.length}: ${describe(shown[current])}` : `${shown.length} images`;
  }

  function show() {
    const [className, size, sort] = [by("class").value, by("size").value, by("sort").value];
    const iou = (card) => (card.kept ? card.kept.iou : 0);
    const orders = {
      severity: (a, b) => b.severity - a.severity,
      kept: (a, b) => iou(a) - iou(b),
      score: (a, b) => b.kept.score - a.kept.score,
      file: (a, b) => a.image.file.localeCompare(b.image.file, "en", { numeric: true }),
    };
    shown = cards
      .filter((card) => card.kind === kind() && (!className || card.class_name === className) && (!size || card.size === size))
      .sort(orders[sort]);
    current = 0;
    list.replaceChildren(...shown.map(option));
    by("selected").hidden = !shown.length;
    if (shown.length) select(0, false);
    else {
      list.replaceChildren(element("p", { class: "empty" }, "There is nothing of this kind."));
      by("status").textContent = "0 images";
    }
    list.scrollTo(0, 0);
  }

  function change(kindChanged) {
    if (kindChanged) {
      by("sort").replaceChildren(...Object.entries(SORTS[kind()]).map(([value, text]) => element("option", { value }, text)));
      const before = by("class").value;
      const classes = [...new Set(cards.filter((card) => card.kind === kind()).map((card) => card.class_name))].sort();
      by("class").replaceChildren(element("option", { value: "" }, "all"), ...classes.map((name) => element("option", { value: name }, name)));
      if (classes.includes(before)) by("class").value = before;
    }
    show();
  }

  document.addEventListener("keydown", (event) => {
    const at = document.activeElement;
    const inside = by("gallery").contains(at) && !at.closest("form");
    if (event.ctrlKey || event.metaKey || event.altKey || !(inside || at === document.body)) return;
    const moves = { j: 1, k: -1 };
    // Arrows scroll the page, unless somebody is among the images.
    if (inside) Object.assign(moves, { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity });
    if (!(event.key in moves)) return;
    event.preventDefault();
    select(current + moves[event.key], true);
  });
  for (const input of document.querySelectorAll("input[name=kind]")) input.addEventListener("change", () => change(true));
  for (const id of ["class", "size", "sort"]) by(id).addEventListener("change", () => change(false));
  by("previous").addEventListener("click", () => select(current - 1, false));
  by("next").addEventListener("click", () => select(current + 1, false));
  for (const place of document.querySelectorAll("[data-count]")) {
    place.textContent = `(${cards.filter((card) => card.kind === place.dataset.count).length})`;
  }
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  by("viewer").hidden = false;
  change(true);
})();
