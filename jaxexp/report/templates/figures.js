// Draws the interactive figures: inflates Plotly and the figures, which the page holds compressed,
// lays each out for its width and the colours of the page, and puts it in its picture's place.
// Without this script, or where anything fails, the pictures stay.
(() => {
"use strict";
const holders = [...document.querySelectorAll("figure[data-plot]")];
const packed = document.getElementById("packed-figures");
if (!packed || !holders.length || !("DecompressionStream" in window)) return;

async function inflate(id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const CONFIG = { displayModeBar: false, responsive: false, showTips: false, scrollZoom: false };

// ---- Colours: those of the picture; on a dark page the darkest are lightened, to be seen.
function lightened(colour) {
  const hex = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(colour);
  const rgba = /^rgba\((\d+),(\d+),(\d+),([\d.]+)\)$/.exec(colour);
  if (!hex && !rgba) return colour;
  const rgb = hex ? hex.slice(1).map((part) => parseInt(part, 16)) : rgba.slice(1, 4).map(Number);
  const [light, grey] = [
    (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]) / 255,
    Math.max(...rgb) - Math.min(...rgb) < 24,
  ];
  if (grey && light > 0.6 && light < 0.95) return "#5a6068"; // what stands in the background
  if (light > 0.42) return colour;
  const share = Math.min(0.85, (0.42 - light) * (grey ? 2.1 : 1.5) + (grey ? 0.1 : 0));
  const out = rgb.map((part) => Math.round(part + share * (255 - part)));
  return rgba ? `rgba(${out},${rgba[4]})` : `rgb(${out})`;
}

function recolour(value, key = "") {
  if (Array.isArray(value)) return key.endsWith("olor") ? value.map((v) => recolour(v, key)) : value;
  if (typeof value === "string") return key.endsWith("olor") ? lightened(value) : value;
  if (!value || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) =>
    [k, key === "line" && k === "colorscale" ? brighter(v) : recolour(v, k)]));
}

// The part of a scale of thin lines that is seen on a dark page, in the same order.
function brighter(scale) {
  const seen = scale.slice(Math.floor(0.4 * scale.length));
  return seen.map(([, colour], i) => [i / (seen.length - 1), colour]);
}

// ---- Traces that are written short in the page.
function expanded(trace) {
  const { meta } = trace;
  if (meta && meta.y) { // many curves, one after another, with gaps
    const gap = [...meta.x, null];
    return {
      ...trace, meta: undefined,
      x: meta.y.flatMap(() => gap),
      y: meta.y.flatMap((own) => [...own, null]),
      text: meta.names.flatMap((name) => gap.map(() => name)),
    };
  }
  if (meta && meta.classes) { // a map of classes: names by number, row by row
    const bytes = Uint8Array.from(atob(trace.z.bdata), (c) => c.charCodeAt(0)).buffer;
    const flat = trace.z.dtype === "i1" ? new Int8Array(bytes) : new Int16Array(bytes);
    const width = trace.x.length;
    const rows = trace.y.map((_, i) => Array.from(flat.subarray(i * width, (i + 1) * width)));
    return {
      ...trace, meta: undefined,
      z: rows.map((row) => row.map((k) => (k < 0 ? null : k))),
      text: rows.map((row) => row.map((k) => meta.classes[k] || "")),
    };
  }
  return { ...trace };
}

// ---- Layout: panels side by side as far as they fit.
function laidOut(spec, width) {
  const { meta } = spec.layout;
  const style = getComputedStyle(document.documentElement);
  const [text, line, page] = ["--text", "--line", "--page"].map((n) => style.getPropertyValue(n));
  const layout = JSON.parse(JSON.stringify({ ...spec.layout, meta: undefined }));
  const base = {
    width, autosize: false, showlegend: false, hovermode: "closest", dragmode: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
    hoverlabel: { align: "left", bgcolor: page, bordercolor: line, font: { color: text, size: 12 } },
    annotations: layout.annotations || [],
  };
  const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
  for (const key of axes) {
    const vertical = key[0] === "y";
    layout[key] = {
      gridcolor: line, linecolor: text, zerolinecolor: line, ticks: "outside", tickcolor: text,
      ticklen: 4, showline: true, zeroline: false, exponentformat: "power", fixedrange: true,
      nticks: 7, minexponent: 4, ...layout[key],
    };
    layout[key].title = { standoff: vertical ? 6 : 8, font: { size: 12 }, ...layout[key].title };
  }
  const panels = axes.filter((key) => key[0] === "x").length;
  if (!panels) { // parallel coordinates bring their own axes
    // Room for the numbers of each axis: on a narrow page the figure scrolls.
    const own = spec.data[0].dimensions || [];
    const drawn = (text) => textWidth(text) * 10 / 12; // Plotly's size
    const halves = own.map(({ label }) => drawn(label) / 2 + 6); // each above the middle of its axis
    const ticks = own.map(({ ticktext }) => Math.max(...ticktext.map(drawn)) + 14); // left of it
    const [l, r] = [Math.max(60, halves[0], ticks[0]), Math.max(50, halves[own.length - 1])];
    const wide = Math.max(width, l + r + Math.max(85 * own.length, Math.max(...ticks) * (own.length - 1)));
    const apart = (wide - l - r) / (own.length - 1);
    spec.labelangle = halves.every((half, i) => !i || half + halves[i - 1] <= apart) ? 0 : -12;
    const note = wrap(meta.note + (wide > width ? "; scroll sideways to see all axes" : ""), width);
    base.annotations.push({
      text: note.join("<br>"), showarrow: false, align: "left", xref: "paper", yref: "paper",
      x: 0, xanchor: "left", y: 0, yanchor: "top", yshift: -14, xshift: 10 - l,
    });
    const margin = { l, r, t: 70, b: 34 + 16 * note.length };
    return { ...base, width: wide, height: meta.height, margin, ...layout };
  }
  const columns = Math.max(1, Math.min(meta.columns, Math.floor(width / 250)));
  const rows = Math.ceil(panels / columns);
  const suffix = (k) => (k ? String(k + 1) : "");
  const lines = (k) => (meta.titles[k] ? wrap(meta.titles[k], width / columns - 60).length : 0);
  const titled = Math.max(0, ...meta.titles.map((_, k) => lines(k)));
  const high = Math.max(190, meta.height - 90); // about as long as a title of a height may be
  for (const key of axes.filter((name) => name[0] === "y")) {
    layout[key].title.text = wrap(layout[key].title.text || "", high).join("<br>");
  }
  const yLines = (k) => ((layout["yaxis" + suffix(k)].title.text || "").split("<br>").length || 1);
  for (const key of axes.filter((name) => name[0] === "y" && layout[name].ticktext)) {
    layout[key].ticktext = layout[key].ticktext.map((text) =>
      fitted(String(text).replace(/<br>/g, " "), Math.min(230, width * 0.4)));
  }
  const long = (axis) => Math.max(36, ...(axis.ticktext || []).map(textWidth)); // 36: of plain numbers
  const left = long(layout.yaxis) + 34 + 16 * (yLines(0) - 1);
  const same = layout.yaxis2 && layout.yaxis2.matches;
  const most = Math.max(...Array.from({ length: panels }, (_, k) => yLines(k)));
  const texts = Array.from({ length: panels }, (_, k) => long(layout["yaxis" + suffix(k)]));
  const gapX = same ? (long(layout.yaxis) > 80 ? 24 : 48)
    : 24 + Math.max(...texts) + 16 * most;
  const right = spec.data.some((t) => t.colorbar) ? 92 : 14;
  const panelWidth = (width - left - right - gapX * (columns - 1)) / columns;
  for (const key of axes.filter((name) => name[0] === "x" && layout[name].ticktext)) {
    const axis = layout[key]; // of crowded ticks the first line and "div." alone, and not each
    const wide = (text) => textWidth(text) + 7;
    const at = axis.tickvals.map((v) => ((axis.type === "log" ? Math.log10(v) : v) - axis.range[0])
      / (axis.range[1] - axis.range[0]) * panelWidth);
    const apart = (texts) => texts.every((text, i) =>
      !i || at[i] - at[i - 1] >= (wide(text) + wide(texts[i - 1])) / 2);
    axis.tickangle = 0;
    const room = Math.min(...at.slice(1).map((place, i) => place - at[i])) - 8;
    if (room >= 48 && !apart(axis.ticktext)) axis.ticktext = axis.ticktext.map((t) => fitted(t, room));
    if (!apart(axis.ticktext)) axis.ticktext = axis.ticktext.map((t) =>
      t.split("<br>")[0] + (/diverged/.test(t) ? "<br>div." : ""));
    const short = (text) => !text.includes("<br>") && text.length <= 12;
    if (!apart(axis.ticktext) && axis.ticktext.every((text, i) =>
      short(text) && (!i || at[i] - at[i - 1] >= 15))) {
      axis.tickangle = -90; // all of them, upright
      continue;
    }
    let last = -Infinity;
    axis.ticktext = axis.ticktext.map((text, i) => {
      const half = wide(text) / 2;
      if (at[i] - half < last || !text) return "";
      last = at[i] + half;
      return text;
    });
  }
  for (const key of axes.filter((name) => name[0] === "x")) {
    layout[key].title.text = wrap(layout[key].title.text || "", panelWidth + 40).join("<br>");
  }
  const below = Math.max(...axes.filter((k) => k[0] === "x").map((key) => {
    const texts = (layout[key].ticktext || []).map(String);
    const high = layout[key].tickangle ? 7 * Math.max(...texts.map((t) => t.length))
      : 15 * Math.max(1, ...texts.map((t) => t.split("<br>").length));
    return 22 + high + 17 * (layout[key].title.text || "").split("<br>").length;
  }));
  const noted = meta.note ? wrap(meta.note, width) : [];
  const above = 12 + 16 * titled + (noted.length ? 8 + 16 * noted.length : 0);
  const between = below + 16 * titled + 14;
  const inner = width - left - right;
  const panelW = (inner - gapX * (columns - 1)) / columns;
  let panelH = Math.max(190, meta.height - below - 16 * titled - 24);
  if (meta.aspect) panelH = panelW * meta.aspect;
  const innerH = panelH * rows + between * (rows - 1);
  for (let k = 0; k < panels; k++) {
    const [row, column] = [Math.floor(k / columns), k % columns];
    const x0 = column * (panelW + gapX), y1 = innerH - row * (panelH + between);
    const [x, y] = [layout["xaxis" + suffix(k)], layout["yaxis" + suffix(k)]];
    x.domain = [x0 / inner, Math.min(1, (x0 + panelW) / inner)];
    y.domain = [Math.max(0, (y1 - panelH) / innerH), Math.min(1, y1 / innerH)];
    if (y.matches && column) y.title.text = "";
    if (gapX < 40 && column) y.showticklabels = false;
    if (meta.titles[k]) {
      base.annotations.push({
        text: wrap(meta.titles[k], panelW).join("<br>"), showarrow: false, xref: "paper", yref: "paper",
        x: (x.domain[0] + x.domain[1]) / 2, xanchor: "center", y: y.domain[1], yanchor: "bottom", yshift: 3,
        font: { size: 12 },
      });
    }
  }
  if (meta.note) {
    base.annotations.push({
      text: noted.join("<br>"), align: "left", showarrow: false, xref: "paper", yref: "paper", x: 0,
      xanchor: "left", y: 1, yanchor: "top", yshift: above - 2, xshift: -left + 4,
      font: { size: 12 },
    });
  }
  return {
    ...base, ...layout, annotations: base.annotations,
    height: Math.round(innerH + above + below), margin: { l: left, r: right, t: above, b: below, pad: 0 },
  };
}

// How many pixels the longest line of a text takes at 12 px.
const pen = document.createElement("canvas").getContext("2d");
function textWidth(text) {
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return Math.max(...text.split("<br>").map((line) => pen.measureText(plain(line)).width));
}

// A text in lines that take at most so many pixels; words longer than that are broken.
function fitted(text, most) {
  return text.split("<br>").map((line) => {
    const found = [""];
    const last = () => found[found.length - 1];
    for (const word of line.split(" ")) {
      if (last() && textWidth(`${last()} ${word}`) <= most) {
        found[found.length - 1] += ` ${word}`;
        continue;
      }
      if (last()) found.push("");
      for (const letter of word.match(/&\w+;|./gu) || []) {
        if (last() && textWidth(last() + letter) > most) found.push("");
        found[found.length - 1] += letter;
      }
    }
    return found.join("<br>");
  }).join("<br>");
}

function wrap(text, pixels) {
  const most = Math.max(18, Math.floor(pixels / 6.3));
  return text.split("<br>").flatMap((line) => {
    const found = [""];
    for (const word of line.split(" ")) {
      const longer = (found[found.length - 1] + " " + word).trim();
      if (longer.length > most && found[found.length - 1]) found.push(word);
      else found[found.length - 1] = longer;
    }
    return found;
  });
}

// ---- The legend: buttons, which the keyboard reaches, each for a trace or a group of them.
const plain = (text) => text.replace(/<br>/g, " ").replace(/&lt;/g, "<").replace(/&gt;/g, ">")
  .replace(/&amp;/g, "&");

const SHAPES = { // of marks that are neither circles, squares nor lines
  "triangle-up": "50% 0, 100% 100%, 0 100%", "triangle-down": "0 0, 100% 0, 50% 100%",
  diamond: "50% 0, 100% 50%, 50% 100%, 0 50%", "line-ns-open": "40% 0, 60% 0, 60% 100%, 40% 100%",
  x: "25% 0, 50% 25%, 75% 0, 100% 25%, 75% 50%, 100% 75%, 75% 100%, 50% 75%, 25% 100%, 0 75%,"
    + " 25% 50%, 0 25%",
};

function swatch(trace) {
  const mark = document.createElement("span");
  mark.className = "swatch";
  const colour = (trace.mode || "").includes("lines") ? trace.line.color : trace.marker && trace.marker.color;
  if (typeof colour === "string") mark.style.color = colour;
  const symbol = trace.marker ? String(trace.marker.symbol) : "";
  if (!(trace.mode || "").includes("lines")) {
    const outline = SHAPES[symbol];
    if (outline) mark.style.clipPath = `polygon(${outline})`;
    if (outline || symbol === "square") mark.classList.add("shape");
    else if (!symbol.startsWith("line-ew")) mark.classList.add(symbol.endsWith("open") ? "ring" : "dot");
  }
  else if (trace.line.dash && trace.line.dash !== "solid") mark.classList.add("dashed");
  return mark;
}

function addLegend(holder, spec, draw) {
  const list = holder.querySelector(".legend");
  const named = spec.data.filter((trace) => trace.showlegend && trace.name);
  named.sort((a, b) => Boolean(a.meta) - Boolean(b.meta)); // what stands in the background last
  list.replaceChildren();
  list.hidden = named.length < 1;
  for (const trace of named) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", String(!spec.off.has(trace.legendgroup)));
    button.append(swatch(dark.matches ? recolour(trace) : trace), plain(trace.name));
    button.addEventListener("click", () => {
      const on = spec.off.has(trace.legendgroup);
      spec.off[on ? "delete" : "add"](trace.legendgroup);
      button.setAttribute("aria-pressed", String(on));
      draw();
    });
    const item = document.createElement("li");
    item.append(button);
    list.append(item);
  }
}

// Names on a map, the first ones first, without those that would cover another at this size; and
// the numbers of a grid of cells only where they have room.
function decluttered(trace, layout) {
  if (trace.meta && trace.meta.fixed) {
    const { range } = layout.xaxis;
    const cell = (layout.width - layout.margin.l - layout.margin.r) / (range[1] - range[0]);
    const longest = Math.max(0, ...trace.text.flatMap((t) => t.split("<br>").map((s) => s.length)));
    return { ...trace, visible: 7.2 * longest + 6 < cell };
  }
  if (!trace.meta || !trace.meta.declutter) return trace;
  const axes = ["x", "y"].map((n) => layout[trace[n + "axis"].replace(/^[xy]/, n + "axis")]);
  const sizes = [layout.width - layout.margin.l - layout.margin.r,
    layout.height - layout.margin.t - layout.margin.b];
  const [px, py] = axes.map(({ range, domain }, i) => (v) =>
    (v - range[0]) / (range[1] - range[0]) * (domain[1] - domain[0]) * sizes[i]);
  const taken = [];
  const kept = trace.text.map((text, i) => {
    const [x, y, half] = [px(trace.x[i]), py(trace.y[i]), 3.6 * text.length + 2];
    const free = taken.every(([a, b, h]) => Math.abs(a - x) > half + h || Math.abs(b - y) > 14);
    if (free) taken.push([x, y, half]);
    return free;
  });
  const only = (values) => values.filter((_, i) => kept[i]);
  return { ...trace, meta: undefined, x: only(trace.x), y: only(trace.y), text: only(trace.text),
    textfont: { ...trace.textfont, color: layout.font.color } };
}

async function show(holder, spec) {
  const plot = holder.querySelector(".plot");
  const draw = async () => {
    const width = Math.floor(holder.clientWidth);
    if (!width) return;
    const data = spec.full.map((trace) => {
      const fixed = !dark.matches || (trace.meta && trace.meta.fixed);
      const own = fixed ? { ...trace } : recolour(trace);
      own.visible = !spec.off.has(trace.legendgroup);
      return own;
    });
    const layout = laidOut(spec, width);
    for (const own of data) if (own.type === "parcoords") own.labelangle = spec.labelangle;
    if (layout.width > width) plot.tabIndex = 0; // it scrolls, also by the keyboard
    else plot.removeAttribute("tabindex");
    await Plotly.react(plot, data.map((trace) => decluttered(trace, layout)), layout, CONFIG);
  };
  spec.full = spec.data.map(expanded);
  spec.off = new Set();
  plot.hidden = false;
  await draw();
  addLegend(holder, spec, draw);
  holder.classList.add("drawn"); // which hides the picture
  let known = holder.clientWidth;
  new ResizeObserver(() => {
    if (Math.abs(holder.clientWidth - known) < 2) return;
    known = holder.clientWidth;
    draw();
  }).observe(holder);
  dark.addEventListener("change", () => { draw(); addLegend(holder, spec, draw); });
}

let library; // loaded when the first figure comes near
function load() {
  library ??= Promise.all([inflate("packed-plotly"), inflate("packed-figures")]).then(([code, text]) => {
    const script = document.createElement("script");
    script.textContent = code;
    document.head.append(script);
    return JSON.parse(text);
  });
  return library;
}

const started = new Map();
function start(holder) {
  if (!started.has(holder)) {
    started.set(holder, load()
      .then((figures) => show(holder, figures[Number(holder.dataset.plot)]))
      .catch((error) => {
        const plot = holder.querySelector(".plot");
        plot.hidden = true;
        holder.querySelector(".legend").hidden = true;
        holder.classList.remove("drawn");
        console.warn("the picture stays:", error);
      }));
  }
  return started.get(holder);
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting) { near.unobserve(target); start(target); }
  }
}, { rootMargin: "600px" });
holders.forEach((holder) => near.observe(holder));
window.drawAllFigures = () => Promise.all(holders.map(start));
})();
