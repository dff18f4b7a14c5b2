// The page of a log: loads what is looked at, follows what comes, searches, and links to lines.

import { LogRows, PART_ROWS } from "./log-rows.js";

const scroller = document.getElementById("log");
const { key, fence } = scroller.dataset;
const address = `/steps/${key}/log`;
const by = (id) => document.getElementById(id);

/** Milliseconds between two looks at what is known of the log, and after an error. */
const LOOK_EVERY = 3000;
const RETRY = 1000;
/** Milliseconds that the scrollbar may move on before what is there is loaded. */
const SETTLED = 60;
/** Milliseconds without a byte after which a stream counts as dead: the server ends it before. */
const DEAD = 45000;
/** Bytes of a part that is loaded: at first, at least, and at most. */
const PART = 65536;
const PART_LEAST = 16384;
const PART_MOST = 1 << 20;
/** Different texts that are highlighted. */
const HIGHLIGHTED = 100;

let following = false;
let ended = scroller.dataset.ended === "1";
/** Offset of the next byte of the stream. */
let position = 0;

// -- requests -----------------------------------------------------------------------------------

function url(what, query) {
  return `${address}${what}?` + new URLSearchParams({ fence, ...query });
}

/** The response; an error has the server's text. */
async function get(what, query, options) {
  const response = await fetch(url(what, query), { headers: { accept: "application/json" }, ...options });
  if (response.ok) return response;
  const text = await response.json().then((body) => body.error, () => response.statusText);
  throw Object.assign(new Error(text), { status: response.status });
}

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

const pause = (time) => new Promise((done) => setTimeout(done, time));

function whenShown() {
  return new Promise((done) => {
    if (!document.hidden) done();
    else document.addEventListener("visibilitychange", done, { once: true });
  });
}

/** Does something until it succeeds, and says why it does not. */
async function insist(work) {
  for (;;) {
    await whenShown();
    try {
      const result = await work();
      away("");
      return result;
    } catch (error) {
      if (error.name === "AbortError" || (error.status && error.status < 500)) throw error;
      away(error.status ? error.message : "The server of this page cannot be reached.");
      await pause(RETRY);
    }
  }
}

function away(text) {
  const box = by("away");
  box.hidden = !text;
  box.textContent = text
    && `This log does not go on now: ${text.replace(/\.$/, "")}. The page goes on by itself.`;
}

// -- rows ---------------------------------------------------------------------------------------

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
  highlight();
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
    highlight();
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
    highlight();
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

// -- search -------------------------------------------------------------------------------------

/** @type {{at: number, line: number, text: string, found: string}[]} */
let matches = [];
let more = -1; // offset from which to search on
let chosen = -1;
let searched = ""; // the query of `matches`

function searchQuery() {
  return {
    q: by("text").value, regex: String(by("regex").checked), case: String(by("case").checked),
  };
}

async function search(from) {
  const query = searchQuery();
  by("search").ariaBusy = "true";
  say("searching ...");
  try {
    const found = await (await get("/search", { ...query, from })).json();
    if (from === 0) [matches, chosen] = [[], -1];
    matches.push(...found.matches);
    more = found.next;
    searched = JSON.stringify(query);
    return true;
  } catch (error) {
    [matches, more, chosen, searched] = [[], -1, -1, ""];
    say(error.message);
    return false;
  } finally {
    by("search").ariaBusy = "false";
    by("text").setAttribute("aria-invalid", String(!searched));
    highlight();
  }
}

/** Goes to the next match, or the one before. */
async function step(back) {
  if (!by("text").value) {
    [matches, more, chosen, searched] = [[], -1, -1, ""];
    say("");
    highlight();
    return;
  }
  if (JSON.stringify(searchQuery()) !== searched) {
    const top = rows.topOffset;
    if (!await search(0)) return;
    while (more >= 0 && (matches.length === 0 || matches.at(-1).at < top)) {
      if (!await search(more)) return;
    }
    const after = matches.findIndex((match) => match.at >= top);
    chosen = (after < 0 ? matches.length : after) - (back ? 0 : 1);
  }
  if (!back && chosen + 1 >= matches.length && more >= 0 && !await search(more)) return;
  if (!matches.length) {
    say("not found");
    return;
  }
  chosen = (chosen + (back ? -1 : 1) + matches.length) % matches.length;
  const total = matches.length.toLocaleString("en") + (more >= 0 ? " or more" : "");
  say(`line ${matches[chosen].line.toLocaleString("en")}: ${chosen + 1} of ${total} lines`);
  follow(false);
  const { at } = matches[chosen];
  const reveal = () => {
    const row = rows.rowAt(at);
    rows.reveal(row);
    scroller.querySelector(".found")?.classList.remove("found");
    row.element.classList.add("found");
  };
  if (rows.rowAt(at)) reveal();
  else await jump({ from: at }, reveal);
}

/** Highlights what is searched for in the rows that are shown. */
function highlight() {
  if (!CSS.highlights) return;
  const found = new Highlight();
  CSS.highlights.set("found", found);
  if (!matches.length) return;
  const pattern = patternOf(JSON.parse(searched));
  for (const { element } of rows.rows) {
    const text = element.lastChild;
    const all = text.textContent.slice(0, 8192);
    pattern.lastIndex = 0;
    for (let match; (match = pattern.exec(all));) {
      if (!match[0]) pattern.lastIndex++;
      else found.add(rangeOf(text, match.index, match.index + match[0].length));
      if (found.size > 5000) return;
    }
  }
}

/** Finds the texts that the server has found: a regular expression may take a browser years. */
function patternOf({ q, regex, case: exact }) {
  const found = regex === "true" ? [...new Set(matches.map((match) => match.found))] : [q];
  const texts = found.slice(0, HIGHLIGHTED).sort((one, other) => other.length - one.length);
  return new RegExp(texts.map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"),
    exact === "true" ? "gu" : "giu");
}

/** A range of characters in an element. */
function rangeOf(element, begin, end) {
  const range = document.createRange();
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  for (let at = 0, node; (node = walker.nextNode()); at += node.length) {
    if (at <= begin && begin <= at + node.length) range.setStart(node, begin - at);
    if (at < end && end <= at + node.length) {
      range.setEnd(node, end - at);
      break;
    }
  }
  return range;
}

function say(text) {
  by("found").textContent = text;
}

by("search").addEventListener("submit", (event) => {
  event.preventDefault();
  step(event.submitter?.value === "back");
});
by("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  step(event.shiftKey);
});
scroller.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.ctrlKey && !event.altKey && !event.metaKey) {
    event.preventDefault();
    by("text").focus();
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
