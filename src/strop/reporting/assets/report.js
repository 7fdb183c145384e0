"use strict";
(() => {
  const root = document.documentElement;
  const host = document.querySelector(".charts");
  const RUN_COLOURS = 8;
  let drawn = [];
  let data = JSON.parse(document.getElementById("data").textContent);

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const figure = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  };

  // One run: training in the accent, held out in ink. Several: a colour each, held out dashed.
  const several = () => data.runs.length > 1;
  const inkOf = (line) => (several() || !line.points ? colour(`--run-${line.run % RUN_COLOURS}`) : colour("--ink"));
  const nameOf = (line) => [several() ? data.runs[line.run] : "", line.label].filter(Boolean).join(" · ");

  const seriesOf = (chart) => {
    const found = [];
    for (const line of chart.lines) {
      const stroke = inkOf(line);
      const points = { show: line.points || line.raw[0].length === 1, size: 6, fill: stroke, stroke };
      const dash = several() && line.points ? [6, 4] : undefined;
      found.push({ line, data: line.raw, key: !line.mean, options: { stroke, dash, points, width: 1.75, alpha: line.mean ? 0.28 : 1 } });
      if (line.mean) found.push({ line, data: line.mean, key: true, options: { stroke, points: { show: false }, width: 2 } });
      if (line.mean) found.at(-2).options.width = 1;
    }
    return found;
  };

  const columnsOf = (series, log) => {
    const sound = (values) => (log ? values.map((value) => (value > 0 ? value : null)) : values);
    return uPlot.join(series.map((each) => [each.data[0], sound(each.data[1])]));
  };

  const heightOf = (box) => {
    const wide = box.closest(".wide");
    if (root.classList.contains("printing")) return wide ? 230 : 150;
    return wide ? (box.clientWidth < 600 ? 250 : 320) : 220;
  };

  const axis = (format) => ({
    stroke: colour("--quiet"),
    grid: { stroke: colour("--rule"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui, sans-serif",
    values: format,
  });

  const readout = (entry, index) => {
    const columns = entry.plot.data;
    entry.step.textContent = index === null ? "" : `step ${columns[0][index].toLocaleString("en")}`;
    entry.keys.forEach(({ output, column }) => {
      let at = index === null ? columns[0].length - 1 : index;
      while (at > 0 && (columns[column][at] === undefined || columns[column][at] === null)) at -= 1;
      output.textContent = figure(columns[column][at]);
    });
  };

  const rangeOf = (_, low, high) => {
    const [from, to] = uPlot.rangeNum(low, high, { min: { pad: 0.1, soft: 0, mode: 2 }, max: { pad: 0.1, soft: 0, mode: 2 } });
    return [low >= 0 ? Math.max(0, from) : from, to];
  };

  const draw = (chart, log, zoom) => {
    const card = make("section", chart.name === "loss" ? "chart wide" : "chart");
    const top = make("div", "top");
    const title = make("h2", "", chart.title);
    if (chart.unit) title.append(" ", make("span", "quiet", chart.unit));
    top.append(title);
    const keys = make("div", "keys");
    const box = make("div", "plot");
    card.append(top, keys, box);
    if (chart.note) card.append(make("p", "quiet note", chart.note));
    host.append(card);
    const series = seriesOf(chart);
    const entry = { chart, log, box, card, keys: [], step: make("span", "", "") };
    series.forEach((each, index) => {
      if (!each.key) return;
      const key = make("span", "");
      const mark = make("span", `line run-${each.line.run}`);
      if (!several() && each.line.points) mark.classList.add("ink");
      if (several() && each.line.points) mark.classList.add("dashed");
      const output = make("b", "");
      key.append(mark, nameOf(each.line) || "last", output);
      keys.append(key);
      entry.keys.push({ output, column: index + 1 });
    });
    keys.append(entry.step);
    if (chart.log) {
      const button = make("button", "", "log scale");
      button.type = "button";
      button.setAttribute("aria-pressed", String(log));
      button.addEventListener("click", () => { entry.log = !entry.log; drawAll(); });
      top.append(button);
    }
    const options = {
      width: Math.max(box.clientWidth, 120),
      height: heightOf(box),
      legend: { show: false },
      padding: [10, 24, 0, 0],
      scales: { x: { time: false }, y: { distr: log ? 3 : 1, range: log ? undefined : rangeOf } },
      axes: [
        { ...axis((_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : ""))), size: 34 },
        { ...axis((_, ticks) => ticks.map((tick) => (tick === null ? "" : figure(tick)))), size: 58 },
      ],
      cursor: { sync: { key: "steps" }, points: { size: 7 }, y: false, drag: { x: true, y: false } },
      series: [{}, ...series.map((each) => each.options)],
      hooks: { setCursor: [(plot) => entry.plot && readout(entry, plot.cursor.idx ?? null)] },
    };
    entry.plot = new uPlot(options, columnsOf(series, log), box);
    entry.plot.root.setAttribute("role", "img");
    entry.plot.root.setAttribute("aria-label", chart.title);
    if (zoom) entry.plot.setScale("x", zoom);
    readout(entry, null);
    return entry;
  };

  const zoomOf = (entry) => {
    const steps = entry.plot.data[0];
    const { min, max } = entry.plot.scales.x;
    return min > steps[0] || max < steps.at(-1) ? { min, max } : null;
  };

  const drawAll = () => {
    const before = new Map(drawn.map((entry) => [entry.chart.name, { log: entry.log, zoom: zoomOf(entry) }]));
    host.style.minHeight = `${host.offsetHeight}px`; // the page must not jump while its charts are replaced
    drawn.forEach((entry) => entry.plot.destroy());
    host.replaceChildren();
    drawn = data.charts.map((chart) => {
      const kept = before.get(chart.name);
      return draw(chart, kept ? kept.log : false, kept ? kept.zoom : null);
    });
    fit(); // a chart was alone in its row while it was the last
    host.style.minHeight = "";
  };

  const fit = () => drawn.forEach((entry) => {
    const width = entry.box.clientWidth;
    if (width && width !== entry.plot.width) entry.plot.setSize({ width, height: heightOf(entry.box) });
  });

  // Filters and search; what is chosen outlives the section that a refresh replaces.
  const chosen = new Map();
  const filter = (section) => {
    const { show, query } = chosen.get(section.dataset.part);
    const words = query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const example of section.querySelectorAll(".example")) {
      const text = example.textContent.toLocaleLowerCase();
      const fits = (!show || example.dataset.kinds.split(" ").includes(show)) && words.every((word) => text.includes(word));
      example.hidden = !fits;
      found += fits;
    }
    for (const button of section.querySelectorAll("[data-show]")) button.setAttribute("aria-pressed", String(button.dataset.show === show));
    section.querySelector(".found").textContent = show || words.length ? `${found} shown.` : "";
  };
  const listen = (section) => {
    const state = chosen.get(section.dataset.part) || { show: "", query: "" };
    chosen.set(section.dataset.part, state);
    const search = section.querySelector("input");
    search.value = state.query;
    search.addEventListener("input", () => { state.query = search.value; filter(section); });
    for (const button of section.querySelectorAll("[data-show]")) {
      button.addEventListener("click", () => { state.show = button.dataset.show; filter(section); });
    }
    filter(section);
  };

  // --watch: the page fetches itself and takes over the parts that changed.
  const parts = (page) => [...page.querySelectorAll("[data-part]")];
  const seen = new Map(parts(document).map((part) => [part.dataset.part, part.outerHTML]));
  const adopt = (page) => {
    let previous = null;
    for (const part of parts(page)) {
      const name = part.dataset.part;
      const old = parts(document).find((each) => each.dataset.part === name);
      if (!old && previous) previous.after(document.importNode(part, true));
      else if (old && !("keep" in part.dataset) && seen.get(name) !== part.outerHTML) old.replaceWith(document.importNode(part, true));
      const now = parts(document).find((each) => each.dataset.part === name);
      if (now && seen.get(name) !== part.outerHTML && now.classList.contains("examples")) listen(now);
      seen.set(name, part.outerHTML);
      previous = now || previous;
    }
    const names = new Set(parts(page).map((part) => part.dataset.part));
    for (const part of parts(document)) if (!names.has(part.dataset.part)) part.remove();
    data = JSON.parse(page.getElementById("data").textContent);
    document.title = page.title;
    const same = data.charts.length === drawn.length && data.charts.every((chart, i) => chart.lines.length === drawn[i].chart.lines.length && chart.note === drawn[i].chart.note && chart.lines.every((line, j) => !line.mean === !drawn[i].chart.lines[j].mean));
    if (!same) return drawAll();
    data.charts.forEach((chart, i) => {
      const entry = drawn[i];
      const zoomed = zoomOf(entry);
      entry.chart = chart;
      entry.plot.setData(columnsOf(seriesOf(chart), entry.log), !zoomed);
      if (zoomed) entry.plot.setScale("x", zoomed);
      readout(entry, null);
    });
  };
  const follow = async () => {
    const told = document.querySelector("footer .live");
    let tag = "";
    for (;;) {
      await new Promise((done) => setTimeout(done, 2000));
      if (document.hidden) continue;
      try {
        const answer = await fetch("/", { headers: { "If-None-Match": tag }, cache: "no-store" });
        if (answer.status === 200) {
          adopt(new DOMParser().parseFromString(await answer.text(), "text/html"));
          tag = answer.headers.get("ETag") || "";
        }
        told.textContent = answer.status === 200 || answer.status === 304 ? "Live: this page follows the run." : "The run cannot be read.";
      } catch {
        told.textContent = "strop report --watch has ended; this is what it showed last.";
      }
    }
  };

  document.querySelectorAll(".examples").forEach(listen);
  drawAll();
  new ResizeObserver(fit).observe(host);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { root.classList.add("printing"); drawAll(); });
  addEventListener("afterprint", () => { root.classList.remove("printing"); drawAll(); });
  if ("live" in root.dataset) follow();
})();
