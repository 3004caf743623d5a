"use strict";
(() => {
  const make = (tag, text) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const option = (text, value) => {
    const made = make("option", text);
    made.value = value;
    return made;
  };

  // --- tables ---------------------------------------------------------------------------------------------------
  const inOrder = new Intl.Collator(undefined, {numeric: true});

  function sort(table, column, ascending) {
    const body = table.tBodies[0];
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const missing = (value) => value === "–" || Number.isNaN(value);
    const compare = (a, b) => {
      if (missing(a) || missing(b)) return (missing(a) - missing(b)) * (ascending ? 1 : -1);   // at the end either way
      return typeof a === "number" && typeof b === "number" ? a - b : inOrder.compare(a, b);
    };
    const rows = Array.from(body.rows, (row) => [key(row), row]);
    rows.sort((a, b) => compare(a[0], b[0]) * (ascending ? 1 : -1));
    body.append(...rows.map(([, row]) => row));
    for (const [place, head] of Array.from(table.tHead.rows[0].cells).entries()) {
      if (place === column) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    }
  }

  function addFilters(grid, table, heads) {
    const wanted = JSON.parse(grid.dataset.filters), box = grid.querySelector(".filters"), chosen = new Map();
    const count = make("output");
    const rows = Array.from(table.tBodies[0].rows);
    const apply = () => {
      let shown = 0;
      for (const row of rows) {
        row.hidden = Array.from(chosen).some(([column, select]) =>
          select.value !== "" && row.cells[column].textContent !== select.value);
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${rows.length} rows`;
    };
    for (const [name, first] of wanted) {
      const column = heads.indexOf(name), select = make("select"), label = make("label", `${name} `);
      const values = [...new Set(rows.map((row) => row.cells[column].textContent))];
      select.append(option("all", ""), ...values.map((value) => option(value, value)));
      select.value = values.includes(first) ? first : "";
      select.name = name;
      select.addEventListener("change", apply);
      label.append(select);
      box.append(label);
      chosen.set(column, select);
    }
    if (chosen.size) {
      box.append(count);
      box.hidden = false;
      apply();
    }
  }

  for (const grid of document.querySelectorAll(".grid")) {
    const table = grid.querySelector("table"), cells = Array.from(table.tHead.rows[0].cells);
    const heads = cells.map((cell) => cell.textContent);
    cells.forEach((cell, column) => {
      const numeric = table.tBodies[0].querySelector(`td:nth-child(${column + 1})[data-value]`) !== null;
      const button = make("button", heads[column]);
      button.type = "button";
      button.addEventListener("click", () => {
        const before = cell.getAttribute("aria-sort");
        sort(table, column, before ? before !== "ascending" : !numeric);        // numbers: the largest first
      });
      cell.classList.toggle("number", numeric);
      cell.replaceChildren(button);
    });
    addFilters(grid, table, heads);
  }

  // --- figures --------------------------------------------------------------------------------------------------
  const large = document.getElementById("large"), picture = large.querySelector("img");
  for (const button of document.querySelectorAll(".enlarge")) {
    button.addEventListener("click", () => {
      const small = button.querySelector("img");
      picture.src = small.src;
      picture.alt = large.querySelector("p").textContent = small.alt;
      picture.classList.remove("whole");
      large.showModal();
    });
  }
  picture.addEventListener("click", () => picture.classList.toggle("whole"));
  document.getElementById("close").addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = Array.from(document.querySelectorAll("details:not([open])"));
    closed.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((one) => { one.open = false; }));

  // --- maps -----------------------------------------------------------------------------------------------------
  const source = document.getElementById("viewer-data");
  if (!source) return;
  const byId = (name) => document.getElementById(name);
  const pairs = JSON.parse(source.textContent), stage = byId("stage"), slider = byId("slider"), readout = byId("readout");
  const sides = {left: byId("viewer-left"), right: byId("viewer-right")};
  const decoded = new Map();
  let pair, layers = [], drawing = 0;

  const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));

  async function numbers(text, wide) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    if (!wide) return new Uint8Array(buffer);
    const view = new DataView(buffer);
    return Uint16Array.from({length: buffer.byteLength / 2}, (_, place) => view.getUint16(2 * place, true));
  }

  const rgb = (code) => [1, 3, 5].map((place) => parseInt(code.slice(place, place + 2), 16));

  function paint(canvas, layer) {
    canvas.width = pair.width;
    canvas.height = pair.height;
    const context = canvas.getContext("2d");
    if (layer.image) {
      context.drawImage(layer.image, 0, 0);
      return;
    }
    const image = context.createImageData(pair.width, pair.height), colours = [pair.none, ...pair.colours].map(rgb);
    const right = rgb(pair.right), wrong = rgb(pair.wrong);
    for (let place = 0; place < layer.values.length; place += 1) {
      const value = layer.values[place], truth = layer.truth && layer.truth[place];
      const colour = !layer.truth ? colours[value] : truth === 0 ? colours[0] : truth === value ? right : wrong;
      image.data.set([...colour, 255], 4 * place);
    }
    context.putImageData(image, 0, 0);
  }

  async function layersOf(one) {
    const image = new Image();
    image.src = one.scene;
    await image.decode();
    const truth = one.truth ? await numbers(one.truth, one.wide) : null;
    const found = [{name: "scene, false colour", image}];
    if (truth) found.push({name: "ground truth", values: truth, none: "unlabelled"});
    for (const map of one.maps) found.push({name: map.name, values: await numbers(map.data, one.wide), none: "no data"});
    const maps = found.slice(truth ? 2 : 1);
    if (truth) maps.forEach((map) => found.push({...map, name: `${map.name}: errors`, truth}));
    return found;
  }

  function show(side) {
    const layer = layers[sides[side].value];
    byId(`name-${side}`).textContent = layer.name;
    paint(byId(`canvas-${side}`), layer);
  }

  function legend() {
    const line = (colour, text) => {
      const item = make("li"), patch = make("i");
      patch.style.background = colour;
      item.append(patch, text);
      return item;
    };
    const counted = (name, k) => pair.truth ? `${name} (${(pair.counts[k] || 0).toLocaleString("en")})` : name;
    const outcome = pair.truth ? [line(pair.right, "correct"), line(pair.wrong, "wrong")] : [];
    byId("legend").replaceChildren(...pair.classes.map((name, k) => line(pair.colours[k], counted(name, k))),
                                   line(pair.none, "unlabelled, no data"), ...outcome);
  }

  async function choose(index) {
    const number = drawing += 1;
    pair = pairs[index];
    if (!decoded.has(index)) decoded.set(index, await layersOf(pair));
    if (number !== drawing) return;                              // another pair was chosen meanwhile
    layers = decoded.get(index);
    stage.style.setProperty("--ratio", pair.width / pair.height);
    slider.style.setProperty("--ratio", pair.width / pair.height);
    for (const select of Object.values(sides)) {
      select.replaceChildren(...layers.map((layer, place) => option(layer.name, place)));
    }
    sides.left.value = layers.length > 2 && pair.truth ? 1 : 0;
    sides.right.value = Math.min(Number(sides.left.value) + 1, layers.length - 1);
    byId("viewer-caption").textContent = pair.caption + (pair.truth ? "; in brackets the labelled pixels of each class." : ".") +
      (pair.step > 1 ? ` Shown is every ${pair.step}th pixel in both directions.` : "");
    legend();
    show("left");
    show("right");
    stage.dataset.ready = index;
  }

  function moveTo(share) {
    slider.value = share;
    stage.style.setProperty("--at", `${share}%`);
  }

  function read(event) {
    const box = stage.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width, down = (event.clientY - box.top) / box.height;
    if (across < 0 || across >= 1 || down < 0 || down >= 1 || !layers.length) return;
    const column = Math.floor(across * pair.width), row = Math.floor(down * pair.height);
    const place = row * pair.width + column, parts = [`row ${row * pair.step}, column ${column * pair.step}`];
    const shown = new Set();
    for (const layer of [layers[1], layers[sides.left.value], layers[sides.right.value]]) {
      if (!layer || layer.image) continue;
      const name = layer.name.replace(/: errors$/, "");
      if (shown.has(name) || (layer === layers[1] && !pair.truth && layers[1].name !== name)) continue;
      shown.add(name);
      const value = layer.values[place];
      parts.push(`${name}: ${value === 0 ? layer.none : pair.classes[value - 1]}`);
    }
    readout.textContent = parts.join(" · ");
    if (event.buttons & 1) moveTo(100 * across);
  }

  slider.addEventListener("input", () => moveTo(Number(slider.value)));
  stage.addEventListener("pointermove", read);
  stage.addEventListener("pointerdown", read);
  Object.entries(sides).forEach(([side, select]) => select.addEventListener("change", () => show(side)));
  const pairChoice = byId("viewer-pair");
  pairChoice.append(...pairs.map((one, index) => option(one.pair, index)));
  pairChoice.closest("label").hidden = pairs.length < 2;
  pairChoice.addEventListener("change", () => choose(Number(pairChoice.value)));
  byId("viewer").hidden = false;
  choose(0).catch((error) => { readout.textContent = `This browser cannot show the maps (${error.message}); they stand below as pictures.`; });
})();
