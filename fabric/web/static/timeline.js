// The timeline of a build: it grows, zooms, and tells about an attempt under the pointer.
"use strict";

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const TOP = 95; // middle of the first lane
  const LANE = 22;
  const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

  const recent = document.getElementById("recent");
  const tools = document.getElementById("tools");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true"); // the same is the label of the attempt
  document.body.append(tip);

  const id = (name) => document.getElementById(name);
  let figure, chart, rows, began, begin, end, perSecond, loaded;
  let fitted = true;
  let over = false;
  let left = 0;

  const names = () => rows.querySelector(".name").offsetWidth;
  const span = () => end - begin;
  const room = () => chart.clientWidth - names();
  const percent = (at) => Math.min(100, Math.max(0, 100 * (at - begin) / span()));
  const now = () => over ? Number(figure.dataset.now) : loaded.now + (Date.now() - loaded.at) / 1000;

  function setup() {
    figure = id("figure");
    chart = id("chart");
    if (!chart) return;
    rows = id("rows");
    began = Date.parse(figure.dataset.began);
    begin = Number(figure.dataset.begin);
    end = Number(figure.dataset.end);
    over = "over" in figure.dataset;
    left = Math.max(0, Number(figure.dataset.left));
    loaded = { now: Number(figure.dataset.now), at: Date.now() };
    tools.hidden = false;
    for (const bar of chart.querySelectorAll(".bar")) bar.setAttribute("tabindex", -1);
    chart.querySelector(".bar")?.setAttribute("tabindex", 0);
    listen();
  }

  // -- scale --------------------------------------------------------------------------------------

  function zoom(to, x = room() / 2) {
    const at = (chart.scrollLeft + x) / (perSecond || to);
    perSecond = Math.max(room() / span(), Math.min(200, to, 4e6 / span()));
    rows.style.width = names() + span() * perSecond + "px";
    chart.scrollLeft = at * perSecond - x;
    ticks();
  }

  function fit() {
    fitted = true;
    const until = over ? end : Math.min(end, (now() + left) * 1.02 + 2);
    perSecond = 0;
    zoom(room() / (until - begin), 0);
    chart.scrollLeft = 0;
  }

  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
  const exact = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

  // Marks round times of the viewer's zone, in and near the part that is seen.
  function ticks() {
    const step = STEPS.find((one) => one * perSecond >= 90) || STEPS.at(-1);
    const zone = new Date(began).getTimezoneOffset() * 60;
    const first = Math.max(0, chart.scrollLeft - room()) / perSecond + begin;
    const last = Math.min(end, (chart.scrollLeft + 2 * room()) / perSecond + begin);
    const labels = [];
    const lines = [];
    for (let at = Math.ceil((began / 1000 - zone + first) / step) * step; ; at += step) {
      const seconds = at + zone - began / 1000;
      if (seconds > last) break;
      const x = percent(seconds) + "%";
      const text = document.createElementNS(SVG, "text");
      text.setAttribute("x", x);
      text.setAttribute("y", 14);
      text.textContent = (step < 60 ? exact : clock).format((at + zone) * 1000);
      labels.push(text);
      const line = document.createElementNS(SVG, "line");
      for (const [name, value] of [["x1", x], ["x2", x], ["y1", 24], ["y2", "100%"]]) line.setAttribute(name, value);
      lines.push(line);
    }
    id("axis").replaceChildren(...labels);
    id("grid").replaceChildren(...lines);
  }

  // -- what goes on -------------------------------------------------------------------------------

  function grow() {
    if (!chart || over) return;
    const at = now();
    const x = percent(at);
    const before = Number.parseFloat(id("now-line").getAttribute("x1"));
    for (const part of chart.querySelectorAll("[data-grows]")) {
      part.setAttribute("width", Math.max(0, x - percent(Number(part.dataset.grows))) + "%");
    }
    set(id("now-line"), { x1: x + "%", x2: x + "%" });
    set(id("future"), { x: x + "%", width: 100 - x + "%" });
    const soon = id("end-line");
    if (soon) set(soon, { x1: percent(at + left) + "%", x2: percent(at + left) + "%" });
    const width = span() * perSecond;
    const edge = chart.scrollLeft + room();
    const wasSeen = before / 100 * width <= edge;
    if (wasSeen && x / 100 * width > edge - 8) { // it leaves the part that is seen
      if (fitted) fit();
      else chart.scrollLeft += room() / 4;
    }
  }

  const set = (element, values) => {
    for (const [name, value] of Object.entries(values)) element.setAttribute(name, value);
  };

  async function changed() {
    if (recent.dataset.layout !== figure.dataset.layout || "over" in recent.dataset !== over) return redraw();
    left = Math.max(0, Number(recent.dataset.left));
    for (const fresh of recent.querySelectorAll(".bar")) {
      const lane = id("lane-" + fresh.dataset.lane);
      const copy = fresh.cloneNode(true);
      const old = lane.querySelector(`[data-id="${fresh.dataset.id}"]`);
      copy.setAttribute("tabindex", old ? old.getAttribute("tabindex") : -1);
      if (!old) lane.append(copy);
      else if (old.outerHTML !== copy.outerHTML) {
        const had = document.activeElement === old;
        old.replaceWith(copy);
        if (had) copy.focus({ preventScroll: true });
      }
    }
    const critical = new Set(recent.dataset.critical.split(" "));
    for (const bar of chart.querySelectorAll(".bar")) bar.classList.toggle("critical", critical.has(bar.dataset.id));
    id("lines").replaceChildren(...recent.dataset.lines.split(",").filter(Boolean).map((text) => {
      const [x1, x2, from, to, waited] = text.split(" ").map(Number);
      const line = document.createElementNS(SVG, "line");
      set(line, { x1: x1 + "%", x2: x2 + "%", y1: TOP + LANE * from, y2: TOP + LANE * to });
      if (waited) line.setAttribute("class", "waited");
      return line;
    }));
    for (const which of ["used", "ready"]) {
      id("curve-" + which).setAttribute("d", recent.dataset[which]);
      id("most-" + which).textContent = "≤ " + recent.dataset[which === "used" ? "mostUsed" : "mostReady"];
    }
    grow();
  }

  let drawing = false;

  // The lanes or the scale have changed: takes the new picture, and keeps what is seen in its place.
  async function redraw() {
    if (drawing) return;
    drawing = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      const page = answer.ok && new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page && page.getElementById("figure");
      if (!fresh) return;
      const had = chart && { perSecond, left: chart.scrollLeft, top: chart.scrollTop, focus: chart.contains(document.activeElement) && document.activeElement.dataset.id };
      figure.replaceWith(fresh);
      setup();
      if (!chart || !had) return;
      if (!fitted) {
        perSecond = had.perSecond;
        zoom(had.perSecond, 0);
        chart.scrollLeft = had.left;
      }
      chart.scrollTop = had.top;
      if (had.focus) chart.querySelector(`[data-id="${had.focus}"]`)?.focus({ preventScroll: true });
    } finally {
      drawing = false;
    }
  }

  // -- keys and pointers --------------------------------------------------------------------------

  const barOf = (target) => target && target.closest ? target.closest("#chart .bar") : null;

  function tell(bar, x, y) {
    tip.hidden = !bar;
    if (!bar) return;
    const at = new Date(began + Number(bar.dataset.began) * 1000);
    const running = bar.classList.contains("r-running");
    const seconds = running ? ` (${elapsed(now() - Number(bar.dataset.began))})` : "";
    tip.textContent = bar.getAttribute("aria-label") + "\nbegan at " + exact.format(at) + seconds;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
  }

  function go(bar) {
    for (const each of chart.querySelectorAll('.bar[tabindex="0"]')) each.setAttribute("tabindex", -1);
    bar.setAttribute("tabindex", 0);
    bar.focus({ preventScroll: true });
    const edge = bar.querySelector(".edge").getBoundingClientRect();
    const frame = chart.getBoundingClientRect();
    if (edge.left < frame.left + names() || edge.left > frame.right - 20) chart.scrollLeft += edge.left - frame.left - names() - room() / 4;
    if (edge.top < frame.top + 24) chart.scrollTop += edge.top - frame.top - 48;
    else if (edge.bottom > frame.bottom) chart.scrollTop += edge.bottom - frame.bottom + 24;
    show(bar);
  }

  function show(bar) {
    const edge = bar.querySelector(".edge").getBoundingClientRect();
    tell(bar, Math.max(edge.left, chart.getBoundingClientRect().left + names()), edge.bottom - 14);
  }

  function neighbour(bar, key) {
    const inLane = (lane) => [...lane.querySelectorAll(".bar")].sort((a, b) => a.dataset.began - b.dataset.began);
    const lane = bar.parentNode;
    const bars = inLane(lane);
    if (key === "Home" || key === "End") return bars.at(key === "Home" ? 0 : -1);
    if (key === "ArrowLeft" || key === "ArrowRight") return bars[bars.indexOf(bar) + (key === "ArrowLeft" ? -1 : 1)];
    if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
    const lanes = [...chart.querySelectorAll(".bars")];
    const step = key === "ArrowUp" ? -1 : 1;
    for (let place = lanes.indexOf(lane) + step; lanes[place]; place += step) {
      const near = inLane(lanes[place]);
      const distance = (one) => Math.abs(one.dataset.began - bar.dataset.began);
      if (near.length) return near.reduce((best, one) => distance(one) < distance(best) ? one : best);
    }
    return undefined;
  }

  const actions = {
    in: () => { fitted = false; zoom(perSecond * 1.5); },
    out: () => { fitted = false; zoom(perSecond / 1.5); },
    fit,
  };

  function listen() {
    if (fitted) fit();
    grow();
    chart.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const action = actions[{ "+": "in", "=": "in", "-": "out", 0: "fit" }[event.key]];
      const bar = barOf(event.target);
      const next = bar && neighbour(bar, event.key);
      if (event.key === "Escape") tell(null);
      else if (action) action();
      else if (next) go(next);
      else return;
      event.preventDefault();
    });
    chart.addEventListener("scroll", () => {
      const bar = barOf(document.activeElement);
      if (bar && bar.matches(":focus-visible")) show(bar);
      else tell(null);
      requestAnimationFrame(ticks);
    });
    chart.addEventListener("focusin", (event) => barOf(event.target)?.matches(":focus-visible") && show(barOf(event.target)));
    chart.addEventListener("focusout", () => tell(null));
    chart.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "touch" && !event.buttons) tell(barOf(event.target), event.clientX, event.clientY);
    });
    chart.addEventListener("pointerleave", () => tell(null));
    gestures(chart, (factor, x) => {
      fitted = false;
      zoom(perSecond * factor, x - chart.getBoundingClientRect().left - names());
    }, (a, b) => Math.abs(a.x - b.x));
  }

  tools.addEventListener("click", (event) => {
    const button = event.target.closest("[data-zoom]");
    if (button && chart) actions[button.dataset.zoom]();
  });
  new ResizeObserver(() => {
    if (chart && fitted) fit();
  }).observe(document.getElementById("main"));
  new MutationObserver(changed).observe(recent, { attributes: true, childList: true, subtree: true });
  setInterval(grow, 1000);
  setup();
})();
