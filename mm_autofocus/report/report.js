// Draws the figures of the report and shows the field that is chosen in a map, a list, a table or the address.
"use strict";
(async () => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const { fields, results, boxes, colours, figures } = report;
  const byId = (id) => document.getElementById(id);
  const config = { displayModeBar: false, responsive: true };
  const digits = (value, n = 2) => (value === null || value === undefined ? "–" : value.toFixed(n).replace("-", "−"));
  const plain = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
  const maps = ["height", "error", "belief"];
  let current = -1;

  async function loadPlotly() {
    const packed = byId("plotly-gzip").textContent;
    if (!packed) return false;
    if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot unpack it; use a newer one");
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    return true;
  }

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function line(x, name, colour, dash) {
    return { type: "scatter", mode: "lines", x: [x, x], y: [0, 1], yaxis: "y2", name, line: { color: colour, dash, width: 1.6 }, hovertemplate: `${name} %{x:.2f} µm<extra></extra>` };
  }

  function drawCurve(field, run) {
    const traces = [];
    const shapes = [];
    const [z, score, purpose] = run && run.samples.length ? run.samples : [[], [], []];
    const all = z.map((value, i) => ({ z: value, score: score[i], purpose: purpose[i] })).filter((s) => s.z !== null);
    const look = {
      search: { mode: "lines+markers", symbol: "circle", colour: colours.good, size: 6 },
      start: { mode: "markers", symbol: "triangle-up", colour: colours.ink, size: 11 },
      verify: { mode: "markers", symbol: "diamond", colour: colours.warn, size: 11 },
    };
    for (const [name, style] of Object.entries(look)) {
      const chosen = all.filter((s) => s.score !== null && (s.purpose === name || (name === "search" && !(s.purpose in look))));
      chosen.sort((a, b) => a.z - b.z);
      if (chosen.length) {
        traces.push({
          type: "scatter", mode: style.mode, name, x: chosen.map((s) => s.z), y: chosen.map((s) => s.score),
          marker: { symbol: style.symbol, color: style.colour, size: style.size }, line: { color: style.colour, width: 1 },
          hovertemplate: `${name}: %{x:.2f} µm, score %{y:.4g}<extra></extra>`,
        });
      }
    }
    const unscored = all.filter((s) => s.score === null);
    if (unscored.length) {
      traces.push({
        type: "scatter", mode: "markers", name: "image, no score", x: unscored.map((s) => s.z), y: unscored.map(() => 0.02), yaxis: "y2",
        marker: { symbol: "line-ns-open", color: colours.muted, size: 10 }, hovertemplate: "image at %{x:.2f} µm<extra></extra>",
      });
    }
    const target = run ? run.target ?? run.end : null;
    if (target !== null) traces.push(line(target, "verdict", colours.warn, "solid"));
    if (target !== null && field.z !== null && Math.abs(field.z - target) > 0.005) traces.push(line(field.z, "acquired", colours.muted, "dash"));
    if (field.truth !== null) {
      traces.push(line(field.truth, "truth", colours.ink, "dot"));
      shapes.push({ type: "rect", xref: "x", yref: "paper", x0: field.truth - report.tolerance, x1: field.truth + report.tolerance, y0: 0, y1: 1, fillcolor: "rgba(42,120,142,0.16)", line: { width: 0 }, layer: "below" });
    }
    const axis = { gridcolor: colours.grid, zeroline: false, automargin: true };
    Plotly.react("plot-curve", traces, {
      font: { family: "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif", size: 12, color: colours.ink },
      margin: { l: 46, r: 8, t: 6, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "#ffffff", shapes, dragmode: false, hovermode: "closest",
      xaxis: { ...axis, title: { text: "z, µm", standoff: 6 } }, yaxis: { ...axis, title: { text: "score", standoff: 6 } },
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
      legend: { orientation: "h", x: 0, y: -0.24, yanchor: "top", font: { size: 11 } }, showlegend: traces.length > 0,
    }, config);
  }

  function showNumbers(field, run) {
    const rows = [["acquired at, µm", digits(field.z)]];
    if (field.truth !== null) rows.push(["truth, µm", digits(field.truth)], ["error, µm", digits(field.error)]);
    for (const [name, value] of Object.entries(field.others)) rows.push([`error of ${name}`, digits(value)]);
    if (run) {
      rows.push(["start, µm", digits(run.start)], ["verdict, µm", digits(run.target ?? run.end)]);
      if (run.final !== null) rows.push(["policy's z, µm", digits(run.final)]);
      if (run.prior) rows.push(["expected, µm", digits(run.prior[0]) + (run.prior[1] === null ? "" : ` ± ${digits(run.prior[1])}`)]);
      rows.push(["confidence", digits(run.confidence)], ["images", String(run.images)], [`dose, ${report.doseUnit}`, digits(run.dose, run.dose > 0 && run.dose < 10 ? 3 : 0)], ["time", run.time], ["strategy", run.strategy]);
      if (run.actions) rows.push(["failure policy", run.actions, "full"]);
    }
    byId("numbers").replaceChildren(...rows.map(([name, value, className]) => {
      const row = element("div", undefined, className);
      row.append(element("dt", name), element("dd", value));
      return row;
    }));
  }

  function showImages(field) {
    const shown = [["before", field.before], ["after", field.after]].filter(([, source]) => source);
    byId("images").replaceChildren(...shown.map(([name, source]) => {
      const figure = element("figure");
      const image = element("img");
      image.src = source;
      image.alt = `${field.label} ${name} focusing`;
      figure.append(image, element("figcaption", name));
      return figure;
    }));
  }

  function outline(index) {
    const box = boxes[index];
    for (const name of maps) {
      if (!figures[name]) continue;
      const shape = { type: "rect", line: { color: "#000000", width: fields.length > 400 ? 1.6 : 2.5 } };
      if (box && box[0] === box[1]) Object.assign(shape, { type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: box[0], yanchor: box[2], x0: -14, x1: 14, y0: -14, y1: 14 });
      else if (box) Object.assign(shape, { x0: box[0], x1: box[1], y0: box[2], y1: box[3] });
      Plotly.relayout(`plot-${name}`, { shapes: box ? [shape] : [] });
    }
  }

  function select(index, remember = true) {
    if (!fields[index] || index === current) return;
    current = index;
    const field = fields[index];
    const run = field.result === null ? null : results[field.result];
    byId("choice").value = String(index);
    byId("status").textContent = run ? run.status : "not focused here";
    byId("status").className = run && run.ok ? "" : "warn";
    const inFocus = field.sharp === null ? "" : field.sharp ? "in focus" : "out of focus";
    const shared = run && run.label && run.label !== field.label ? `focused at ${run.label}` : "";
    byId("verdict").textContent = [inFocus, field.blank ? "no specimen here" : "", shared].filter(Boolean).join(" · ");
    byId("reason").textContent = run ? run.reason : "Acquired at the height that the map or an earlier run gave.";
    showNumbers(field, run);
    showImages(field);
    if (window.Plotly) {
      drawCurve(field, run);
      outline(index);
    }
    if (remember) history.replaceState(null, "", `#field=${encodeURIComponent(field.label)}`);
  }

  function fromAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    const well = wanted.get("well");
    const label = wanted.get("field");
    return fields.findIndex((f) => (label !== null && f.label === label) || (well !== null && f.place.toLowerCase() === well.toLowerCase()));
  }

  function fillList() {
    const groups = new Map();
    fields.forEach((field, index) => {
      const run = field.result === null ? null : results[field.result];
      const option = element("option", run && !run.ok ? `${field.label} (${run.status})` : field.label);
      option.value = String(index);
      if (!groups.has(field.place)) groups.set(field.place, []);
      groups.get(field.place).push(option);
    });
    for (const [place, options] of groups) {
      if (options.length === 1) {
        byId("choice").append(options[0]);
        continue;
      }
      const group = element("optgroup");
      group.label = place;
      group.append(...options);
      byId("choice").append(group);
    }
  }

  function drawFigures() {
    for (const [name, figure] of Object.entries(figures)) {
      const target = byId(`plot-${name}`);
      if (!target) continue;
      Plotly.newPlot(target, figure.data, figure.layout, config);
      if (maps.includes(name)) {
        target.on("plotly_click", ({ points: [point] }) => {
          const custom = figure.data[0].customdata;
          const index = Array.isArray(point.pointNumber) ? custom[point.pointNumber[0]][point.pointNumber[1]] : custom[point.pointNumber];
          if (index !== null) select(index);
        });
      } else if (name === "cost") {
        target.on("plotly_click", ({ points: [point] }) => select(fields.findIndex((f) => plain(f.place) === point.x)));
      }
    }
  }

  // On paper the figures keep their drawing and are scaled to the page
  addEventListener("beforeprint", () => {
    for (const svg of document.querySelectorAll(".main-svg")) svg.setAttribute("viewBox", `0 0 ${svg.width.baseVal.value} ${svg.height.baseVal.value}`);
  });
  addEventListener("afterprint", () => {
    for (const svg of document.querySelectorAll(".main-svg")) svg.removeAttribute("viewBox");
  });

  try {
    if (await loadPlotly()) drawFigures();
  } catch (error) {
    byId("problem").textContent = `The charts cannot be drawn: ${error.message}.`;
    byId("problem").hidden = false;
  }
  if (fields.length) {
    fillList();
    byId("choice").addEventListener("change", (event) => select(Number(event.target.value)));
    byId("previous").addEventListener("click", () => select((current + fields.length - 1) % fields.length));
    byId("next").addEventListener("click", () => select((current + 1) % fields.length));
    for (const button of document.querySelectorAll("button[data-field]")) {
      button.addEventListener("click", () => {
        select(Number(button.dataset.field));
        byId("panel").scrollIntoView({ block: "center" });
      });
    }
    addEventListener("hashchange", () => select(fromAddress(), false));
    const asked = fromAddress();
    const trouble = fields.findIndex((f) => f.result !== null && !results[f.result].ok);
    select(asked >= 0 ? asked : Math.max(trouble, 0), false);
  }
  document.documentElement.dataset.ready = "yes";
})();
