"use strict";
(() => {
  const { layout, charts } = JSON.parse(document.getElementById("data").textContent);
  const svgNames = "http://www.w3.org/2000/svg";
  const state = { scale: "auto", along: "step", smooth: 0, hidden: new Set() };
  const figures = [...document.querySelectorAll(".chart")];
  document.documentElement.classList.add("js");

  const element = (name, attributes, parent, text) => {
    const made = document.createElementNS(svgNames, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  };
  const short = (x) => {
    const size = Math.abs(x);
    if (x === 0) return "0";
    if (size >= 1e15 || size < 1e-4) return x.toExponential(2);
    if (size >= 1000) return Math.round(x).toLocaleString("en");
    const digits = Math.min(8, Math.max(0, 3 - Math.floor(Math.log10(size))));
    return String(Number(x.toFixed(digits)));
  };
  const tick = (x) => {
    const size = Math.abs(x);
    if (size >= 1e6) return short(x / 1e6) + "M";
    if (size >= 1e3) return short(x / 1e3) + "k";
    if (size > 0 && size < 1e-3) return x.toExponential(0);
    return short(x);
  };
  const clock = (seconds) => {
    if (seconds < 120) return Math.round(seconds) + " s";
    if (seconds < 7200) return short(Math.round(seconds / 6) / 10) + " min";
    return short(Math.round(seconds / 360) / 10) + " h";
  };
  const isHidden = (series) => [...state.hidden].some((run) => series.class.split(" ")[0] === "r" + run);

  // A moving average that does not begin at zero; gaps stay gaps.
  const smoothed = (values) => {
    let sum = 0, weight = 0;
    return values.map((y) => {
      if (y === null) return null;
      sum = sum * state.smooth + y * (1 - state.smooth);
      weight = weight * state.smooth + (1 - state.smooth);
      return sum / weight;
    });
  };
  const ticks = (low, high, count, log) => {
    if (log) {
      const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
      const each = (mantissas) => {
        const all = [];
        for (let decade = first; decade <= last; decade++)
          for (const mantissa of mantissas) all.push(mantissa * 10 ** decade);
        return all.filter((x) => x >= low && x <= high);
      };
      const fine = each([1, 2, 5]);
      const chosen = fine.length <= count + 3 ? fine : each([1]);
      const every = Math.max(1, Math.ceil(chosen.length / (count + 3)));
      if (chosen.length > 2) return chosen.filter((_, at) => at % every === 0);
    }
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999) || 10 * power;
    const found = [];
    for (let i = Math.ceil(low / step); i <= Math.floor(high / step) && found.length < 50; i++) found.push(i * step);
    return found;
  };
  const widened = (values, log) => {
    let low = Infinity, high = -Infinity;
    for (const x of values) { if (x < low) low = x; if (x > high) high = x; }
    if (low > high) return [log ? 0.1 : 0, 1];
    if (low === high) {
      const more = low === 0 ? 1 : Math.abs(low) * 0.1;
      [low, high] = log ? [low / 2, high * 2] : [low - more, high + more];
    }
    const isDrawn = log ? low > 0 && high < Infinity : high - low > 1e-300 && high - low < Infinity;
    return isDrawn ? [low, high] : [log ? 0.1 : 0, 1];
  };

  // The same as src/cli/report/svg.rs draws, at the chosen scales.
  const draw = (figure) => {
    const chart = charts[figure.dataset.chart];
    const shown = chart.series.filter((series) => !isHidden(series));
    const byTime = state.along === "time" && chart.x === "step" && shown.some((s) => s.seconds);
    const lines = shown.filter((s) => !byTime || s.seconds).map((s) => ({
      ...s, x: byTime ? s.seconds : s.x, raw: s.y,
      y: state.smooth > 0 && chart.x === "step" ? smoothed(s.y) : s.y,
    }));
    const all = lines.flatMap((s) => (s.raw === s.y ? s.y : s.y.concat(s.raw))).filter((y) => y !== null);
    const positive = all.filter((y) => y > 0);
    const log = positive.length > 0 &&
      (state.scale === "log" || (state.scale === "auto" && chart.log && positive.length === all.length));
    const [xLow, xHigh] = widened(lines.flatMap((s) => s.x), false);
    const [yLow, yHigh] = widened(log ? positive : all, log);
    const ofY = (y) => (log ? Math.log10(y) : y);
    const wide = layout.width - layout.left - layout.right, high = layout.height - layout.top - layout.bottom;
    const base = layout.height - layout.bottom;
    // Within [0,1] but where the range is none that can be drawn.
    const share = (x, from, to) => Math.min(1, Math.max(0, (x - from) / (to - from)));
    const placeX = (x) => layout.left + share(x, xLow, xHigh) * wide;
    const placeY = (y) => base - share(ofY(y), ofY(yLow), ofY(yHigh)) * high;
    const svg = figure.querySelector(":scope > svg");
    svg.replaceChildren();
    for (const y of ticks(yLow, yHigh, 5, log)) {
      const at = placeY(y).toFixed(1);
      element("path", { class: "grid", d: `M${layout.left} ${at}H${layout.width - layout.right}` }, svg);
      element("text", { x: layout.left - 6, y: +at + 4, "text-anchor": "end" }, svg, tick(y));
    }
    const isWhole = (x) => byTime || Math.abs(x - Math.round(x)) < 1e-9;
    const unit = !byTime || xHigh < 120 ? 1 : xHigh < 7200 ? 60 : 3600;
    for (const x of ticks(xLow / unit, xHigh / unit, 6, false).map((x) => x * unit).filter(isWhole))
      element("text", { x: placeX(x).toFixed(1), y: base + 16, "text-anchor": "middle" }, svg, byTime ? clock(x) : tick(x));
    element("text", { class: "axis", x: layout.width - layout.right, y: layout.height - 5, "text-anchor": "end" },
      svg, byTime ? "time" : chart.x);
    const path = (xs, ys, classes, name) => {
      let d = "", bad = "", on = false, alone = "";
      xs.forEach((x, i) => {
        const y = ys[i];
        if (y !== null && (y > 0 || !log)) {
          const at = `${placeX(x).toFixed(1)} ${placeY(y).toFixed(1)}`;
          alone = on ? "" : `M${at}h0`;
          d += (on ? "L" : "M") + at;
          on = true;
        } else {
          d += alone;
          alone = "";
          on = false;
          if (y === null) bad += `M${placeX(x).toFixed(1)} ${base}l-4 -7h8z`;
        }
      });
      const made = element("path", { class: "line " + classes, d: d + alone }, svg);
      if (name !== undefined) element("title", {}, made, name);
      if (bad) element("path", { class: "bad", d: bad }, svg);
    };
    for (const s of lines) {
      if (s.raw !== s.y) path(s.x, s.raw, s.class + " faint");
      path(s.x, s.y, s.class, s.name);
    }
    figure.view = { lines, xLow, xHigh, wide, byTime, placeX };
  };
  const drawAll = () => figures.forEach((figure) => {
    // What nobody sees yet is drawn when it is opened.
    if (figure.closest("details:not([open])")) figure.stale = true; else draw(figure);
  });
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => {
    for (const figure of details.querySelectorAll(".chart")) if (figure.stale) { figure.stale = false; draw(figure); }
  }));

  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] <= x) low = mid; else high = mid; }
    return Math.abs(xs[high] - x) < Math.abs(xs[low] - x) ? high : low;
  };
  for (const figure of figures) {
    const svg = figure.querySelector(":scope > svg");
    let tip = null, cross = null;
    const leave = () => { tip?.remove(); cross?.remove(); tip = cross = null; };
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("pointermove", (event) => {
      if (!figure.view) draw(figure);
      const { lines, xLow, xHigh, wide, byTime, placeX } = figure.view;
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * layout.width;
      const x = xLow + ((at - layout.left) / wide) * (xHigh - xLow);
      const all = lines.filter((s) => s.x.length).map((s) => ({ s, i: nearest(s.x, x) }));
      leave();
      if (all.length === 0 || at < layout.left) return;
      const first = all.reduce((a, b) => (Math.abs(b.s.x[b.i] - x) < Math.abs(a.s.x[a.i] - x) ? b : a));
      const place = first.s.x[first.i];
      const rows = all.filter(({ s }) => s.x[0] <= place && place <= s.x[s.x.length - 1]);
      cross = element("path", {
        class: "cross", d: `M${placeX(place).toFixed(1)} ${layout.top}V${layout.height - layout.bottom}`,
      }, svg);
      tip = document.createElement("div");
      tip.className = "tip";
      const head = document.createElement("div");
      head.textContent = byTime ? clock(place) : (lines[0].seconds === null && charts[figure.dataset.chart].x === "t"
        ? "t = " + place : "step " + Math.round(place).toLocaleString("en"));
      tip.append(head);
      for (const { s, i } of rows.slice(0, 16)) {
        const row = document.createElement("div");
        const swatch = element("svg", { class: "swatch", viewBox: "0 0 24 8" }, row);
        element("path", { class: "line " + s.class, d: "M1 4H23" }, swatch);
        const text = document.createElement("span");
        const value = s.y[i] === null ? "not finite" : short(s.y[i]);
        text.textContent = lines.length > 1 ? `${value}  ${s.name}` : value;
        row.append(text);
        tip.append(row);
      }
      figure.append(tip);
      const inside = figure.getBoundingClientRect();
      const left = event.clientX - inside.left + 14;
      tip.style.left = Math.max(4, left + tip.offsetWidth > inside.width ? left - tip.offsetWidth - 28 : left) + "px";
      tip.style.top = Math.max(4, event.clientY - inside.top + 12) + "px";
    });
    figure.querySelector("figcaption").addEventListener("click", () => figure.classList.toggle("large"));
  }

  const listen = (id, event, change) => {
    const control = document.getElementById(id);
    control.addEventListener(event, () => { change(control.value); drawAll(); });
  };
  listen("scale", "change", (value) => { state.scale = value; });
  listen("along", "change", (value) => { state.along = value; });
  listen("smooth", "input", (value) => {
    state.smooth = Number(value);
    document.getElementById("smoothed").textContent = value;
  });
  for (const box of document.querySelectorAll("[data-run]")) {
    box.addEventListener("change", () => {
      const run = box.dataset.run;
      if (box.checked) state.hidden.delete(run); else state.hidden.add(run);
      for (const one of document.querySelectorAll(`li.r${run}, .strip.r${run}`)) one.classList.toggle("hidden", !box.checked);
      drawAll();
    });
  }
  if (document.querySelectorAll("[data-run]").length < 2)
    for (const box of document.querySelectorAll("[data-run]")) box.hidden = true;
  const along = document.getElementById("along");
  if (!charts.some((chart) => chart.series.some((series) => series.seconds))) along.closest("label").hidden = true;

  // One slider for the pictures of all runs of a stage: each shows its last one up to that step.
  for (const album of document.querySelectorAll(".album")) {
    const pictures = [...album.querySelectorAll(".film figure")];
    const steps = [...new Set(pictures.map((picture) => Number(picture.dataset.step)))].sort((a, b) => a - b);
    const slider = album.querySelector(".time"), output = album.querySelector("output");
    Object.assign(slider, { min: 0, max: steps.length - 1, step: 1, value: steps.length - 1 });
    const show = () => {
      const step = steps[slider.value];
      output.textContent = step.toLocaleString("en");
      for (const film of album.querySelectorAll(".film")) {
        const own = [...film.children];
        const last = own.filter((picture) => Number(picture.dataset.step) <= step).pop();
        for (const picture of own) picture.classList.toggle("hidden", picture !== last);
      }
    };
    slider.addEventListener("input", show);
    show();
  }
})();
