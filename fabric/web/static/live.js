// Keeps a page up to date: replaces elements that the server sends, shows times in the viewer's
// zone, and copies commands.  A page is complete without it.
"use strict";

// -- times ------------------------------------------------------------------------------------

function elapsed(seconds) {
  const whole = Math.floor(seconds);
  if (whole < 60) return whole + " s";
  const pad = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return Math.floor(whole / 60) + " min " + pad(whole % 60) + " s";
  return Math.floor(whole / 3600) + " h " + pad(Math.floor((whole % 3600) / 60)) + " min";
}

function coarse(seconds) {
  for (const [length, unit] of [[86400, "days"], [3600, "h"], [60, "min"]]) {
    if (seconds >= 2 * length) return Math.round(seconds / length) + " " + unit + " ago";
  }
  return Math.round(seconds) + " s ago";
}

const dates = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

// The server's clock counts: that of the viewer may be wrong.
let ahead = 0;

function showTime(element) {
  const at = Date.parse(element.dateTime);
  const seconds = Math.max(0, (Date.now() + ahead - at) / 1000);
  let text = dates.format(at);
  if (element.dataset.time !== "moment") {
    element.title = text;
    text = element.dataset.time === "ago" ? coarse(seconds) : elapsed(seconds);
  }
  if (element.textContent !== text) element.textContent = text;
}

function showTimes(root) {
  for (const element of root.querySelectorAll("time[data-time]")) showTime(element);
}

// -- replacing elements -------------------------------------------------------------------------

// Changes `old` into `new` and keeps what is equal, with its focus, selection and scroll position.
function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.isEqualNode(fresh)) return;
  for (const { name } of [...old.attributes]) {
    if (name === "open" && old.nodeName === "DETAILS") continue; // the viewer opened it
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.nodeName === "PROGRESS") old.value = fresh.value;
  morphChildren(old, fresh);
}

const keyOf = (node) => node.nodeType === Node.ELEMENT_NODE ? node.dataset.key : undefined;

function morphChildren(old, fresh) {
  const keyed = new Map();
  for (const child of old.childNodes) {
    const key = keyOf(child);
    if (key !== undefined) keyed.set(key, child);
  }
  let place = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const key = keyOf(child);
    const known = key === undefined ? place : keyed.get(key);
    if (known && known.parentNode === old && keyOf(known) === key) {
      if (known === place) place = place.nextSibling;
      else old.insertBefore(known, place);
      morph(known, child);
    } else {
      old.insertBefore(child, place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function replace(id, html) {
  const old = document.getElementById(id);
  const template = document.createElement("template");
  template.innerHTML = html;
  const fresh = template.content.firstElementChild;
  if (!old || !fresh) return;
  showTimes(template.content);
  morph(old, fresh);
}

// -- the stream ---------------------------------------------------------------------------------

const main = document.getElementById("main");
const state = document.getElementById("live");
const away = document.getElementById("away");
let source = null;

function show(kind, text) {
  state.className = "live " + kind;
  state.textContent = text;
}

function showAway(title, text, then) {
  away.replaceChildren();
  away.hidden = !title;
  if (!title) return;
  const bold = document.createElement("b");
  bold.textContent = title;
  away.append(bold, " " + text + " " + then);
}

function connect() {
  source = new EventSource(main.dataset.live);
  source.addEventListener("fragment", (event) => {
    const { id, html } = JSON.parse(event.data);
    replace(id, html);
  });
  source.addEventListener("there", () => {
    if ("away" in main.dataset) return location.reload();
    show("on", "live");
    showAway("");
  });
  source.addEventListener("away", (event) => {
    show("off", "waiting");
    showAway("The controller does not answer.", JSON.parse(event.data).error, "This page goes on by itself.");
  });
  source.addEventListener("gone", (event) => {
    show("off", "ended");
    showAway("This page is no longer updated.", JSON.parse(event.data).error, "");
  });
  source.onerror = () => {
    show("off", "offline");
    if (source.readyState === EventSource.CLOSED) setTimeout(reconnect, 5000);
  };
}

function disconnect() {
  if (source) source.close();
  source = null;
}

function reconnect() {
  disconnect();
  if (!document.hidden) connect();
}

if (main.dataset.live) {
  // a browser has few connections to a server: a hidden page leaves its one to others
  document.addEventListener("visibilitychange", reconnect);
  window.addEventListener("pagehide", disconnect);
  window.addEventListener("pageshow", (event) => { if (event.persisted) reconnect(); });
  reconnect();
}

// -- commands -----------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    const range = document.createRange();
    range.selectNodeContents(button.previousElementSibling);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    said = "Press Ctrl-C";
  }
  button.textContent = said;
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

showTimes(document);
setInterval(() => showTimes(document), 1000);
