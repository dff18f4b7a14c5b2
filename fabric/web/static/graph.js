// The graph of a build: states that change, what a step needs and is needed by, search, zoom.
"use strict";

(() => {
  const WORDS = { w: "waiting", y: "ready", r: "running", d: "done", c: "cached", f: "failed", x: "cancelled", u: "unneeded" };
  const READY = "dcu";
  const MOST = 3;
  const LEAST = 0.08;
  const FAR = 0.45; // names are too small to read
  const READABLE = 0.8;
  const SVG = "http://www.w3.org/2000/svg";

  const now = document.getElementById("now");
  const tools = document.getElementById("graph-tools");
  const find = document.getElementById("graph-find");
  const found = document.getElementById("graph-found");
  let figure, view, svg, about, nodes, needs, neededBy, scale, size;
  let traced = null;
  let hits = [];
  let hit = -1;

  const numbers = (text) => text ? text.split(" ").map(Number) : [];

  function setup() {
    figure = document.getElementById("graph-figure");
    view = document.getElementById("graph-view");
    if (!view) return;
    svg = document.getElementById("graph");
    about = document.getElementById("graph-about");
    size = { width: svg.viewBox.baseVal.width, height: svg.viewBox.baseVal.height };
    nodes = new Map();
    needs = new Map();
    neededBy = new Map();
    for (const node of svg.querySelectorAll(".node")) {
      const step = Number(node.dataset.step);
      nodes.set(step, node);
      needs.set(step, numbers(node.dataset.needs));
      neededBy.set(step, neededBy.get(step) || []);
      node.setAttribute("tabindex", -1);
    }
    for (const [step, its] of needs) {
      for (const one of its) if (neededBy.has(one)) neededBy.get(one).push(step);
    }
    for (const node of nodes.values()) {
      node.setAttribute("tabindex", 0);
      break;
    }
    listen();
    apply();
    if (tools) tools.hidden = false;
  }

  // -- states ---------------------------------------------------------------------------------

  function apply() {
    const states = now.dataset.states;
    const critical = new Set(numbers(now.dataset.critical));
    for (const [step, node] of nodes) {
      const letter = states[step] || "u";
      const old = node.dataset.state;
      if (old !== letter) {
        node.classList.remove("s-" + old, ...Object.keys(WORDS).map((each) => "s-" + each));
        node.classList.add("s-" + letter);
        node.querySelector("use").setAttribute("href", "#i-" + letter);
        node.dataset.state = letter;
      }
      node.classList.toggle("critical", critical.has(step));
      const kind = node.dataset.kind ? node.dataset.kind + " " : "";
      const more = critical.has(step) ? ", on the critical path" : "";
      const label = kind + node.dataset.name + ": " + WORDS[letter] + more;
      if (node.getAttribute("aria-label") !== label) node.setAttribute("aria-label", label);
    }
    for (const head of svg.querySelectorAll("[data-members]")) {
      const members = numbers(head.dataset.members).map((step) => states[step] || "u");
      const ready = members.filter((letter) => READY.includes(letter)).length;
      const fill = head.querySelector(".fill");
      if (!fill) continue;
      fill.setAttribute("width", fill.dataset.width * ready / members.length);
      fill.classList.toggle("f", members.includes("f"));
      fill.classList.toggle("r", members.includes("r"));
      head.querySelector(".count").textContent = ready + "/" + members.length;
    }
    paths(document.getElementById("graph-links"), now.dataset.links ? now.dataset.links.split("|") : []);
    describe();
  }

  function paths(group, lines) {
    while (group.childElementCount > lines.length) group.lastElementChild.remove();
    while (group.childElementCount < lines.length) group.append(document.createElementNS(SVG, "path"));
    lines.forEach((line, index) => {
      if (group.children[index].getAttribute("d") !== line) group.children[index].setAttribute("d", line);
    });
  }

  async function redraw() {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("graph-figure");
    if (!fresh || fresh.dataset.layout === figure.dataset.layout) return;
    const had = view && { scale, left: view.scrollLeft, top: view.scrollTop };
    if (!tools && fresh.querySelector("svg")) return location.reload();
    figure.replaceWith(fresh);
    document.getElementById("graph-redraw").hidden = true;
    traced = null;
    setup();
    if (had && view) {
      zoom(had.scale);
      view.scrollTo(had.left, had.top);
    }
  }

  function changed() {
    if (now.dataset.layout === figure.dataset.layout) return view && apply();
    // A drawing that somebody looks at does not jump, unless the build has just begun.
    if (!view || now.dataset.state === "resolving" || now.dataset.state === "checking") return redraw();
    document.getElementById("graph-redraw").hidden = false;
    apply();
  }

  // -- what a step needs, and is needed by --------------------------------------------------------

  function reach(from, next) {
    const all = new Set();
    const todo = [from];
    while (todo.length) {
      for (const one of next.get(todo.pop()) || []) {
        if (!all.has(one)) {
          all.add(one);
          todo.push(one);
        }
      }
    }
    return all;
  }

  function place(step) {
    const node = nodes.get(step);
    const { x, y, width, height } = node.querySelector("rect").getBBox();
    const outer = node.closest("svg.head");
    const left = (outer ? outer.x.baseVal.value : 0) + x;
    const top = (outer ? outer.y.baseVal.value : 0) + y;
    return { left, right: left + width, top, bottom: top + height, x: left + width / 2, y: top + height / 2 };
  }

  // As `drawing.connection`: to the right if the other is there, else down.
  function curve(a, b) {
    const [from, to] = [place(a), place(b)];
    if (to.left < from.right && to.top > from.bottom) {
      const middle = (from.bottom + to.top) / 2;
      return `M${from.x} ${from.bottom}C${from.x} ${middle} ${to.x} ${middle} ${to.x} ${to.top}`;
    }
    const middle = (from.right + to.left) / 2;
    return `M${from.right} ${from.y}C${middle} ${from.y} ${middle} ${to.y} ${to.left} ${to.y}`;
  }

  function trace(step) {
    if (step === traced) return;
    for (const node of svg.querySelectorAll(".on")) node.classList.remove("on", "self");
    traced = step;
    svg.classList.toggle("tracing", step !== null);
    if (step === null) {
      paths(document.getElementById("graph-trace"), []);
      return describe();
    }
    const all = [step, ...reach(step, needs), ...reach(step, neededBy)];
    for (const one of all) if (nodes.has(one)) nodes.get(one).classList.add("on");
    nodes.get(step).classList.add("self");
    const before = needs.get(step).filter((one) => nodes.has(one)).map((one) => curve(one, step));
    paths(document.getElementById("graph-trace"), [...before, ...neededBy.get(step).map((one) => curve(step, one))]);
    describe();
  }

  function describe() {
    if (traced === null) return void (about.textContent = "");
    const down = reach(traced, needs);
    const undone = [...down].filter((one) => !READY.includes(now.dataset.states[one])).length;
    const up = reach(traced, neededBy).size;
    const many = (count) => count === 1 ? "1 step" : count + " steps";
    about.textContent = nodes.get(traced).getAttribute("aria-label") +
      `. It needs ${many(down.size)}${undone ? `, ${undone} of them not built yet` : ""}; ${many(up)} ${up === 1 ? "needs" : "need"} it.`;
  }

  const stepOf = (target) => {
    const node = target && target.closest && target.closest("#graph .node");
    return node ? Number(node.dataset.step) : null;
  };

  function go(node) {
    for (const each of svg.querySelectorAll('.node[tabindex="0"]')) each.setAttribute("tabindex", -1);
    node.setAttribute("tabindex", 0);
    node.focus({ preventScroll: true });
    center(node, false);
  }

  function center(node, always) {
    const box = node.querySelector("rect").getBoundingClientRect();
    const frame = view.getBoundingClientRect();
    const inside = box.left >= frame.left && box.right <= frame.right && box.top >= frame.top && box.bottom <= frame.bottom;
    if (inside && !always) return;
    view.scrollBy((box.left + box.right - frame.left - frame.right) / 2, (box.top + box.bottom - frame.top - frame.bottom) / 2);
  }

  // -- keys and pointers ------------------------------------------------------------------------

  function neighbour(step, key) {
    if (key === "ArrowLeft") return needs.get(step).find((one) => nodes.has(one));
    if (key === "ArrowRight") return neededBy.get(step)[0];
    const order = [...nodes.keys()];
    const place = order.indexOf(step);
    return { ArrowUp: order[place - 1], ArrowDown: order[place + 1], Home: order[0], End: order.at(-1) }[key];
  }

  function zoom(to, at) {
    const frame = view.getBoundingClientRect();
    const x = at ? at.x - frame.left : frame.width / 2;
    const y = at ? at.y - frame.top : frame.height / 2;
    const before = svg.getBoundingClientRect();
    const part = { x: (x + frame.left - before.left) / before.width, y: (y + frame.top - before.top) / before.height };
    scale = Math.min(MOST, Math.max(LEAST, to));
    svg.setAttribute("width", Math.round(size.width * scale));
    svg.setAttribute("height", Math.round(size.height * scale));
    svg.style.setProperty("--scale", scale);
    svg.classList.toggle("far", scale < FAR);
    const after = svg.getBoundingClientRect();
    view.scrollBy(after.left + part.x * after.width - frame.left - x, after.top + part.y * after.height - frame.top - y);
  }

  const inner = () => ({ width: view.clientWidth - 16, height: view.clientHeight - 16 });
  const fit = () => zoom(Math.min(inner().width / size.width, innerHeight * 0.8 / size.height));
  const step = { in: () => zoom(scale * 1.25), out: () => zoom(scale / 1.25), fit };

  function listen() {
    zoom(Math.min(innerWidth < 2560 ? 1 : 1.75, Math.max(READABLE, inner().width / size.width)));
    const first = [...nodes.values()].find((node) => node.matches(".s-f, .s-r"));
    if (first) center(first, true);

    view.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const action = { "+": step.in, "=": step.in, "-": step.out, 0: step.fit }[event.key];
      if (action) {
        event.preventDefault();
        return action();
      }
      if (event.key === "Escape") return trace(null);
      const from = stepOf(event.target);
      const next = from === null ? undefined : neighbour(from, event.key);
      if (next !== undefined) {
        event.preventDefault();
        go(nodes.get(next));
      }
    });
    view.addEventListener("focusin", (event) => trace(stepOf(event.target)));
    view.addEventListener("focusout", () => trace(null));
    view.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "touch") trace(stepOf(event.target) ?? stepOf(document.activeElement));
    });
    view.addEventListener("pointerleave", () => trace(stepOf(document.activeElement)));
    gestures(view, (factor, x, y) => zoom(scale * factor, { x, y }), (a, b) => Math.hypot(a.x - b.x, a.y - b.y));
  }

  // -- search -------------------------------------------------------------------------------------

  function search() {
    const text = find.value.trim().toLowerCase();
    hits = text ? [...nodes.values()].filter((node) => node.dataset.name.toLowerCase().includes(text)) : [];
    hit = -1;
    for (const node of svg.querySelectorAll(".hit")) node.classList.remove("hit");
    for (const node of hits) node.classList.add("hit");
    svg.classList.toggle("finding", hits.length > 0);
    found.textContent = !text ? "" : hits.length ? `${hits.length} found` : "none is drawn";
    if (hits.length) center(hits[0], false);
    trace(null);
  }

  function next(back) {
    if (!hits.length) return;
    hit = (hit + (back ? hits.length - 1 : 1)) % hits.length;
    found.textContent = `${hit + 1} of ${hits.length}`;
    center(hits[hit], true);
    trace(stepOf(hits[hit]));
  }

  if (tools) {
    find.addEventListener("input", search);
    find.addEventListener("keydown", (event) => {
      if (event.key === "Enter") next(event.shiftKey);
      if (event.key === "Escape") {
        find.value = "";
        search();
      }
    });
    tools.addEventListener("click", (event) => {
      const button = event.target.closest("[data-zoom]");
      if (button) step[button.dataset.zoom]();
    });
    document.getElementById("graph-redraw").addEventListener("click", redraw);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.target.closest("input, textarea")) return;
      event.preventDefault();
      find.focus();
    });
  }
  now.addEventListener("click", (event) => {
    const link = event.target.closest("[data-show]");
    const node = link && nodes && nodes.get(Number(link.dataset.show));
    if (!node || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    view.scrollIntoView({ block: "nearest" });
    go(node);
  });
  new MutationObserver(changed).observe(now, { attributes: true });
  setup();
})();
