// Searches a log: the server finds the lines, this goes from one to the next and marks what it shows.

import { by, get, say } from "./log-server.js";

/** Different texts that are marked, ranges at most, and characters of a row that are looked at. */
const TEXTS = 100;
const RANGES = 5000;
const CHARACTERS = 8192;

/** The search of the page. */
export class LogSearch {
  #rows;
  #go;
  /** @type {{at: number, line: number, text: string, found: string}[]} */
  #matches = [];
  #more = -1; // offset from which to search on; -1: all is found
  #chosen = -1;
  #query = ""; // of the matches

  /**
   * @param {import("./log-rows.js").LogRows} rows
   * @param {(offset: number, reveal: () => void) => void} go shows the row at an offset: then `reveal`
   *   brings it into view
   */
  constructor(rows, go) {
    this.#rows = rows;
    this.#go = go;
    by("search").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#step(event.submitter?.value === "back");
    });
    by("text").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      this.#step(event.shiftKey);
    });
    rows.scroller.addEventListener("keydown", (event) => {
      if (event.key === "/" && !event.ctrlKey && !event.altKey && !event.metaKey) {
        event.preventDefault();
        by("text").focus();
      }
    });
  }

  /** Marks what is searched for in the rows that are shown. */
  highlight() {
    if (!CSS.highlights) return;
    const found = new Highlight();
    CSS.highlights.set("found", found);
    if (!this.#matches.length) return;
    const pattern = this.#pattern(JSON.parse(this.#query));
    for (const { element } of this.#rows.rows) {
      const text = element.lastChild;
      const all = text.textContent.slice(0, CHARACTERS);
      pattern.lastIndex = 0;
      for (let match; (match = pattern.exec(all));) {
        if (!match[0]) pattern.lastIndex++;
        else found.add(rangeOf(text, match.index, match.index + match[0].length));
        if (found.size > RANGES) return;
      }
    }
  }

  /** Goes to the next match, or the one before. */
  async #step(back) {
    if (!by("text").value) {
      this.#forget();
      say("");
      this.highlight();
      return;
    }
    if (JSON.stringify(wanted()) !== this.#query) {
      const top = this.#rows.topOffset;
      if (!await this.#ask(0)) return;
      while (this.#more >= 0 && (this.#matches.length === 0 || this.#matches.at(-1).at < top)) {
        if (!await this.#ask(this.#more)) return;
      }
      const after = this.#matches.findIndex((match) => match.at >= top);
      this.#chosen = (after < 0 ? this.#matches.length : after) - (back ? 0 : 1);
    }
    if (!back && this.#chosen + 1 >= this.#matches.length && this.#more >= 0 && !await this.#ask(this.#more)) return;
    const count = this.#matches.length;
    if (!count) {
      say("not found");
      return;
    }
    this.#chosen = (this.#chosen + (back ? -1 : 1) + count) % count;
    const { at, line } = this.#matches[this.#chosen];
    const total = count.toLocaleString("en") + (this.#more >= 0 ? " or more" : "");
    say(`line ${line.toLocaleString("en")}: ${this.#chosen + 1} of ${total} lines`);
    this.#go(at, () => {
      const row = this.#rows.rowAt(at);
      this.#rows.reveal(row);
      this.#rows.scroller.querySelector(".found")?.classList.remove("found");
      row.element.classList.add("found");
    });
  }

  /** Asks for the matches from an offset on; false if there is no answer. */
  async #ask(from) {
    const query = wanted();
    by("search").ariaBusy = "true";
    say("searching ...");
    try {
      const found = await (await get("/search", { ...query, from })).json();
      if (from === 0) this.#forget();
      this.#matches.push(...found.matches);
      this.#more = found.next;
      this.#query = JSON.stringify(query);
      return true;
    } catch (error) {
      this.#forget();
      say(error.message);
      return false;
    } finally {
      by("search").ariaBusy = "false";
      by("text").setAttribute("aria-invalid", String(!this.#query));
      this.highlight();
    }
  }

  #forget() {
    [this.#matches, this.#more, this.#chosen, this.#query] = [[], -1, -1, ""];
  }

  /** Matches the texts that the server has found: a regular expression may take a browser years. */
  #pattern({ q, regex, case: exact }) {
    const found = regex === "true" ? [...new Set(this.#matches.map((match) => match.found))] : [q];
    const texts = found.slice(0, TEXTS).sort((one, other) => other.length - one.length);
    return new RegExp(texts.map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"),
      exact === "true" ? "gu" : "giu");
  }
}

/** What is searched for. */
function wanted() {
  return {
    q: by("text").value, regex: String(by("regex").checked), case: String(by("case").checked),
  };
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
