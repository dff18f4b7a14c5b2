// The page of a log: loads what is looked at, follows what comes, searches, and links to lines.

import { LogRows, PART_ROWS } from "./log-rows.js";
import { LogSearch } from "./log-search.js";
import { away, by, get, insist, pause, RETRY, say, whenShown } from "./log-server.js";

const scroller = document.getElementById("log");
const { fence } = scroller.dataset;

/** Milliseconds between two looks at what is known of the log. */
const LOOK_EVERY = 3000;
/** Milliseconds that the scrollbar may move on before what is there is loaded. */
const SETTLED = 60;
/** Milliseconds without a byte after which a stream counts as dead: the server ends it before. */
const DEAD = 45000;
/** Bytes of a part that is loaded: at first, at least, and at most. */
const PART = 65536;
const PART_LEAST = 16384;
const PART_MOST = 1 << 20;

let following = false;
let ended = scroller.dataset.ended === "1";
/** Offset of the next byte of the stream. */
let position = 0;

// -- rows ---------------------------------------------------------------------------------------

/** @returns {Promise<import("./log-rows.js").Part & {size: number}>} */
async function part(query, options) {
  const wanted = PART_ROWS * rows.rowBytes || PART;
  const length = Math.round(Math.min(PART_MOST, Math.max(PART_LEAST, wanted)));
  const response = await get("/rows", { length, ...query }, options);
  const number = (name) => Number(response.headers.get(name));
  return {
    from: number("Log-From"), line: number("Log-Line"), begins: number("Log-Begins") === 1,
    size: number("Log-Size"), data: new Uint8Array(await response.arrayBuffer()),
  };
}

const loading = { before: false, after: false, jump: null };

async function load(where, query, use) {
  if (loading[where]) return;
  loading[where] = true;
  try {
    use(await insist(() => part(query)));
  } catch (error) {
    say(error.message);
  } finally {
    loading[where] = false;
  }
  search.highlight();
  rows.fill();
}

const rows = new LogRows(scroller, {
  before: (offset) => load("before", { to: offset }, (found) => {
    if (rows.first === offset && found.data.length) rows.prepend(found);
  }),
  after: (offset) => load("after", { from: offset }, (found) => {
    if (rows.last !== offset) return;
    if (found.data.length) rows.append(found);
    else rows.end = rows.last;
  }),
  jump: (offset, atEnd) => {
    const y = scroller.scrollTop;
    if (atEnd) showEnd();
    else jump({ from: offset }, () => { scroller.scrollTop = y; });
  },
  scrolled: (atEnd, up) => {
    if (up) follow(false);
    else if (atEnd && !ended) follow(true);
  },
  address: (line) => `?fence=${fence}#L${line}`,
});

const search = new LogSearch(rows, (offset, reveal) => {
  follow(false);
  if (rows.rowAt(offset)) reveal();
  else jump({ from: offset }, reveal);
});

/**
 * Shows a part of the log instead of the one that is shown; then `place` scrolls.
 * @returns {Promise<boolean>} whether it did, and no other wish came meanwhile
 */
async function jump(query, place) {
  loading.jump?.abort();
  const { signal } = loading.jump = new AbortController();
  await pause(query.from === undefined ? 0 : SETTLED);
  try {
    const found = signal.aborted || await insist(() => part(query, { signal }));
    if (signal.aborted) return false;
    loading.jump = null;
    const isTail = query.from === undefined && query.line === undefined;
    rows.show(found, Math.max(position, found.size), isTail);
    place();
    rows.fill();
    search.highlight();
    number();
    return true;
  } catch (error) {
    if (!signal.aborted) {
      loading.jump = null;
      say(error.message);
    }
    return false;
  }
}

/** Shows the end. */
async function showEnd() {
  await jump({}, () => {
    position = Math.max(position, rows.last);
    rows.toEnd();
  });
}

let numbering = false;

/** Numbers the rows as soon as the server has counted the lines before them. */
async function number() {
  if (numbering) return;
  numbering = true;
  while (rows.rows.length && !rows.rows[0].line) {
    const first = rows.first;
    const response = await insist(() => get("/rows", { from: first, length: 1 }, { method: "HEAD" }))
      .catch(() => null);
    if (!response) break;
    const line = Number(response.headers.get("Log-Line"));
    if (line && rows.first === first) rows.number(line);
    else await pause(RETRY);
  }
  numbering = false;
}

// -- following ----------------------------------------------------------------------------------

function follow(on) {
  following = on && !ended;
  by("follow").setAttribute("aria-pressed", String(following));
}

/** @type {Uint8Array[]} */
let arrived = [];

function take(bytes) {
  if (!arrived.length) requestAnimationFrame(flush);
  arrived.push(bytes);
}

/** Shows what has arrived, once a frame. */
function flush() {
  const from = position;
  const data = new Uint8Array(arrived.reduce((sum, bytes) => sum + bytes.length, 0));
  for (const bytes of arrived) {
    data.set(bytes, position - from);
    position += bytes.length;
  }
  arrived = [];
  if (rows.last === from && !loading.jump && (following || rows.rows.length < PART_ROWS)) {
    const part = { from, data, begins: rows.nextBegins, line: rows.nextLine || (from ? 0 : 1) };
    if (following) rows.appendLast(part);
    else {
      rows.append(part);
      rows.grow(position);
    }
    search.highlight();
  } else rows.grow(position);
}

/** Reads what comes until the stream ends.  @returns {Promise<void>} */
async function stream() {
  const stop = new AbortController();
  const hide = () => document.hidden && stop.abort();
  document.addEventListener("visibilitychange", hide);
  let dead = 0;
  try {
    const response = await get("/stream", { from: position }, { signal: stop.signal });
    live(true);
    const reader = response.body.getReader();
    for (;;) {
      clearTimeout(dead);
      dead = setTimeout(() => stop.abort(), DEAD);
      const { done, value } = await reader.read();
      if (done) break;
      take(value);
    }
  } catch (error) {
    if (!stop.signal.aborted) throw error;
  } finally {
    clearTimeout(dead);
    document.removeEventListener("visibilitychange", hide);
    if (arrived.length) flush();
  }
}

async function followStream() {
  while (!ended) {
    await insist(stream);
    const size = await look();
    if (size - position > PART_MOST / 2) { // it was faster than this page
      position = size;
      if (following) await showEnd();
      else rows.grow(size);
    }
  }
}

function live(on) {
  const state = by("live");
  state.className = "live" + (on ? " on" : "");
  state.textContent = on ? "live" : "";
}

// -- what is known of the log -------------------------------------------------------------------

/** Looks at the state of the attempt, and for newer ones.  @returns {Promise<number>} the size */
async function look() {
  const info = await insist(async () => (await get("", { tail: 0, format: "json" })).json());
  by("size").textContent = info.size.toLocaleString("en") + " bytes";
  by("lines").textContent = info.lines.toLocaleString("en") + (info.lines === 1 ? " line" : " lines");
  by("state").className = "state " + info.state;
  by("state").textContent = info.state;
  by("newer").hidden = !info.newer;
  if (info.newer) by("newer-link").href = info.newer;
  if (info.ended) {
    if (info.size <= position || info.message) ended = true;
    by("problem").textContent = info.message;
    by("problem").hidden = !info.message;
  } else away(info.message);
  if (ended) {
    follow(false);
    live(false);
    by("follow").hidden = true;
  }
  return info.size;
}

async function lookNowAndThen() {
  for (;;) {
    await pause(LOOK_EVERY);
    await whenShown();
    if (fence === "0" && scroller.dataset.state === "waiting") {
      const info = await insist(async () => (await get("", { tail: 0, format: "json" })).json())
        .catch(() => null);
      if (info && info.state !== "waiting") location.reload();
    } else if (by("newer").hidden || !ended) await look().catch((error) => say(error.message));
  }
}

// -- lines --------------------------------------------------------------------------------------

/** [first, last] line of the address; null if it names none. */
function linesOfAddress() {
  const found = /^#L(\d{1,15})(?:-L?(\d{1,15}))?$/.exec(location.hash);
  if (!found) return null;
  const lines = [Number(found[1]), Number(found[2] ?? found[1])];
  return [Math.max(1, Math.min(...lines)), Math.max(...lines)];
}

async function goToLine(first, last = first) {
  follow(false);
  rows.markLines(first, last);
  const reveal = () => rows.reveal(rows.rowOfLine(first));
  if (!rows.rowOfLine(first)) return jump({ line: first }, reveal);
  reveal();
  return true;
}

scroller.addEventListener("click", (event) => {
  const link = event.target.closest("a.number");
  if (!link || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const line = Number(link.textContent);
  const [first] = event.shiftKey && linesOfAddress() || [line];
  const hash = first === line ? `#L${line}` : `#L${Math.min(first, line)}-L${Math.max(first, line)}`;
  history.replaceState(null, "", `?fence=${fence}${hash}`);
  follow(false);
  rows.markLines(...linesOfAddress());
});

window.addEventListener("hashchange", () => {
  const lines = linesOfAddress();
  if (lines) goToLine(...lines);
});

by("line-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const line = by("line").valueAsNumber;
  if (line >= 1) {
    history.replaceState(null, "", `?fence=${fence}#L${line}`);
    goToLine(line);
  }
});

// -- buttons ------------------------------------------------------------------------------------

by("follow").addEventListener("click", async () => {
  follow(by("follow").getAttribute("aria-pressed") !== "true");
  if (following) await showEnd();
});

by("first").addEventListener("click", () => {
  follow(false);
  jump({ from: 0 }, () => { scroller.scrollTop = 0; });
});
by("last").addEventListener("click", async () => {
  await showEnd();
  follow(true);
});

// The browser would go to where the space for other rows ends, and stay there when they come.
scroller.addEventListener("keydown", (event) => {
  const button = { Home: "first", End: "last" }[event.key];
  if (!button || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  by(button).click();
});

function wrap(on) {
  rows.keep(() => {
    scroller.classList.toggle("wrapped", on);
    by("wrap").setAttribute("aria-pressed", String(on));
    rows.measure();
    rows.layout();
  });
}

by("wrap").addEventListener("click", () => {
  const on = by("wrap").getAttribute("aria-pressed") !== "true";
  wrap(on);
  try {
    localStorage.setItem("wrap-logs", String(on));
  } catch { /* it is not remembered */ }
});

function remembered() {
  try {
    return localStorage.getItem("wrap-logs");
  } catch {
    return null;
  }
}

// -- beginning ----------------------------------------------------------------------------------

async function begin() {
  for (const hidden of document.querySelectorAll("[data-script]")) hidden.hidden = false;
  wrap((remembered() ?? String(matchMedia("(max-width: 46rem)").matches)) === "true");
  if (scroller.dataset.state !== "waiting") {
    const lines = linesOfAddress();
    if (!lines) {
      await showEnd();
      follow(!ended);
    } else {
      position = (await insist(() => part({ length: 1 }))).size;
      if (!await goToLine(...lines)) await showEnd();
      rows.grow(position);
    }
    by("follow").hidden = ended;
    followStream().catch((error) => away(error.message));
  }
  lookNowAndThen();
}

begin().catch((error) => away(error.message));
