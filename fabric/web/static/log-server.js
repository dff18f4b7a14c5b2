// Asks the server for what the page of a log needs, and says why it does not get it.

/** Milliseconds until it is asked again after an error. */
export const RETRY = 1000;

const { key, fence } = document.getElementById("log").dataset;
const address = `/steps/${key}/log`;

export const by = (id) => document.getElementById(id);

function url(what, query) {
  return `${address}${what}?` + new URLSearchParams({ fence, ...query });
}

/** The response; an error has the server's text. */
export async function get(what, query, options) {
  const response = await fetch(url(what, query), { headers: { accept: "application/json" }, ...options });
  if (response.ok) return response;
  const text = await response.json().then((body) => body.error, () => response.statusText);
  throw Object.assign(new Error(text), { status: response.status });
}

export const pause = (time) => new Promise((done) => setTimeout(done, time));

export function whenShown() {
  return new Promise((done) => {
    if (!document.hidden) done();
    else document.addEventListener("visibilitychange", done, { once: true });
  });
}

/** Does something until it succeeds, and says why it does not. */
export async function insist(work) {
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

export function away(text) {
  const box = by("away");
  box.hidden = !text;
  box.textContent = text
    && `This log does not go on now: ${text.replace(/\.$/, "")}. The page goes on by itself.`;
}

/** Says something beside the search. */
export function say(text) {
  by("found").textContent = text;
}
