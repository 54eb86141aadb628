"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const root = document.documentElement;

/* ---- theme -------------------------------------------------------------------------------- */

const themes = ["auto", "light", "dark"];
const asked = new URLSearchParams(location.search).get("theme");
let theme = themes.includes(asked) ? asked : "auto";
const probe = document.createElement("i");
probe.hidden = true;
document.body.append(probe);

function color(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function applyTheme() {
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
  $("theme").textContent = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[theme];
}

/* ---- series ------------------------------------------------------------------------------- */

function unpack(packed) {
  const values = [];
  let sum = 0;
  let last = null;
  for (const entry of packed.d) {
    if (Array.isArray(entry)) {
      for (let i = 0; i < entry[0]; i += 1) values.push(last);
      continue;
    }
    if (entry === null) last = null;
    else {
      sum += entry;
      last = sum * packed.s;
    }
    values.push(last);
  }
  return values;
}

const scaled = (packed, factor) => unpack(packed).map((v) => (v === null ? null : v * factor));

function digits(value, top, fixed) {
  const places = fixed ?? (top >= 100 ? 0 : top >= 10 ? 1 : top >= 1 ? 2 : 3);
  return value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
}

/* h:mm:ss from the start of the run. */
function clock(seconds) {
  const s = Math.round(seconds);
  const two = (n) => String(n).padStart(2, "0");
  return `${Math.floor(s / 3600)}:${two(Math.floor((s % 3600) / 60))}:${two(s % 60)}`;
}

/* Ticks of time at whole seconds, minutes or hours. */
const STEPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 14400, 21600, 43200, 86400, 172800];

function tickLabel(seconds, step) {
  if (step < 60) return `${Math.round(seconds)} s`;
  if (step < 3600) return seconds < 7200 && step * 40 > seconds ? `${Math.round(seconds / 60)} min` : `${Math.floor(seconds / 3600)}:${String(Math.round((seconds % 3600) / 60)).padStart(2, "0")} h`;
  return `${Math.round(seconds / 3600)} h`;
}

/* ---- panels: what is drawn of a run ------------------------------------------------------- */

const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
const known = ["fault", "budget", "exposure", "admission", "plan"];
const kindColor = (kind) => color(known.includes(kind) ? kind : "soft");

function roleColor(role) {
  return ["prefill", "decode", "aggregated"].includes(role) ? role : "enforced";
}

/* Folds say what several steps become when there is no room for each: the instant at which the fleet
   stood closest to its budget, the mean, or the largest. */
function poolSeries(run, key, factor, extra) {
  const seen = {};
  return run.pools.map((pool) => {
    const nth = seen[pool.role] = (seen[pool.role] ?? -1) + 1;
    return { label: pool.name, color: roleColor(pool.role), dash: DASHES[nth % DASHES.length], values: scaled(pool[key], factor), fold: "instant", ...extra };
  });
}

function line(label, name, values, extra) {
  return { label, color: name, dash: [], values, fold: "mean", ...extra };
}

function constant(run, value) {
  return run.x.map(() => value);
}

function panelsOf(run) {
  const p = run.power;
  const kw = (packed) => scaled(packed, 1e-3);
  const step = { stepped: true, fold: "instant" };
  const many = run.deployments.length > 1;
  const starting = run.pools.some((pool) => unpack(pool.starting).some((v) => v > 0));
  const panels = [
    { key: "power", title: "Power against budget", unit: "kW", places: 2, height: 270, wide: true, zero: true, series: [
      line("Budget", "budget", kw(p.budget), { ...step, width: 2 }),
      line("Booked", "booked", kw(p.booked), { ...step, dash: [6, 4] }),
      line("Enforced", "enforced", kw(p.enforced), { ...step, width: 1.75 }),
      line("1 s peak", "draw", kw(p.peak), { width: 1, faint: 0.55, fold: "largest" }),
      line("Drawn", "draw", kw(p.draw), { fill: 0.2 }),
    ] },
    { key: "caps", title: "Cap per pool", note: "mean enforced limit of its GPUs", unit: "W per GPU", series: poolSeries(run, "cap", 1, step) },
    { key: "replicas", title: "Replicas", note: starting ? "serving; thin: starting" : "serving", unit: "replicas", zero: true, whole: true, series: [
      ...poolSeries(run, "ready", 1, step),
      ...(starting ? poolSeries(run, "starting", 1, { ...step, fold: "largest", width: 1, faint: 0.5, unlisted: true }) : []),
    ] },
    { key: "queue", title: "Prompt tokens waiting or running", unit: "thousand tokens", zero: true, coarse: true, wide: many, series: poolSeries(run, "queue", 1e-3, { fold: "mean" }) },
  ];
  run.deployments.forEach((served, index) => {
    const of = many ? `${served.name} · ` : "";
    panels.push(
      { key: `rate${index}`, title: `${of}Requests`, unit: "req/s", zero: true, coarse: true, wide: many, series: [
        line("Offered", "offered", unpack(served.offered), { width: 1.25 }),
        line("Goodput", "goodput", unpack(served.goodput), { width: 1.75 }),
        line("Rejected", "rejected", unpack(served.rejected), { dash: [4, 3] }),
      ] },
      { key: `ttft${index}`, title: `${of}Time to first token`, unit: "s (log)", log: true, coarse: true, series: [
        line("Target", "budget", constant(run, served.ttft_target_s), { dash: [6, 4], width: 1.25 }),
        line("p99", "prefill", unpack(served.ttft_p99), { width: 1.5, fold: "largest" }),
        line("p50", "prefill", unpack(served.ttft_p50), { width: 1, faint: 0.6 }),
      ] },
      { key: `itl${index}`, title: `${of}Inter-token latency`, unit: "ms (log)", log: true, coarse: true, series: [
        line("Target", "budget", constant(run, served.itl_target_s * 1e3), { dash: [6, 4], width: 1.25 }),
        line("p99", "decode", scaled(served.itl_p99, 1e3), { width: 1.5, fold: "largest" }),
        line("p50", "decode", scaled(served.itl_p50, 1e3), { width: 1, faint: 0.6 }),
      ] },
    );
  });
  return panels.filter((panel) => panel.series.some((s) => s.values.some((v) => v !== null && (panel.key !== "queue" || v > 0))));
}

/* ---- y ranges: the same for the two runs of a row ----------------------------------------- */

function rangeOf(panels) {
  let low = Infinity;
  let high = -Infinity;
  for (const panel of panels) for (const s of panel.series) for (const v of s.values) {
    if (v === null || (panel.log && v <= 0)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  const { log, zero, whole } = panels[0];
  if (low > high) return log ? [0.1, 1] : [0, 1];
  if (log) return [low / 1.25, high * 1.25];
  if (whole) return [0, high + 1];
  if (zero) return [0, high > 0 ? high * 1.06 : 1];
  const pad = Math.max((high - low) * 0.1, high * 0.02, 1e-9);
  return [Math.max(0, low - pad), high + pad];
}

/* ---- folding steps, so that a plot has about as many points as it has room for ------------ */

const FOLDS = {
  instant: (values, first, end, tight) => values[tight],
  mean: (values, first, end) => {
    let sum = 0;
    let count = 0;
    for (let i = first; i < end; i += 1) if (values[i] !== null) { sum += values[i]; count += 1; }
    return count ? sum / count : null;
  },
  largest: (values, first, end) => {
    let top = null;
    for (let i = first; i < end; i += 1) if (values[i] !== null && (top === null || values[i] > top)) top = values[i];
    return top;
  },
};

function folded(run, series, group) {
  if (group === 1) return [run.x, ...series.map((s) => s.values)];
  const columns = [[], ...series.map(() => [])];
  for (let first = 0; first < run.x.length; first += group) {
    const end = Math.min(first + group, run.x.length);
    let tight = first;
    for (let i = first + 1; i < end; i += 1) if (run.headroom[i] < run.headroom[tight]) tight = i;
    columns[0].push(run.x[first]);
    series.forEach((s, index) => columns[index + 1].push(FOLDS[s.fold](s.values, first, end, tight)));
  }
  /* The last point again at the last instant, so that every plot ends at the same time. */
  const end = run.x[run.x.length - 1];
  if (columns[0][columns[0].length - 1] < end) columns.forEach((column, index) => column.push(index ? column[column.length - 1] : end));
  return columns;
}

/* Steps per point for the part of time from `low` to `high` on a plot of `width` pixels. */
function groupFor(run, panel, low, high, width) {
  const room = Math.max(30, width / (panel.coarse ? 4 : 1.6));
  const shown = run.x.reduce((count, t) => count + (t >= low && t <= high), 0);
  return Math.max(1, Math.ceil(shown / room));
}

/* ---- plots -------------------------------------------------------------------------------- */

const FONT = "11px system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif";
const sync = uPlot.sync("time");
let plots = [];
let marked = null;

function soften(rgb, alpha) {
  const [red, green, blue] = rgb.match(/[\d.]+/g);
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

function lonely(u, index) {
  const values = u.data[index];
  const found = [];
  for (let i = 0; i < values.length; i += 1) {
    if (values[i] !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null) found.push(i);
  }
  return found;
}

function uSeries(s) {
  const stroke = s.faint ? soften(color(s.color), s.faint) : color(s.color);
  return {
    label: s.label,
    stroke,
    width: s.width ?? 1.5,
    dash: s.dash,
    fill: s.fill ? soften(color(s.color), s.fill) : undefined,
    paths: s.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
    points: { show: true, size: 4, filter: lonely },
  };
}

function xAxis() {
  return {
    stroke: color("soft"), font: FONT, size: 20, gap: 4, space: 70,
    grid: { stroke: color("grid"), width: 1 }, ticks: { show: false }, incrs: STEPS,
    values: (u, splits, axis, space, step) => splits.map((v) => tickLabel(v, step)),
  };
}

function yAxis(panel) {
  return {
    stroke: color("soft"), font: FONT, labelFont: FONT, label: panel.unit, labelSize: 18, labelGap: 0, size: 46, gap: 4,
    space: panel.log ? 22 : 30,
    grid: { stroke: color("grid"), width: 1 }, ticks: { show: false },
    incrs: panel.whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] : undefined,
    splits: panel.log ? logSplits : undefined,
    filter: panel.log ? (u, splits) => splits : undefined,
    values: (u, splits) => splits.map((v) => (v === null ? "" : Number(v.toPrecision(4)).toLocaleString("en-US"))),
  };
}

function logSplits(u, axis, low, high) {
  const decades = Math.log10(high / low);
  const steps = decades > 3.2 ? [1] : decades > 1.6 ? [1, 3] : decades > 0.8 ? [1, 2, 5] : [1, 2, 3, 4, 5, 7];
  const splits = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const step of steps) {
      const value = Number((step * 10 ** power).toPrecision(1));
      if (value >= low && value <= high) splits.push(value);
    }
  }
  return splits;
}

function drawMarks(u, run) {
  const { ctx, bbox } = u;
  const shown = run.events.filter((event) => event.kind !== "plan" && event.kind !== "admission");
  const vertical = (event, width, alpha) => {
    const x = Math.round(u.valToPos(event.t, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    ctx.strokeStyle = soften(kindColor(event.kind), alpha);
    ctx.lineWidth = width * devicePixelRatio;
    ctx.setLineDash([]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  };
  ctx.save();
  if (shown.length <= 60) for (const event of shown) vertical(event, 1, 0.35);
  if (marked && marked.run === run) vertical(marked, 2, 0.9);
  ctx.restore();
}

const sameX = [(key, other) => key === other, () => false];
const cursorOptions = () => ({
  y: false,
  sync: { key: "time", scales: ["x", null], match: sameX },
  drag: { x: true, y: false },
  points: { size: 5 },
  focus: { prox: -1 },
});

function element(tag, className, textContent) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (textContent !== undefined) made.textContent = textContent;
  return made;
}

function swatch(s) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M0 4h16");
  path.setAttribute("stroke", color(s.color));
  path.setAttribute("stroke-opacity", s.faint ?? 1);
  path.setAttribute("stroke-width", Math.max(2, s.width ?? 1.5));
  if (s.dash.length) path.setAttribute("stroke-dasharray", s.dash.join(" "));
  svg.append(path);
  return svg;
}

function describe(panel, run) {
  const parts = panel.series.filter((s) => !s.unlisted).map((s) => {
    const values = s.values.filter((v) => v !== null);
    if (!values.length) return `${s.label}: nothing measured`;
    const low = values.reduce((a, b) => Math.min(a, b));
    const high = values.reduce((a, b) => Math.max(a, b));
    return `${s.label}: ${digits(low, high)} to ${digits(high, high)}`;
  });
  return `${panel.title} in ${panel.unit}, ${run.label}. ${parts.join("; ")}.`;
}

function addPanel(panel, run, range, showRun) {
  const box = element("section", panel.wide ? "panel wide" : "panel");
  const head = element("h3", "", panel.title);
  head.append(element("small", "", showRun ? run.label : panel.note ?? ""));
  const keys = element("div", "keys");
  const chart = element("div", "chart");
  chart.tabIndex = 0;
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", describe(panel, run));
  box.append(head, keys, chart);
  $("plots").append(box);

  const outputs = [];
  const width = Math.max(chart.clientWidth, 200);
  let group = groupFor(run, panel, -Infinity, Infinity, width);
  const label = head.lastChild;
  const said = label.textContent;
  const stepped = () => { label.textContent = [said, `steps of ${Number((group * run.step).toPrecision(3))} s`].filter(Boolean).join(" · "); };
  const refold = (u) => {
    const next = groupFor(run, panel, u.scales.x.min, u.scales.x.max, u.width);
    if (next === group) return;
    group = next;
    stepped();
    u.setData(folded(run, panel.series, group), false);
  };
  const options = {
    width,
    height: panel.height ?? 190,
    legend: { show: false },
    padding: [8, 8, 0, 0],
    cursor: cursorOptions(),
    scales: { x: { time: false }, y: { range: () => range, ...(panel.log ? { distr: 3 } : {}) } },
    axes: [xAxis(), yAxis(panel)],
    series: [{}, ...panel.series.map(uSeries)],
    hooks: {
      draw: [(u) => drawMarks(u, run)],
      setScale: [(u, key) => { if (key === "x" && u.status === 1) queueMicrotask(() => refold(u)); }],
      setCursor: [(u) => {
        const { idx, event } = u.cursor;
        panel.series.forEach((s, index) => {
          const value = idx === null || idx === undefined ? null : u.data[index + 1][idx];
          if (outputs[index]) outputs[index].textContent = value === null || value === undefined ? "" : digits(value, Math.abs(value), panel.places);
        });
        if (event) showTime(u.data[0][idx]);
      }],
    },
  };
  const plot = new uPlot(options, folded(run, panel.series, group), chart);
  stepped();
  panel.series.forEach((s, index) => {
    if (s.unlisted) return;
    const key = element("button");
    key.type = "button";
    key.setAttribute("aria-pressed", "true");
    const output = element("output");
    key.append(swatch(s), s.label, output);
    key.addEventListener("click", () => {
      const show = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", String(show));
      plot.setSeries(index + 1, { show });
    });
    keys.append(key);
    outputs[index] = output;
  });
  register(plot, chart);
}

function showTime(seconds) {
  $("tip").textContent = seconds === undefined || seconds === null ? "" : `at ${clock(seconds)}`;
}

function register(plot, chart) {
  sync.sub(plot);
  plots.push({ plot, chart });
  chart.addEventListener("keydown", (event) => {
    const x = plot.data[0];
    const last = x.length - 1;
    const now = plot.cursor.idx ?? 0;
    const stride = event.shiftKey ? 10 : 1;
    const next = { ArrowRight: now + stride, ArrowLeft: now - stride, Home: 0, End: last }[event.key];
    if (event.key === "Escape") resetZoom();
    if (next === undefined) return;
    event.preventDefault();
    const index = Math.min(last, Math.max(0, next));
    for (const each of plots) each.plot.setCursor({ left: each.plot.valToPos(x[index], "x"), top: 10 });
    showTime(x[index]);
  });
}

/* The event track is a plot of its own, so that it shares axis, cursor and zoom with the others. */
function addTrack(run, showRun) {
  const kinds = known.filter((kind) => run.events.some((event) => event.kind === kind));
  for (const event of run.events) if (!kinds.includes(event.kind)) kinds.push(event.kind);
  if (!kinds.length) return;
  const box = element("section", "panel wide");
  const head = element("h3", "", "Events");
  head.append(element("small", "", showRun ? run.label : "hover or use the list below for the reasons"));
  const chart = element("div", "chart");
  const said = element("div", "said");
  said.setAttribute("aria-live", "polite");
  box.append(head, chart, said);
  $("plots").append(box);
  const lane = (event) => kinds.length - 1 - kinds.indexOf(event.kind);
  const draw = (u) => {
    const { ctx } = u;
    ctx.save();
    for (const event of run.events) {
      const x = u.valToPos(event.t, "x", true);
      if (x < u.bbox.left - 1 || x > u.bbox.left + u.bbox.width + 1) continue;
      const y = u.valToPos(lane(event), "y", true);
      const on = marked && marked.run === run && marked.index === event.index;
      ctx.fillStyle = soften(kindColor(event.kind), on ? 1 : 0.75);
      ctx.beginPath();
      ctx.arc(x, y, (on ? 6 : 3.5) * devicePixelRatio, 0, 2 * Math.PI);
      ctx.fill();
    }
    ctx.restore();
  };
  const hover = (u) => {
    const { left, top } = u.cursor;
    if (left < 0 || !u.cursor.event) return;
    let best = null;
    let reach = 14;
    for (const event of run.events) {
      const dx = Math.abs(u.valToPos(event.t, "x") - left);
      const dy = Math.abs(u.valToPos(lane(event), "y") - top);
      if (dy < 12 && dx < reach) { reach = dx; best = event; }
    }
    if (best) said.textContent = sentence(best);
  };
  const plot = new uPlot({
    width: Math.max(chart.clientWidth, 200), height: 30 + 24 * kinds.length, legend: { show: false }, padding: [8, 8, 0, 0],
    cursor: { ...cursorOptions(), points: { show: false } },
    scales: { x: { time: false }, y: { range: () => [-0.6, kinds.length - 0.4] } },
    axes: [xAxis(), {
      stroke: color("soft"), font: FONT, size: 64, gap: 4, grid: { stroke: color("grid"), width: 1 }, ticks: { show: false },
      splits: () => kinds.map((kind, index) => index), values: (u, splits) => splits.map((v) => kinds[kinds.length - 1 - v]),
    }],
    series: [{}, { show: true, paths: () => null, points: { show: false } }],
    hooks: { draw: [draw], setCursor: [hover] },
  }, [run.x, constant(run, null)], chart);
  register(plot, chart);
}

function sentence(event) {
  const exposed = event.ws ? ` (exposed ${digits(event.ws, event.ws)} W·s)` : "";
  return `${clock(event.t)} · ${event.kind} · ${event.text}${exposed}`;
}

/* ---- the list of events ------------------------------------------------------------------- */

const hiddenKinds = new Set();

function listEvents(run) {
  $("event-box").hidden = !run.events.length;
  const left = run.event_count - run.events.length;
  $("event-count").textContent = `· ${run.label} · ${run.event_count.toLocaleString("en-US")}${left > 0 ? `, an even selection of ${run.events.length} shown` : ""}`;
  const kinds = [...new Set(run.events.map((event) => event.kind))];
  $("kinds").replaceChildren(...kinds.map((kind) => {
    const label = element("label");
    const box = element("input");
    box.type = "checkbox";
    box.checked = !hiddenKinds.has(kind);
    box.addEventListener("change", () => {
      if (box.checked) hiddenKinds.delete(kind);
      else hiddenKinds.add(kind);
      fillEvents(run);
    });
    label.append(box, dot(kind), kind);
    return label;
  }));
  fillEvents(run);
}

function dot(kind) {
  const made = element("i");
  made.style.background = `var(--${known.includes(kind) ? kind : "soft"})`;
  return made;
}

function fillEvents(run) {
  $("events").replaceChildren(...run.events.filter((event) => !hiddenKinds.has(event.kind)).map((event) => {
    const item = element("li");
    const button = element("button");
    button.type = "button";
    const kind = element("span");
    kind.append(dot(event.kind), event.kind);
    button.append(element("time", "", clock(event.t)), kind, element("span", "", event.text), element("small", "", event.ws ? `${digits(event.ws, event.ws)} W·s exposed` : ""));
    button.addEventListener("click", () => {
      marked = marked && marked.run === run && marked.index === event.index ? null : { ...event, run };
      for (const other of $("events").children) other.removeAttribute("aria-current");
      if (marked) item.setAttribute("aria-current", "true");
      for (const { plot } of plots) plot.redraw(false);
    });
    item.append(button);
    return item;
  }));
}

/* ---- putting it together ------------------------------------------------------------------ */

const ready = new Map();

function load(index) {
  if (!ready.has(index)) {
    const run = data.runs[index];
    const events = run.events.map(([t, kind, text, ws], number) => ({ t, kind: data.kinds[kind], text: data.texts[text], ws, index: number }));
    const loaded = { ...run, x: unpack(run.time), events };
    const [budget, enforced] = [unpack(run.power.budget), unpack(run.power.enforced)];
    loaded.headroom = budget.map((watts, i) => watts - enforced[i]);
    loaded.step = loaded.x.length > 1 ? loaded.x[1] - loaded.x[0] : run.step_s;
    loaded.panels = panelsOf(loaded);
    ready.set(index, loaded);
  }
  return ready.get(index);
}

function facts(run) {
  const box = element("div", "fact");
  const list = element("dl");
  for (const [label, figure, note, state] of run.tiles) {
    const item = element("div", state);
    item.title = note;
    item.append(element("dt", "", label), element("dd", "", figure));
    list.append(item);
  }
  box.append(element("h3", "", run.label), list);
  return box;
}

function draw() {
  for (const { plot } of plots) { sync.unsub(plot); plot.destroy(); }
  plots = [];
  $("plots").replaceChildren();
  const against = $("against").value;
  const shown = [load(Number($("run").value)), ...(against === "" ? [] : [load(Number(against))])];
  const several = shown.length > 1;
  $("over-time").classList.toggle("one", !several);
  $("facts").replaceChildren(...(data.runs.length > 1 ? shown.map(facts) : []));
  const keys = [...new Set(shown.flatMap((run) => run.panels.map((panel) => panel.key)))];
  for (const key of keys) {
    const row = shown.map((run) => run.panels.find((panel) => panel.key === key));
    const range = rangeOf(row.filter(Boolean));
    shown.forEach((run, index) => {
      if (row[index]) addPanel(row[index], run, range, several);
      else $("plots").append(element("section", "panel", `${key}: nothing measured`));
    });
    if (key === "power") shown.forEach((run) => addTrack(run, several));
  }
  listEvents(shown[0]);
}

function resetZoom() {
  for (const { plot } of plots) {
    const x = plot.data[0];
    plot.setScale("x", { min: x[0], max: x[x.length - 1] });
  }
}

/* The run beside keeps its policy and takes the budget of the run that was just chosen. */
function followBudget() {
  const other = data.runs[$("against").value];
  if (other) {
    const budget = data.runs[$("run").value].budget_w;
    const same = data.runs.findIndex((run) => run.policy === other.policy && run.budget_w === budget);
    if (same >= 0) $("against").value = same;
  }
  draw();
}

function option(value, label) {
  const made = element("option", "", label);
  made.value = value;
  return made;
}

function options(select) {
  const groups = new Map();
  data.runs.forEach((run, index) => {
    if (!groups.has(run.budget)) groups.set(run.budget, []);
    groups.get(run.budget).push([index, run]);
  });
  for (const [budget, runs] of [...groups].sort((a, b) => a[1][0][1].budget_w - b[1][0][1].budget_w)) {
    const group = document.createElement("optgroup");
    group.label = budget;
    for (const [index, run] of runs) group.append(option(index, run.label));
    select.append(group);
  }
}

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending" && column > 1;
      const up = head.getAttribute("aria-sort") === "descending" || (column < 2 && head.getAttribute("aria-sort") !== "ascending");
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sign = up ? 1 : -1;
      const value = (row) => row.cells[column].dataset.v;
      const rows = [...body.rows].sort((a, b) => {
        const [p, q] = [value(a), value(b)];
        if (p === "" || q === "") return (p === "") - (q === "");
        return column === 0 ? sign * p.localeCompare(q, "en") : sign * (Number(p) - Number(q));
      });
      for (const row of rows) { row.classList.remove("first"); body.append(row); }
    });
  });
}

function start() {
  $("theme").hidden = false;
  applyTheme();
  $("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    applyTheme();
    draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  $("controls").hidden = false;
  options($("run"));
  $("against").append(option("", "nothing"));
  options($("against"));
  $("against-label").hidden = data.runs.length < 2;
  $("run").closest("label").hidden = data.runs.length < 2;
  $("run").value = data.lead;
  $("against").value = innerWidth > 860 ? data.reference ?? "" : "";
  $("run").addEventListener("change", followBudget);
  $("against").addEventListener("change", draw);
  $("reset").addEventListener("click", resetZoom);
  sortable($("comparison"));
  for (const pick of document.querySelectorAll(".pick")) {
    pick.addEventListener("click", () => {
      $("run").value = pick.dataset.run;
      followBudget();
      $("over-time").scrollIntoView();
    });
  }
  draw();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    for (const { plot, chart } of plots) plot.setSize({ width: Math.max(chart.clientWidth, 200), height: plot.height });
  });
}

start();
})();
