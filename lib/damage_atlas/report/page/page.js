"use strict";
// The two maps are one view drawn twice: by class and by cluster. Points come in an order in which any prefix is a
// fair sample, so that while a finger moves only a prefix is drawn.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  // ---- pictures, cards, printing: also there when the map is empty
  const large = $("#large");
  let largeShot = null;
  for (const shot of $$(".shot")) {
    shot.addEventListener("click", () => {
      largeShot = shot;
      $(".pair", large).replaceChildren(...$$("img", shot).map((image) => image.cloneNode()));
      $("p", large).textContent = shot.dataset.note;
      $("[data-do=locate]", large).hidden = shot.dataset.point === "";
      large.showModal();
    });
  }
  $("[data-do=close]", large).addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  addEventListener("beforeprint", () => $$("details").forEach((box) => { box.open = true; }));

  const data = JSON.parse($("#map-data").textContent);
  if (!data.count) return;

  // ---- unpack
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const X = new Uint16Array(bytes(data.x)), Y = new Uint16Array(bytes(data.y));
  const keyOf = {label: new Uint16Array(bytes(data.label)), cluster: new Uint16Array(bytes(data.cluster))};
  const asset = new Uint16Array(bytes(data.asset)), confidence = new Uint8Array(bytes(data.confidence));
  const novelty = new Uint8Array(bytes(data.novelty)), flags = new Uint8Array(bytes(data.flags));
  const N = data.count, GIVEN = 1, LATEST = 2, NO_ASSET = 65535, SPAN = 65535;
  const missing = new Set(data.missing);
  const members = {label: [], cluster: []};  // key -> indices, ascending
  for (const kind of ["label", "cluster"]) {
    members[kind] = data[kind + "s"].map(() => []);
    for (let i = 0; i < N; i++) members[kind][keyOf[kind][i]].push(i);
  }
  const sheets = data.sheets.map((source) => { const image = new Image(); image.src = source; return image; });

  // ---- what is shown
  const view = {zoom: 1, x: 0.5, y: 0.5};  // centre in 0..1 of the map's square
  let alone = null;  // {kind, keys}: a legend selection
  let onlyLatest = false, hits = null, current = -1, pinned = false, hurried = false, frame = 0;
  const lit = new Uint8Array(N).fill(1);
  const plots = $$(".plot").map((figure) => ({
    kind: figure.dataset.kind, figure, canvas: $("canvas", figure), ring: $(".ring", figure), width: 0, height: 0,
  }));
  const maps = $(".maps"), tip = $("#tip"), found = $("#found"), everything = $("#everything");
  maps.dataset.show = "cluster";

  function filter() {
    for (let i = 0; i < N; i++) {
      lit[i] = (!alone || alone.keys.has(keyOf[alone.kind][i])) && (!onlyLatest || flags[i] & LATEST) ? 1 : 0;
    }
    everything.hidden = !alone && !onlyLatest && !hits;
    for (const plot of plots) {
      for (const button of $$(".legend button", plot.figure)) {
        const pressed = alone !== null && alone.kind === plot.kind && alone.keys.has(Number(button.dataset.key));
        button.setAttribute("aria-pressed", String(pressed));
      }
    }
    redraw();
  }

  // ---- drawing
  const scaleOf = (plot) => Math.min(plot.width, plot.height) * 0.93 * view.zoom / SPAN;
  const screenX = (plot, x) => (x - view.x * SPAN) * scaleOf(plot) + plot.width / 2;
  const screenY = (plot, y) => (view.y * SPAN - y) * scaleOf(plot) + plot.height / 2;
  const radius = () => Math.min(7, Math.max(1.3, 130 / Math.sqrt(N + 300)) * Math.sqrt(view.zoom));

  const trace = {
    circle: (c, x, y, r) => { c.moveTo(x + r, y); c.arc(x, y, r, 0, 7); },
    square: (c, x, y, r) => { const s = 0.88 * r; c.rect(x - s, y - s, 2 * s, 2 * s); },
    triangle: (c, x, y, r) => {
      c.moveTo(x, y - 1.1 * r); c.lineTo(x + r, y + 0.85 * r); c.lineTo(x - r, y + 0.85 * r); c.closePath();
    },
    diamond: (c, x, y, r) => {
      const s = 1.2 * r; c.moveTo(x, y - s); c.lineTo(x + s, y); c.lineTo(x, y + s); c.lineTo(x - s, y); c.closePath();
    },
  };

  function dots(plot, c, indices, wanted, shape, r, limit) {
    const draw = trace[r < 1.8 ? "square" : shape];
    c.beginPath();
    for (const i of indices) {
      if (i >= limit) break;
      if (lit[i] !== wanted) continue;
      const x = screenX(plot, X[i]), y = screenY(plot, Y[i]);
      if (x > -r && y > -r && x < plot.width + r && y < plot.height + r) draw(c, x, y, r);
    }
    c.fill();
  }

  function paint(plot) {
    const ratio = devicePixelRatio || 1, c = plot.canvas.getContext("2d");
    const box = plot.canvas.getBoundingClientRect();
    if (!box.width) return;
    plot.width = box.width; plot.height = box.height;
    const w = Math.round(box.width * ratio), h = Math.round(box.height * ratio);
    if (plot.canvas.width !== w || plot.canvas.height !== h) { plot.canvas.width = w; plot.canvas.height = h; }
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, plot.width, plot.height);
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink"), paper = style.getPropertyValue("--paper");
    const limit = hurried ? 6000 : N, r = radius(), groups = data[plot.kind + "s"];
    c.fillStyle = style.getPropertyValue("--line");
    if (alone || onlyLatest) groups.forEach((group, key) => dots(plot, c, members[plot.kind][key], 0, "circle", 0.7 * r, limit));
    c.globalAlpha = 0.85;
    groups.forEach((group, key) => {
      c.fillStyle = group.color;
      dots(plot, c, members[plot.kind][key], 1, group.shape, plot.kind === "cluster" && key === 0 ? 0.75 * r : r, limit);
    });
    c.globalAlpha = 1;
    if (hits) {
      c.strokeStyle = ink; c.lineWidth = 2; c.beginPath();
      for (const i of hits) trace.circle(c, screenX(plot, X[i]), screenY(plot, Y[i]), r + 3.5);
      c.stroke();
    }
    if (plot.kind === "cluster") {
      c.font = "650 14px system-ui, sans-serif"; c.textAlign = "center"; c.textBaseline = "middle"; c.lineJoin = "round";
      groups.forEach((group, key) => {
        if (key === 0 || (alone && alone.kind === "cluster" && !alone.keys.has(key))) return;
        const x = screenX(plot, group.x), y = screenY(plot, group.y);
        c.strokeStyle = paper; c.lineWidth = 4; c.strokeText(group.name, x, y);
        c.fillStyle = ink; c.fillText(group.name, x, y);
      });
    }
    place(plot);
  }

  function place(plot) {
    plot.ring.hidden = current < 0 || !plot.width;
    if (current < 0) return;
    plot.ring.style.transform = `translate(${screenX(plot, X[current])}px, ${screenY(plot, Y[current])}px)`;
  }

  function redraw() {
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; plots.forEach(paint); });
  }

  let calm = 0;
  function hurry() {  // a gesture goes on: draw less now, everything when it rests
    hurried = N > 6000;
    clearTimeout(calm);
    calm = setTimeout(() => { hurried = false; redraw(); }, 160);
    redraw();
  }

  // ---- the picture at the pointer
  function nearest(plot, x, y, reach) {
    let best = -1, least = reach * reach;
    for (let i = 0; i < N; i++) {
      if (!lit[i]) continue;
      const dx = screenX(plot, X[i]) - x, dy = screenY(plot, Y[i]) - y, d = dx * dx + dy * dy;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }

  function line(text, kind) {
    const p = document.createElement("p");
    p.textContent = text;
    if (kind) p.className = kind;
    return p;
  }

  function show(i, x, y, pin) {
    current = i;
    pinned = pin && i >= 0;
    plots.forEach(place);
    tip.hidden = i < 0;
    tip.classList.toggle("pinned", pinned);
    $(".close", tip).hidden = !pinned;
    if (i < 0) return;
    const words = $(".words", tip), cluster = data.clusters[keyOf.cluster[i]];
    const name = document.createElement("b");
    name.textContent = data.names[i];
    words.replaceChildren(name);
    const source = flags[i] & GIVEN ? "" : " (predicted)";
    words.append(line(data.labels[keyOf.label[i]].name + (data.labels[keyOf.label[i]].known ? source : "")));
    if (keyOf.cluster[i]) {
      const p = line("");
      if (pinned) {
        const link = document.createElement("a");
        link.href = "#cluster-" + cluster.name;
        link.textContent = "Cluster " + cluster.name;
        p.append(link);
      } else p.append("Cluster " + cluster.name);
      p.append(`${cluster.status && ` (${cluster.status})`}, confidence ${confidence[i]}%`);
      words.append(p);
    } else words.append(line("In no cluster (noise)"));
    words.append(line(`Novelty ${(novelty[i] / 100).toFixed(2)}` + (asset[i] === NO_ASSET ? "" : ` · ${data.assets[asset[i]]}`), "soft"));
    const thumb = $(".thumb", tip), there = i < data.thumbnails && !missing.has(i);
    thumb.hidden = !there;
    if (there) {
      const size = data.thumbnail_size, columns = data.sheet_columns, at = i % (columns * columns);
      const sheet = sheets[Math.floor(i / (columns * columns))];
      const put = () => {
        thumb.width = thumb.height = size;
        thumb.getContext("2d").drawImage(sheet, (at % columns) * size, Math.floor(at / columns) * size, size, size, 0, 0, size, size);
      };
      if (sheet.complete) put(); else sheet.addEventListener("load", put, {once: true});
    } else words.append(line(missing.has(i) ? "Its picture could not be read any more." : "No preview in this page.", "soft"));
    const box = tip.getBoundingClientRect();
    const left = x + 18 + box.width > innerWidth ? x - 18 - box.width : x + 18;
    const top = Math.min(Math.max(8, y - box.height / 2), innerHeight - box.height - 8);
    tip.style.transform = `translate(${Math.max(8, left)}px, ${top}px)`;
  }
  $(".close", tip).addEventListener("click", () => show(-1));
  addEventListener("keydown", (event) => { if (event.key === "Escape") show(-1); });

  // ---- moving
  function zoomAt(plot, x, y, factor) {
    const zoom = Math.min(60, Math.max(1, view.zoom * factor)), scale = scaleOf(plot) * SPAN;
    const k = 1 / scale - 1 / (scale * zoom / view.zoom);
    view.x += (x - plot.width / 2) * k;
    view.y -= (y - plot.height / 2) * k;
    view.zoom = zoom;
    keep();
  }
  function keep() {
    view.x = Math.min(1, Math.max(0, view.x));
    view.y = Math.min(1, Math.max(0, view.y));
    if (view.zoom === 1) view.x = view.y = 0.5;
    hurry();
  }
  function move(plot, dx, dy) {
    const scale = scaleOf(plot) * SPAN;
    view.x -= dx / scale; view.y += dy / scale;
    keep();
  }
  function reset() { view.zoom = 1; view.x = view.y = 0.5; hurry(); }

  for (const plot of plots) {
    const {canvas} = plot, held = new Map();
    let travelled = 0;
    const local = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    canvas.addEventListener("pointerdown", (event) => {
      held.set(event.pointerId, local(event));
      if (held.size === 1) travelled = 0;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = local(event), before = held.get(event.pointerId);
      if (!before) {
        if (!pinned && event.pointerType === "mouse") show(nearest(plot, x, y, 14), event.clientX, event.clientY, false);
        return;
      }
      if (held.size === 1) {
        travelled += Math.hypot(x - before[0], y - before[1]);
        if (travelled > 4) { if (!pinned) show(-1); move(plot, x - before[0], y - before[1]); }
      } else {
        const other = [...held].find(([id]) => id !== event.pointerId)[1];
        const was = Math.hypot(before[0] - other[0], before[1] - other[1]), is = Math.hypot(x - other[0], y - other[1]);
        travelled = 99;
        if (was > 0) zoomAt(plot, (x + other[0]) / 2, (y + other[1]) / 2, is / was);
        move(plot, (x - before[0]) / 2, (y - before[1]) / 2);
      }
      held.set(event.pointerId, [x, y]);
    });
    const release = (event) => {
      const tapped = event.type === "pointerup" && held.size === 1 && travelled <= 4;
      held.delete(event.pointerId);
      if (!tapped) return;
      const [x, y] = local(event);
      show(nearest(plot, x, y, event.pointerType === "mouse" ? 14 : 24), event.clientX, event.clientY, true);
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", () => { if (!pinned) show(-1); });
    canvas.addEventListener("wheel", (event) => {
      // A page that stops scrolling because the pointer crossed a map is a trap: the wheel zooms after a click.
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      zoomAt(plot, ...local(event), Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)));
    }, {passive: false});
    canvas.addEventListener("keydown", (event) => {
      const step = 40, middle = [plot.width / 2, plot.height / 2];
      const keys = {
        "+": () => zoomAt(plot, ...middle, 1.4), "=": () => zoomAt(plot, ...middle, 1.4), "-": () => zoomAt(plot, ...middle, 1 / 1.4),
        "0": reset, ArrowLeft: () => move(plot, step, 0), ArrowRight: () => move(plot, -step, 0),
        ArrowUp: () => move(plot, 0, step), ArrowDown: () => move(plot, 0, -step),
      };
      if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
    });
    $(".zoom", plot.figure).addEventListener("click", (event) => {
      const way = event.target.dataset.zoom;
      if (way === "reset") reset();
      else if (way) zoomAt(plot, plot.width / 2, plot.height / 2, way === "in" ? 1.6 : 1 / 1.6);
    });
    for (const button of $$(".legend button", plot.figure)) {
      button.addEventListener("click", (event) => {
        const key = Number(button.dataset.key), same = alone && alone.kind === plot.kind;
        if (same && (event.ctrlKey || event.metaKey || event.shiftKey)) {
          if (!alone.keys.delete(key)) alone.keys.add(key);
          if (!alone.keys.size) alone = null;
        } else alone = same && alone.keys.size === 1 && alone.keys.has(key) ? null : {kind: plot.kind, keys: new Set([key])};
        show(-1);
        filter();
      });
    }
    new ResizeObserver(redraw).observe(canvas);
  }

  // ---- tools
  for (const button of $$(".switch button")) {
    button.addEventListener("click", () => {
      maps.dataset.show = button.dataset.show;
      $$(".switch button").forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
      show(-1);
      redraw();
    });
  }
  const find = $("#find"), only = $("#only");
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    hits = null;
    if (wanted) {
      hits = [];
      for (let i = 0; i < N; i++) {
        const where = asset[i] === NO_ASSET ? "" : data.assets[asset[i]];
        if (data.names[i].toLowerCase().includes(wanted) || where.toLowerCase().includes(wanted)) hits.push(i);
      }
    }
    found.textContent = hits ? `${hits.length.toLocaleString("en")} found` : "";
    filter();
  });
  if (only) only.addEventListener("change", () => { onlyLatest = only.checked; filter(); });
  everything.addEventListener("click", () => {
    alone = hits = null;
    onlyLatest = false;
    find.value = found.textContent = "";
    if (only) only.checked = false;
    reset();
    filter();
  });
  function locate(cluster, point) {
    const key = data.clusters.findIndex((group) => group.name === String(cluster));
    if (key < 0) return;
    alone = {kind: "cluster", keys: new Set([key])};
    reset();
    filter();
    $("#map").scrollIntoView();
    show(-1);
    if (point === "") return;
    current = Number(point);
    plots.forEach(place);
  }
  for (const button of $$(".locate")) button.addEventListener("click", () => locate(button.dataset.cluster, ""));
  $("[data-do=locate]", large).addEventListener("click", () => { large.close(); locate(largeShot.dataset.cluster, largeShot.dataset.point); });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => plots.forEach(paint));
  addEventListener("scroll", () => { if (!pinned && current >= 0 && !tip.hidden) show(-1); }, {passive: true});
  document.documentElement.dataset.map = "ready";
  redraw();
})();
