(() => {
  const data = JSON.parse(document.getElementById("explore-data").textContent);
  const root = document.getElementById("explore"), find = (selector) => root.querySelector(selector);
  const choice = Object.fromEntries(["position", "merger", "schedule", "axis"].map((name) => [name, find(`select[name=${name}]`)]));
  const slider = find("input"), factors = [choice.position, choice.merger, choice.schedule];
  const AXES = {
    resolution: { name: "resolution", slider: "Side of the test picture", text: (v) => `${v} px`, seen: (sizes) => sizes, at: data.side },
    object_scale: { name: "object scale", slider: "Size of the object", text: (v) => `${number(v)} ×`, seen: () => [1], at: 1 },
    canvas: { name: "canvas", slider: "Side of the canvas", text: (v) => `${number(v)} ×`, seen: () => [1], at: 1 },
  };
  const SCHEDULES = { single: "One size", per_batch: "One size per batch", all: "Every batch at all sizes, whose answers must agree" };
  const number = (v) => String(Math.round(v * 100) / 100);
  const percent = (v) => `${(100 * v).toFixed(0)} %`;
  const seeds = (n) => `${n} seed${n === 1 ? "" : "s"}`;
  const curve = (key) => data.curves[key]?.axes[choice.axis.value];
  const key = () => factors.map((select) => select.value).join("|");

  function node(name, attributes = {}, ...children) {
    const svg = ["svg", "g", "rect", "line", "path", "circle", "polygon", "image", "text"].includes(name);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
    made.append(...children);
    return made;
  }

  // Choices: a select offers what has a result behind those before it; the rest is there, and disabled.
  const has = (chosen) => Object.keys(data.curves).some((name) => name.startsWith(chosen.join("|") + (chosen.length < 3 ? "|" : "")));

  function offer() {
    factors.forEach((select, i) => {
      const before = factors.slice(0, i).map((other) => other.value);
      for (const option of select.options) {
        option.disabled = !has([...before, option.value]);
        option.textContent = option.dataset.name + (option.disabled ? " – no result yet" : "");
      }
      if (!select.value || select.selectedOptions[0].disabled) select.value = [...select.options].find((option) => !option.disabled).value;
    });
  }

  // Reading a curve at a place: measured there, or on the straight line between its neighbours.
  function read({ value, mean, min, max }, at) {
    const i = value.findIndex((v) => v >= at - 1e-9);
    if (i < 0 || (i === 0 && value[0] > at + 1e-9)) return null;
    if (Math.abs(value[i] - at) < 1e-3) return { mean: mean[i], min: min[i], max: max[i], between: null };
    const share = Math.log(at / value[i - 1]) / Math.log(value[i] / value[i - 1]);
    return { mean: mean[i - 1] + share * (mean[i] - mean[i - 1]), between: [value[i - 1], value[i]] };
  }

  function sentence(place) {
    const axis = AXES[choice.axis.value], n = place.tokens ** 2, merged = choice.merger.value === "none" ? n : data.grid ** 2;
    const point = read(curve(key()), place.value), count = data.curves[key()].seeds;
    const size = choice.axis.value === "resolution" ? "" : ` (${place.side} px)`;
    const told = [`At ${axis.text(place.value)}${size}: `];
    if (!point) told.push("not measured");
    else if (point.between) told.push(`about ${percent(point.mean)} right, between the measured ${axis.text(point.between[0])} and ${axis.text(point.between[1])}`);
    else told.push(`${percent(point.mean)} right` + (count > 1 ? ` (${percent(point.min)} to ${percent(point.max)}, ${seeds(count)})` : " (1 seed)"));
    told.push(merged === n ? `, ${n} tokens all the way.` : `, ${n} tokens → ${merged}.`);
    const plain = key() !== data.plain && curve(data.plain) && read(curve(data.plain), place.value);
    if (plain) told.push(` The plain ViT: ${percent(plain.mean)}.`);
    return told.join("");
  }

  // The picture, and on it the borders of patches or of cells, in units of tokens.
  function panel(place, caption, draw) {
    const side = place.tokens * 4, picture = node("svg", { viewBox: `0 0 ${side} ${side}`, role: "img", "aria-label": caption });
    picture.append(node("image", { href: place.picture, width: side, height: side, preserveAspectRatio: "none" }));
    draw(picture, side);
    if (place.side < side)
      picture.append(node("path", { d: `M${place.side} 0V${place.side}H0`, fill: "none", stroke: "#fff", "stroke-width": 2, "stroke-dasharray": "2 3", "vector-effect": "non-scaling-stroke" }));
    return node("figure", {}, picture, node("figcaption", {}, caption));
  }

  function grid(picture, side, borders, style) {
    const line = (x1, y1, x2, y2) => picture.append(node("line", { x1, y1, x2, y2, "vector-effect": "non-scaling-stroke", ...style }));
    for (const border of borders) {
      line(4 * border, 0, 4 * border, side);
      line(0, 4 * border, side, 4 * border);
    }
  }

  function chequered(picture, borders) {
    for (let row = 0; row + 1 < borders.length; row++)
      for (let column = row % 2; column + 1 < borders.length; column += 2)
        picture.append(node("rect", {
          x: 4 * borders[column], y: 4 * borders[row], width: 4 * (borders[column + 1] - borders[column]),
          height: 4 * (borders[row + 1] - borders[row]), fill: "#fff", "fill-opacity": 0.28,
        }));
  }

  function panels(place) {
    const n = place.tokens, colour = data.mergers[choice.merger.value].color, white = { stroke: "#fff", "stroke-opacity": 0.55, "stroke-width": 1 };
    const every = Array.from({ length: n + 1 }, (_, i) => i), overhang = n * 4 > place.side ? `; beyond the dots, the border of the ${place.side} px is repeated` : "";
    const shown = [panel(place, `${n} × ${n} patches of 4 px${overhang}`, (picture, side) => grid(picture, side, every, white))];
    const bold = { stroke: "#fff", "stroke-width": 2 };
    if (choice.merger.value === "atm") {
      let from = Math.max(n, data.grid);
      data.cells[n].passes.forEach((borders, i) => {
        const to = borders.length - 1, how = from === to ? `${to} × ${to} cells of one token` : `${from} × ${from} → ${to} × ${to} cells`;
        shown.push(panel(place, `Pass ${i + 1}: ${i === 0 && from > n ? `enlarged to ${from} × ${from}, ` : ""}${how}`, (picture, side) => {
          chequered(picture, borders);
          grid(picture, side, borders, bold);
        }));
        from = to;
      });
    } else if (choice.merger.value !== "none") {
      const first = choice.merger.value === "convpool" ? "After two convolutions, the" : "The";
      const overlap = n % data.grid ? "; tokens in two regions count in both" : "";
      shown.push(panel(place, `${first} mean of each of ${data.grid} × ${data.grid} regions${overlap}`, (picture) => {
        for (const [top, bottom] of data.cells[n].regions) for (const [left, right] of data.cells[n].regions)
          picture.append(node("rect", {
            x: 4 * left, y: 4 * top, width: 4 * (right - left), height: 4 * (bottom - top), fill: "#fff", "fill-opacity": 0.16,
            stroke: "#fff", "stroke-width": 2, "vector-effect": "non-scaling-stroke",
          }));
      }));
    }
    return shown;
  }

  // The chart, drawn for the width that there is.
  const MARKERS = { o: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", s: "M-3.6-3.6h7.2v7.2h-7.2z", "^": "M0-4.6L4.4 3.6h-8.8z", D: "M0-5L5 0L0 5L-5 0z" };

  function chart(place) {
    const width = Math.max(280, find(".chart").clientWidth), height = Math.round(Math.min(300, 150 + width / 5));
    const left = 44, right = 12, top = 10, bottom = 40, drawn = curve(key()), plain = curve(data.plain), axis = AXES[choice.axis.value];
    const places = data.stops[choice.axis.value], first = Math.log(places[0].value), last = Math.log(places.at(-1).value);
    const x = (v) => left + ((Math.log(v) - first) / (last - first)) * (width - left - right), y = (v) => top + (1 - v) * (height - top - bottom);
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `Accuracy of ${key().replaceAll("|", ", ")} along ${axis.name}` });
    const line = (x1, y1, x2, y2, more) => svg.append(node("line", { x1, y1, x2, y2, stroke: "currentColor", ...more }));
    const path = (xs, ys) => xs.map((v, i) => `${i ? "L" : "M"}${x(v).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("");
    const seen = axis.seen(data.schedules[choice.schedule.value]);
    for (const value of seen) line(x(value), top, x(value), height - bottom, { class: "seen", "stroke-width": 9, "stroke-opacity": 0.13 });
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      line(left, y(share), width - right, y(share), { "stroke-opacity": share ? 0.15 : 0.6 });
      svg.append(node("text", { x: left - 7, y: y(share) + 4, "text-anchor": "end" }, percent(share)));
    }
    line(left, y(data.chance), width - right, y(data.chance), { "stroke-opacity": 0.6, "stroke-dasharray": "2 4" });
    const named = [];
    for (const value of new Set([...seen, ...drawn.value])) {
      line(x(value), height - bottom, x(value), height - bottom + 4, { "stroke-opacity": 0.6 });
      if (named.some((other) => Math.abs(x(other) - x(value)) < 26)) continue;
      named.push(value);
      svg.append(node("text", { x: x(value), y: height - bottom + 17, "text-anchor": "middle" }, number(value)));
    }
    svg.append(node("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, `${axis.slider}${choice.axis.value === "resolution" ? ", px" : ", relative to its own"}`));
    if (plain && key() !== data.plain) svg.append(node("path", { class: "plain", d: path(plain.value, plain.mean), fill: "none", stroke: "currentColor", "stroke-opacity": 0.5, "stroke-width": 2, "stroke-dasharray": "6 3" }));
    const { marker } = data.mergers[choice.merger.value], back = [...drawn.value].reverse();
    if (data.curves[key()].seeds > 1)
      svg.append(node("path", { class: "band", d: path(drawn.value, drawn.max) + path(back, [...drawn.min].reverse()).replace("M", "L") + "z", fill: "var(--tint)", "fill-opacity": 0.22 }));
    svg.append(node("path", { class: "curve", d: path(drawn.value, drawn.mean), fill: "none", stroke: "var(--tint)", "stroke-width": 2.5, "stroke-linejoin": "round" }));
    drawn.value.forEach((value, i) => svg.append(node("path", { d: MARKERS[marker], transform: `translate(${x(value).toFixed(1)} ${y(drawn.mean[i]).toFixed(1)})`, fill: "var(--tint)" })));
    const point = read(drawn, place.value);
    line(x(place.value), top, x(place.value), height - bottom, { "stroke-opacity": 0.55 });
    if (point) svg.append(node("circle", { class: "point", cx: x(place.value).toFixed(1), cy: y(point.mean).toFixed(1), r: 8, fill: "var(--tint)", "fill-opacity": 0.35, stroke: "currentColor", "stroke-width": 2 }));
    return svg;
  }

  function legend() {
    const { marker } = data.mergers[choice.merger.value], count = data.curves[key()].seeds;
    const entry = (text, ...drawn) => node("span", {}, node("svg", { viewBox: "-13 -6 26 12" }, ...drawn), text);
    const line = (more) => node("line", { x1: -12, x2: 12, y1: 0, y2: 0, stroke: "currentColor", "stroke-width": 2, ...more });
    const entries = [entry(`${key().replaceAll("|", " · ")}, ${seeds(count)}`, line({ stroke: "var(--tint)", "stroke-width": 2.5 }), node("path", { d: MARKERS[marker], fill: "var(--tint)" }))];
    if (key() !== data.plain) {
      const plain = data.curves[data.plain];
      entries.push(entry(plain ? `plain ViT (learned · none · single), ${seeds(plain.seeds)}` : "plain ViT (learned · none · single): no result yet", line({ "stroke-opacity": 0.5, "stroke-dasharray": "6 3" })));
    }
    entries.push(entry("seen in training", line({ "stroke-opacity": 0.13, "stroke-width": 9 })), entry("chance", line({ "stroke-opacity": 0.6, "stroke-width": 1, "stroke-dasharray": "2 4" })));
    return entries;
  }

  function numbers() {
    const drawn = curve(key()), plain = key() !== data.plain && curve(data.plain), table = node("table");
    const row = (kind, texts) => table.append(node("tr", {}, ...texts.map((text) => node(kind, kind === "th" ? { scope: "col" } : {}, text))));
    row("th", [AXES[choice.axis.value].slider, "right", "worst seed", "best seed", ...(plain ? ["plain ViT"] : [])]);
    const exact = (v) => (v === undefined ? "–" : `${(100 * v).toFixed(1)} %`);
    drawn.value.forEach((value, i) => row("td", [AXES[choice.axis.value].text(value), exact(drawn.mean[i]), exact(drawn.min[i]), exact(drawn.max[i]), ...(plain ? [exact(plain.mean[plain.value.indexOf(value)])] : [])]));
    return [table, node("p", {}, `Each seed is judged on ${data.count} scenes. From ${data.curves[key()].runs.map((run) => `runs/${run}.json`).join(", ")}.`)];
  }

  function show() {
    const place = data.stops[choice.axis.value][slider.value], told = AXES[choice.axis.value].text(place.value);
    root.style.setProperty("--colour", data.mergers[choice.merger.value].color);
    find("output").textContent = told;
    slider.setAttribute("aria-valuetext", told);
    find(".told").textContent = sentence(place);
    find(".panels").replaceChildren(...panels(place));
    find(".chart").replaceChildren(chart(place));
  }

  function choose() {
    offer();
    const { position, merger, schedule } = choice, sizes = data.schedules[schedule.value].join(", ");
    const about = [[position, data.positions[position.value]], [merger, data.mergers[merger.value].about], [schedule, `${SCHEDULES[schedule.value]}: ${sizes} px.`]];
    find(".about").replaceChildren(...about.map(([select, text]) => node("div", {}, node("strong", {}, select.value), ` ${text}`)));
    find(".legend").replaceChildren(...legend());
    find(".numbers").replaceChildren(...numbers());
    show();
  }

  function turn() {
    const places = data.stops[choice.axis.value], axis = AXES[choice.axis.value];
    slider.max = places.length - 1;
    slider.value = places.findIndex((place) => place.value === axis.at);
    find(".slider span").textContent = axis.slider;
    choose();
  }

  if (!Object.keys(data.curves).length) {
    root.textContent = "No run of the grid has a result yet.";
    return;
  }
  const fill = (select, names, text) => select.replaceChildren(...names.map((name) => {
    const option = node("option", { value: name }, text(name));
    option.dataset.name = text(name);
    return option;
  }));
  fill(choice.position, Object.keys(data.positions), (name) => name);
  fill(choice.merger, Object.keys(data.mergers), (name) => name);
  fill(choice.schedule, Object.keys(data.schedules), (name) => name);
  fill(choice.axis, Object.keys(AXES), (name) => AXES[name].name);
  const begin = Object.keys(data.curves).find((name) => name.endsWith("|atm|all")) ?? Object.keys(data.curves)[0];
  begin.split("|").forEach((name, i) => (factors[i].value = name));
  factors.forEach((select) => select.addEventListener("change", choose));
  choice.axis.addEventListener("change", turn);
  slider.addEventListener("input", show);
  new ResizeObserver(() => find(".chart").replaceChildren(chart(data.stops[choice.axis.value][slider.value]))).observe(root);
  turn();
})();
