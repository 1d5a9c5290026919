// Draws schedules and simulated runs that allreduce.schedules.export has written. No dependencies.
(function () {
  "use strict";
  const root = document.getElementById("explore");
  const layouts = root.dataset.layouts.split(" ");
  const data = {};
  const state = { layout: "2x4", algorithm: "", bytes: 0, network: "", round: 0, timer: 0 };
  const SVG = "http://www.w3.org/2000/svg";
  const ADDS = "#e8710a", COPIES = "#2f80ed";

  root.innerHTML = `
    <style>
      #explore { font-size: 0.8rem; }
      #explore .controls { display: flex; flex-wrap: wrap; gap: 0.6rem 1rem; align-items: end; }
      #explore label { display: flex; flex-direction: column; gap: 0.15rem; }
      #explore select, #explore button, #explore input { font: inherit; color: inherit;
        background: transparent; border: 1px solid currentColor; border-radius: 0.2rem;
        padding: 0.2rem 0.4rem; }
      #explore select option { color: #000; background: #fff; }
      #explore svg { width: 100%; height: auto; display: block; }
      #explore .moves { font-family: monospace; min-height: 3em; overflow-wrap: anywhere; }
      #explore .scroll { overflow-x: auto; }
    </style>
    <div class="controls">
      <label>Layout <select id="ex-layout"></select></label>
      <label>Algorithm <select id="ex-algorithm"></select></label>
      <label>Buffer <select id="ex-bytes"></select></label>
      <label>Network <select id="ex-network"></select></label>
      <label>Round <input id="ex-round" type="range" min="0" value="0"></label>
      <button id="ex-play" type="button">Play</button>
    </div>
    <p id="ex-title" role="status"></p>
    <div id="ex-picture"></div>
    <p id="ex-moves" class="moves"></p>
    <p id="ex-traffic"></p>
    <div id="ex-timeline" class="scroll"></div>`;
  const at = (id) => document.getElementById("ex-" + id);

  function element(parent, name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  function fill(select, values, chosen, words) {
    select.replaceChildren(...values.map((value) => {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = words ? words(value) : value;
      return option;
    }));
    select.value = chosen;
  }

  const sizeName = (n) => (n >= 1 << 20 ? n / (1 << 20) + " MiB" : n / 1024 + " KiB");
  const amount = (n) => (n >= 1e6 ? (n / 1e6).toFixed(1) + " MB"
    : n >= 1e3 ? (n / 1e3).toFixed(1) + " kB" : Math.round(n) + " B");
  const duration = (us) => (us >= 1e4 ? (us / 1e3).toFixed(1) + " ms" : us.toFixed(1) + " us");

  function nodeOf(nodes) {
    return nodes.flatMap((size, node) => Array(size).fill(node));
  }

  // The centre of each rank, and the frame of each node.
  function places(nodes) {
    const width = 640, height = 380, frames = [], ranks = [];
    nodes.forEach((size, node) => {
      const turn = (2 * Math.PI * node) / nodes.length - (nodes.length === 2 ? Math.PI : Math.PI / 2);
      const x = width / 2 + 215 * Math.cos(turn), y = height / 2 + 135 * Math.sin(turn);
      const columns = Math.ceil(Math.sqrt(size)), rows = Math.ceil(size / columns), step = 62;
      for (let i = 0; i < size; ++i)
        ranks.push([x + ((i % columns) - (columns - 1) / 2) * step,
          y + (Math.floor(i / columns) - (rows - 1) / 2) * step]);
      frames.push([x - (columns * step) / 2, y - (rows * step) / 2, columns * step, rows * step, size]);
    });
    const top = Math.min(...frames.map((frame) => frame[1])) - 24;
    const bottom = Math.max(...frames.map((frame) => frame[1] + frame[3])) + 24;
    return { view: `0 ${top} ${width} ${bottom - top}`, frames, ranks };
  }

  // What each rank's chunks hold before a round: a set of contributions, a bit for a rank.
  function holdings(schedule, p, round) {
    let held = Array.from({ length: p }, (_, r) => Array(schedule.chunks).fill(1n << BigInt(r)));
    for (const moves of schedule.rounds.slice(0, round)) {
      const before = held.map((chunks) => chunks.slice());
      for (const [src, dst, lo, hi, adds] of moves)
        for (let c = lo; c < hi; ++c)
          held[dst][c] = adds ? held[dst][c] | before[src][c] : before[src][c];
    }
    return held;
  }

  function drawPicture(page, schedule) {
    const where = places(page.nodes), p = where.ranks.length, all = (1n << BigInt(p)) - 1n;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", where.view);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "moves of round " + state.round);
    const defs = element(svg, "defs", {});
    for (const [name, colour] of [["adds", ADDS], ["copies", COPIES]]) {
      const marker = element(defs, "marker", { id: "ex-" + name, viewBox: "0 0 8 8", refX: 7, refY: 4,
        markerWidth: 5, markerHeight: 5, orient: "auto" });
      element(marker, "path", { d: "M0 0 L8 4 L0 8 z", fill: colour });
    }
    for (const [x, y, w, h, size] of where.frames)
      if (size > 1)
        element(svg, "rect", { x: x - 4, y: y - 4, width: w + 8, height: h + 8, rx: 10, fill: "none",
          stroke: "currentColor", "stroke-opacity": 0.35 });
    for (const [src, dst, lo, hi, adds] of schedule.rounds[state.round] || []) {
      const [x1, y1] = where.ranks[src], [x2, y2] = where.ranks[dst];
      const dx = x2 - x1, dy = y2 - y1, length = Math.hypot(dx, dy) || 1, r = 19;
      const bend = Math.min(34, length / 6);
      const mx = (x1 + x2) / 2 - (dy / length) * bend, my = (y1 + y2) / 2 + (dx / length) * bend;
      const a = Math.atan2(my - y1, mx - x1), b = Math.atan2(my - y2, mx - x2);
      const path = element(svg, "path", {
        d: `M${x1 + r * Math.cos(a)} ${y1 + r * Math.sin(a)} Q${mx} ${my} ` +
          `${x2 + r * Math.cos(b)} ${y2 + r * Math.sin(b)}`,
        fill: "none", stroke: adds ? ADDS : COPIES, "stroke-width": 2,
        "marker-end": `url(#ex-${adds ? "adds" : "copies"})` });
      element(path, "title", {}, `${src} to ${dst}: chunks ${lo} to ${hi - 1}`);
    }
    const held = holdings(schedule, p, state.round);
    where.ranks.forEach(([x, y], rank) => {
      const done = held[rank].filter((set) => set === all).length / schedule.chunks;
      const around = 2 * Math.PI * 15;
      element(svg, "circle", { cx: x, cy: y, r: 15, fill: "none", stroke: "currentColor",
        "stroke-opacity": 0.3, "stroke-width": 3 });
      element(svg, "circle", { cx: x, cy: y, r: 15, fill: "none", stroke: "#1a9850", "stroke-width": 3,
        "stroke-dasharray": `${done * around} ${around}`, transform: `rotate(-90 ${x} ${y})` });
      element(svg, "text", { x, y: y + 4, "text-anchor": "middle", "font-size": 12,
        fill: "currentColor" }, rank);
    });
    at("picture").replaceChildren(svg);
  }

  function drawTimeline(run, p) {
    const left = 52, row = 9, width = 900, height = p * (2 * row + 4) + 22;
    const end = run.seconds * 1e6;
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "simulated timeline, " + duration(end));
    svg.style.minWidth = "520px";
    const x = (us) => left + ((width - left - 8) * us) / end;
    for (let rank = 0; rank < p; ++rank)
      element(svg, "text", { x: left - 8, y: rank * (2 * row + 4) + row + 4, "text-anchor": "end",
        "font-size": 10, fill: "currentColor" }, "rank " + rank);
    for (const [rank, sends, peer, round, begin, finish] of run.spans) {
      const bar = element(svg, "rect", { x: x(begin), width: Math.max(0.6, x(finish) - x(begin)),
        y: rank * (2 * row + 4) + (sends ? 0 : row), height: row - 1, fill: sends ? COPIES : ADDS,
        "fill-opacity": round === state.round ? 1 : 0.3 });
      element(bar, "title", {}, `rank ${rank} ${sends ? "sends to" : "receives from"} ${peer}, round ` +
        `${round}: ${duration(begin)} to ${duration(finish)}`);
    }
    for (let i = 0; i <= 4; ++i)
      element(svg, "text", { x: x((end * i) / 4), y: height - 4, "font-size": 10, fill: "currentColor",
        "text-anchor": i === 0 ? "start" : i === 4 ? "end" : "middle" }, duration((end * i) / 4));
    at("timeline").replaceChildren(svg);
  }

  function sent(page, schedule) {
    const node = nodeOf(page.nodes), bound = (c) => Math.floor((state.bytes / 4) * c / schedule.chunks) * 4;
    const ranks = Array(node.length).fill(0), nodes = Array(page.nodes.length).fill(0);
    for (const moves of schedule.rounds)
      for (const [src, dst, lo, hi] of moves) {
        ranks[src] += bound(hi) - bound(lo);
        if (node[src] !== node[dst]) nodes[node[src]] += bound(hi) - bound(lo);
      }
    return `Each rank sends up to ${amount(Math.max(...ranks))}; each node sends up to ` +
      `${amount(Math.max(...nodes))} to other nodes. The buffer is ${amount(state.bytes)}.`;
  }

  function draw() {
    const page = data[state.layout];
    if (!page) return;
    const names = Object.keys(page.algorithms);
    if (!names.includes(state.algorithm))
      state.algorithm = names.find((name) => name === "hierarchical:halving_doubling") ||
        "halving_doubling";
    state.bytes = state.bytes || page.bytes[1];
    state.network = state.network || page.networks[0];
    fill(at("algorithm"), names, state.algorithm);
    fill(at("bytes"), page.bytes, state.bytes, sizeName);
    fill(at("network"), page.networks, state.network);
    const schedule = page.algorithms[state.algorithm], last = schedule.rounds.length;
    state.round = Math.min(state.round, last);
    at("round").max = last;
    at("round").value = state.round;
    const run = schedule.runs[state.network + "/" + state.bytes];
    at("title").textContent = `${state.algorithm}, ${state.layout}: ` +
      (state.round < last ? `round ${state.round + 1} of ${last}` : `done after ${last} rounds`) +
      `. Simulated time on ${state.network}: ${duration(run.seconds * 1e6)}.`;
    at("moves").textContent = (schedule.rounds[state.round] || []).map(([src, dst, lo, hi, adds]) =>
      `${src}${adds ? "+>" : "=>"}${dst}[${hi - lo > 1 ? lo + "-" + (hi - 1) : lo}]`).join("  ");
    at("traffic").textContent = sent(page, schedule);
    drawPicture(page, schedule);
    drawTimeline(run, nodeOf(page.nodes).length);
    root.dataset.drawn = `${state.layout} ${state.algorithm} ${state.round}`;
  }

  function load(layout) {
    state.layout = layout;
    state.round = 0;
    if (data[layout]) return draw();
    const script = document.createElement("script");
    script.src = "explore/data/" + layout + ".js";
    document.head.appendChild(script);
  }

  function play() {
    if (state.timer) {
      clearInterval(state.timer);
      state.timer = 0;
    } else {
      state.timer = setInterval(() => {
        const page = data[state.layout];
        const last = page ? page.algorithms[state.algorithm].rounds.length : 0;
        state.round = state.round >= last ? 0 : state.round + 1;
        draw();
      }, 900);
    }
    at("play").textContent = state.timer ? "Pause" : "Play";
  }

  window.explore = { add: (layout, page) => { data[layout] = page; if (layout === state.layout) draw(); } };
  fill(at("layout"), layouts, state.layout);
  at("layout").addEventListener("change", (event) => load(event.target.value));
  at("algorithm").addEventListener("change", (event) => { state.algorithm = event.target.value; draw(); });
  at("bytes").addEventListener("change", (event) => { state.bytes = Number(event.target.value); draw(); });
  at("network").addEventListener("change", (event) => { state.network = event.target.value; draw(); });
  at("round").addEventListener("input", (event) => { state.round = Number(event.target.value); draw(); });
  at("play").addEventListener("click", play);
  load(state.layout);
})();
