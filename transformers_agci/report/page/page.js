// Shows the items behind a cell. Every text from a result goes into the page as text, never as markup.
"use strict";
(() => {
  const PER_PAGE = 24;
  const KINDS = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };
  const [MISSING, NO, YES, UNREADABLE] = [0, 1, 2, 3];
  const data = JSON.parse(document.getElementById("data").textContent);
  const cells = data.cells.length;
  const one = data.results.length === 1;
  const by = (id) => document.getElementById(id);

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const decoded = new Map();
  function numbers(column) {
    if (!decoded.has(column)) {
      const bytes = Uint8Array.from(atob(column.data), (sign) => sign.charCodeAt(0));
      decoded.set(column, new KINDS[column.type](bytes.buffer));
    }
    return decoded.get(column);
  }

  const state = { answer: Object.keys(data.sides)[0], cell: -1, result: data.results.length - 1, filter: one ? "wrong" : "changed",
    sort: "change", search: "", page: 0 };

  function said(result, at) { return numbers(data.sides[state.answer].said[result])[at]; }
  function right(result, at) { return said(result, at) === (state.answer === "Yes" ? YES : NO); }
  function margin(result, at) {
    const column = data.sides[state.answer].margin[result];
    return column ? numbers(column)[at] : NaN;
  }
  // Logits by which the right answer gained; with one result, by which it leads; right or wrong where there are none.
  function change(at) {
    const sign = state.answer === "Yes" ? 1 : -1;
    const second = sign * margin(state.result, at);
    const first = one ? 0 : sign * margin(0, at);
    if (!Number.isNaN(second - first)) return second - first;
    return Number(right(state.result, at)) - (one ? 0.5 : Number(right(0, at)));
  }
  const there = (at) => said(state.result, at) !== MISSING && (one || said(0, at) !== MISSING);
  function allRight(result, at) {
    const start = at - (at % cells);
    let known = 0;
    for (let cell = 0; cell < cells; cell += 1) {
      if (said(result, start + cell) === MISSING) continue;
      if (!right(result, start + cell)) return false;
      known += 1;
    }
    return known > 0;
  }
  const everyCell = cells === 9 ? "all nine right" : `all ${cells} right`;
  const FILTERS = one
    ? { wrong: ["wrong", (at) => !right(0, at)], right: ["right", (at) => right(0, at)],
        nine: [everyCell, (at) => allRight(0, at)], unreadable: ["unreadable reply", (at) => said(0, at) === UNREADABLE],
        all: ["everything", () => true] }
    : { changed: ["became right or wrong", (at) => right(0, at) !== right(state.result, at)],
        became_right: ["became right", (at) => !right(0, at) && right(state.result, at)],
        became_wrong: ["became wrong", (at) => right(0, at) && !right(state.result, at)],
        both_wrong: ["wrong before and after", (at) => !right(0, at) && !right(state.result, at)],
        nine: [`${everyCell} in the result`, (at) => allRight(state.result, at)],
        nine_first: [`${everyCell} in the first`, (at) => allRight(0, at)],
        unreadable: ["unreadable reply", (at) => said(0, at) === UNREADABLE || said(state.result, at) === UNREADABLE],
        all: ["everything", () => true] };
  const SORTS = one
    ? { change: ["least sure of the right answer first", (a, b) => change(a) - change(b)], item: ["item", (a, b) => a - b] }
    : { change: ["largest change first", (a, b) => Math.abs(change(b)) - Math.abs(change(a))],
        gain: ["largest gain first", (a, b) => change(b) - change(a)],
        loss: ["largest loss first", (a, b) => change(a) - change(b)], item: ["item", (a, b) => a - b] };

  const caption = (at) => data.captions[numbers(data.sides[state.answer].caption)[at]];
  const imageOf = (at) => numbers(data.sides[state.answer].image)[at];

  function candidates() {
    const found = [];
    const wanted = state.search.toLowerCase();
    for (let at = 0; at < data.items * cells; at += 1) {
      if (state.cell >= 0 && at % cells !== state.cell) continue;
      if (!there(at) || (wanted && !caption(at).toLowerCase().includes(wanted))) continue;
      found.push(at);
    }
    return found;
  }

  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, text]) => {
      const option = element("option", "", text);
      option.value = value;
      option.selected = String(value) === String(chosen);
      return option;
    }));
  }

  function fillChoices() {
    options(by("answer"), Object.keys(data.sides).map((name) => [name, `${name} rows: the target is ${name === "Yes" ? "" : "not "}there`]), state.answer);
    options(by("cell"), [[-1, "all positions"], ...data.cells.map((name, number) => [number, name.replaceAll("_", " ")])], state.cell);
    options(by("result"), data.results.map((label, number) => [number, number || one ? label : `${label} (the first)`]).slice(one ? 0 : 1), state.result);
    options(by("sort"), Object.entries(SORTS).map(([value, [text]]) => [value, text]), state.sort);
    by("against-label").hidden = data.results.length < 3;
  }

  let shown = [];
  function update() {
    const rows = candidates();
    const counts = Object.fromEntries(Object.entries(FILTERS).map(([name, [, keeps]]) => [name, rows.filter(keeps)]));
    options(by("filter"), Object.entries(FILTERS).map(([name, [text]]) => [name, `${text} (${counts[name].length})`]), state.filter);
    shown = counts[state.filter].sort((a, b) => SORTS[state.sort][1](a, b) || a - b);
    const where = state.cell < 0 ? "all positions" : data.cells[state.cell].replaceAll("_", " ");
    const against = one ? data.results[0] : `${data.results[state.result]} against ${data.results[0]}`;
    by("count").textContent = `${shown.length} of ${rows.length} ${state.answer} rows, ${where}: ${FILTERS[state.filter][0]}; ${against}`;
    turn(0);
  }

  function turn(page) {
    const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    state.page = Math.min(Math.max(page, 0), pages - 1);
    const start = state.page * PER_PAGE;
    by("cards").replaceChildren(...shown.slice(start, start + PER_PAGE).map(card));
    by("page").textContent = `page ${state.page + 1} of ${pages}`;
    by("before").disabled = state.page === 0;
    by("next").disabled = state.page === pages - 1;
  }

  function card(at) {
    const made = element("li", "card");
    made.append(element("div", "caption", caption(at)));
    const number = imageOf(at);
    made.append(element("div", "where", `${data.cells[at % cells].replaceAll("_", " ")} · ${data.images[number]}`));
    made.append(picture(at, number));
    made.append(replies(at));
    return made;
  }

  function source(number) {
    if (data.folder) return data.in_folder.includes(number) ? `${data.folder}/${number}.jpg` : "";
    return data.thumbnails[number] || "";
  }

  function picture(at, number) {
    const place = element("div");
    const overlays = data.overlays[number] || [];
    if (!source(number)) {
      place.append(element("p", "none", data.without_image));
      return place;
    }
    const frame = element("button", "picture");
    frame.type = "button";
    frame.title = "Enlarge";
    const image = element("img");
    image.loading = "lazy";
    image.src = source(number);
    image.alt = `Image ${data.images[number]}, target: ${data.cells[at % cells].replaceAll("_", " ")}`;
    frame.append(image, outline(at % cells));
    frame.addEventListener("click", () => enlarge(frame));
    place.append(frame);
    if (overlays.length) place.append(overlayChoice(frame, overlays));
    return place;
  }

  function outline(cell) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const box = data.boxes && data.boxes[cell];
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    if (box && state.answer === "Yes") {
      const rect = document.createElementNS(space, "rect");
      ["x", "y", "width", "height"].forEach((name, k) => rect.setAttribute(name, box[k]));
      svg.append(rect);
    }
    return svg;
  }

  function overlayChoice(frame, overlays) {
    const label = element("label", "", "Map over the image ");
    const select = element("select");
    options(select, [["", "none"], ...overlays.map(([name], number) => [number, name])], "");
    select.addEventListener("change", () => {
      frame.querySelectorAll(".over").forEach((old) => old.remove());
      if (select.value === "") return;
      const over = element("img", "over");
      over.src = overlays[select.value][1];
      over.alt = overlays[select.value][0];
      frame.querySelector("img").after(over);
    });
    label.append(select);
    return label;
  }

  function enlarge(frame) {
    const copy = element("div", "picture");
    copy.append(...[...frame.childNodes].map((node) => node.cloneNode(true)));
    by("large-image").replaceChildren(copy);
    by("large").showModal();
  }

  function replies(at) {
    const table = element("table", "replies");
    const head = table.createTHead().insertRow();
    ["Result", "Reply", "Right?", "Margin", "All cells"].forEach((name) => {
      const th = element("th", name === "Margin" ? "number" : "", name);
      th.scope = "col";
      head.append(th);
    });
    const body = table.createTBody();
    data.results.forEach((label, result) => {
      const code = said(result, at);
      if (code === MISSING) return;
      const row = body.insertRow();
      const th = element("th", "", label);
      th.scope = "row";
      const reply = data.replies[numbers(data.sides[state.answer].reply[result])[at]];
      const good = right(result, at);
      const verdict = code === UNREADABLE ? "✗ unreadable" : good ? "✓ right" : "✗ wrong";
      const value = margin(result, at);
      row.append(th, element("td", "reply", reply), element("td", `verdict ${good ? "right" : "wrong"}`, verdict),
        element("td", "number", Number.isNaN(value) ? "–" : value.toFixed(2).replace("-", "−")), tiny(result, at));
    });
    return table;
  }

  // The item's answers in all cells, as a small map of ticks and crosses.
  function tiny(result, at) {
    const made = element("td");
    const map = element("span", "tiny");
    const start = at - (at % cells);
    const marks = data.cells.map((name, cell) => said(result, start + cell) === MISSING ? "·" : right(result, start + cell) ? "✓" : "✗");
    map.style.gridTemplateColumns = `repeat(${data.shape[1]}, 13px)`;
    map.setAttribute("role", "img");
    map.setAttribute("aria-label", `right in ${marks.filter((mark) => mark === "✓").length} of ${marks.filter((mark) => mark !== "·").length} cells`);
    marks.forEach((mark, cell) => {
      map.append(element("i", `${mark === "✓" ? "right" : mark === "✗" ? "wrong" : ""}${cell === at % cells ? " here" : ""}`, mark));
    });
    made.append(map);
    return made;
  }

  function open(button) {
    state.answer = button.dataset.answer;
    state.cell = Number(button.dataset.cell);
    if (one || Number(button.dataset.result) > 0) state.result = Number(button.dataset.result);
    if (!data.sides[state.answer]) return;
    fillChoices();
    update();
    by("items-title").focus({ preventScroll: true });
    by("items").scrollIntoView();
  }

  document.querySelectorAll(".cell").forEach((button) => button.addEventListener("click", () => open(button)));
  // Arrow keys walk over a map.
  document.querySelectorAll(".map").forEach((map) => map.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data.shape[1], ArrowDown: data.shape[1] };
    const all = [...map.querySelectorAll(".cell")];
    const at = all.indexOf(document.activeElement);
    const next = all[at + steps[event.key]];
    if (at < 0 || !next) return;
    event.preventDefault();
    next.focus();
  }));
  for (const [id, name, read] of [["answer", "answer", String], ["cell", "cell", Number], ["result", "result", Number],
    ["filter", "filter", String], ["sort", "sort", String]]) {
    by(id).addEventListener("change", (event) => { state[name] = read(event.target.value); update(); });
  }
  by("search").addEventListener("input", (event) => { state.search = event.target.value; update(); });
  by("choice").addEventListener("submit", (event) => event.preventDefault());
  by("before").addEventListener("click", () => turn(state.page - 1));
  by("next").addEventListener("click", () => turn(state.page + 1));
  by("look").addEventListener("change", (event) => { document.documentElement.className = event.target.value; });
  window.addEventListener("beforeprint", () => document.querySelectorAll("#margins details, #ruler details").forEach((part) => { part.open = true; }));
  fillChoices();
  update();
})();
