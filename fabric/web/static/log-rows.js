// Shows the part of a log that is looked at: rows between two empty spaces, which stand for the
// rest, so that a log of any size has a scrollbar.  Rows may have any height.

import { runsOf, splitRows, Style } from "./log-text.js";

/** Rows that are taken of one part, at most. */
export const PART_ROWS = 600;
/** Rows that are shown at most; fewer if they have many bytes, but enough for a large window. */
const MOST_ROWS = 2400;
const MOST_BYTES = 2 << 20;
const LEAST_ROWS = 400;
/** Rows that are shown at most while the end is followed, twice as many in between. */
const FOLLOWED_ROWS = 600;
/** Pixels above and below the window in which rows are loaded before they are seen. */
const MARGIN = 1500;
/** Pixels of all, at most: browsers stop at about 17 million. */
const TALLEST = 8e6;

/**
 * @typedef {Object} Part  Bytes that begin with a row.
 * @property {number} from
 * @property {Uint8Array} data
 * @property {boolean} begins  the first row begins a line
 * @property {number} line  the number of that line; 0: unknown
 */

export class LogRows {
  /**
   * @param {HTMLElement} scroller
   * @param {Object} wants
   * @param {(offset: number) => void} wants.before  rows that end at `offset`
   * @param {(offset: number) => void} wants.after  rows that begin at `offset`
   * @param {(offset: number, atEnd: boolean) => void} wants.jump  rows from `offset` on, or the last
   * @param {(atEnd: boolean, up: boolean) => void} wants.scrolled  by the viewer
   * @param {(line: number) => string} wants.address  of a line
   */
  constructor(scroller, wants) {
    this.scroller = scroller;
    this.wants = wants;
    this.above = document.createElement("div");
    this.list = document.createElement("div");
    this.below = document.createElement("div");
    this.list.className = "rows";
    scroller.replaceChildren(this.above, this.list, this.below);
    /** @type {{row: import("./log-text.js").Row, line: number, element: HTMLElement}[]} */
    this.rows = [];
    this.style = new Style();
    this.styleBefore = this.style; // the style before the last row, if that is open
    this.first = this.last = this.end = 0; // offsets: of the rows, and the end of the log
    this.scale = 0; // pixels for a byte in the empty spaces
    this.mark = [0, 0]; // first and last line that are marked
    this.seen = 0; // the last scroll position that is known
    scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.keep(() => this.layout())).observe(scroller);
  }

  // -- changes ----------------------------------------------------------------------------------

  /**
   * Shows a part instead of all others.
   * @param {Part} part
   * @param {number} end  of the log, as far as known
   * @param {boolean} isTail  the last rows of the part count, else the first
   */
  show(part, end, isTail) {
    this.clear(part.from);
    this.end = Math.max(end, part.from + part.data.length);
    const all = this.numbered(part);
    this.add(isTail ? all.slice(-PART_ROWS) : all.slice(0, PART_ROWS));
    if (!this.scale) this.measure();
    this.layout();
  }

  /** Adds the first rows of the part that follows. @param {Part} part */
  append(part) {
    this.keep(() => {
      this.add(this.numbered(this.unended(part)).slice(0, PART_ROWS));
      this.drop(true);
      this.layout();
    });
  }

  /** Adds a part at the end of the log, and scrolls there; its last rows count. @param {Part} part */
  appendLast(part) {
    const all = this.numbered(this.unended(part));
    if (all.length > FOLLOWED_ROWS) this.clear(part.from);
    this.add(all.slice(-FOLLOWED_ROWS));
    this.end = Math.max(this.end, this.last);
    if (this.rows.length > 2 * FOLLOWED_ROWS) this.drop(true, FOLLOWED_ROWS);
    if (!this.scale) this.measure();
    this.layout();
    this.toEnd();
  }

  /** Adds the last rows of the part before. @param {Part} part */
  prepend(part) {
    this.keep(() => {
      const style = new Style();
      const made = this.numbered(part).filter(({ row }) => row.to <= this.first).slice(-PART_ROWS);
      for (const one of made) {
        one.element = this.element(one.row, one.line, style);
        one.row.open = false;
        one.row.data = null;
      }
      if (!made.length) return;
      this.list.prepend(...made.map((one) => one.element));
      this.rows.unshift(...made);
      this.first = made[0].row.from;
      this.drop(false);
      this.layout();
    });
  }

  clear(offset) {
    this.rows = [];
    this.list.replaceChildren();
    this.style = new Style();
    this.first = this.last = offset;
  }

  /** The log has grown, without a row that is shown. @param {number} end */
  grow(end) {
    if (end <= this.end) return;
    this.end = end;
    this.keep(() => this.layout());
  }

  /** Numbers rows whose lines were not known. @param {number} line  of the first row */
  number(line) {
    for (const one of this.rows) {
      if (!one.line) {
        one.line = line;
        this.label(one.element, one.row, line);
      }
      if (one.row.ends) line = one.line + 1;
    }
  }

  /** @returns {number} the line that the next bytes belong to; 0: unknown */
  get nextLine() {
    const tail = this.rows.at(-1);
    return tail ? tail.line && tail.line + (tail.row.ends ? 1 : 0) : 0;
  }

  /** @returns {boolean} whether the next bytes begin a line */
  get nextBegins() {
    return this.rows.length === 0 || this.rows.at(-1).row.ends;
  }

  /** The rows of a part with the numbers of their lines. */
  numbered({ data, from, begins, line }) {
    return splitRows(data, from, begins).map((row) => {
      const one = { row, line };
      if (row.ends && line) line++;
      return one;
    });
  }

  /** The part, with the bytes of the last row if that is open: it is removed, to be made anew. */
  unended(part) {
    const tail = this.rows.at(-1);
    if (!tail?.row.open) return part;
    const data = new Uint8Array(tail.row.data.length + part.data.length);
    data.set(tail.row.data);
    data.set(part.data, tail.row.data.length);
    tail.element.remove();
    this.rows.pop();
    this.style = this.styleBefore;
    this.last = tail.row.from;
    return { data, from: tail.row.from, begins: tail.row.begins, line: tail.line };
  }

  add(made) {
    const elements = [];
    for (const { row, line } of made) {
      if (row.open) this.styleBefore = this.style.copy();
      const element = this.element(row, line, this.style);
      this.rows.push({ row: { ...row, data: row.open ? row.data.slice() : null }, line, element });
      elements.push(element);
      this.last = row.to;
    }
    this.list.append(...elements);
    this.first = this.rows[0]?.row.from ?? this.first;
  }

  /** Forgets rows past the bound, at the beginning or at the end. */
  drop(first, most = MOST_ROWS) {
    while (this.rows.length > most
      || (this.rows.length > LEAST_ROWS && this.last - this.first > MOST_BYTES)) {
      const gone = first ? this.rows.shift() : this.rows.pop();
      gone.element.remove();
      if (first) this.first = gone.row.to;
      else {
        this.last = gone.row.from;
        this.style = new Style();
      }
    }
  }

  element(row, line, style) {
    const element = document.createElement("div");
    element.className = "row";
    const number = document.createElement("a");
    number.className = "number";
    number.tabIndex = -1; // the field "Line" goes there by the keyboard
    const text = document.createElement("span");
    text.className = "text";
    for (const [run, classes] of runsOf(row.data, style)) {
      if (!classes) text.append(run);
      else {
        const span = document.createElement("span");
        span.className = classes;
        span.textContent = run;
        text.append(span);
      }
    }
    element.append(number, text);
    element.classList.toggle("void", !row.begins && !text.hasChildNodes()); // parts of a progress bar
    this.label(element, row, line);
    return element;
  }

  label(element, row, line) {
    const number = element.firstChild;
    if (row.begins && line) {
      number.textContent = line;
      number.href = this.wants.address(line);
    }
    element.classList.toggle("marked", line >= this.mark[0] && line <= this.mark[1] && line > 0);
  }

  /** Marks lines, and removes the former mark. */
  markLines(first, last) {
    this.mark = [first, last];
    for (const { row, line, element } of this.rows) this.label(element, row, line);
  }

  // -- geometry ---------------------------------------------------------------------------------

  measure() {
    const bytes = this.last - this.first;
    if (bytes) this.scale = Math.max(this.list.offsetHeight, 1) / bytes;
  }

  layout() {
    const scale = Math.min(this.scale, TALLEST / Math.max(1, this.end));
    this.above.style.height = Math.round(this.first * scale) + "px";
    this.below.style.height = Math.round((this.end - this.last) * scale) + "px";
    this.spaces = scale;
  }

  /** Changes rows or heights, and keeps what is seen where it is. */
  keep(change) {
    const anchor = this.rows[this.topmost()]?.element;
    const before = anchor?.getBoundingClientRect().top;
    change();
    if (anchor?.isConnected) {
      const moved = anchor.getBoundingClientRect().top - before;
      if (moved) this.scroller.scrollTop += moved;
    }
    this.seen = this.scroller.scrollTop;
  }

  /** The place of the first row that is seen. */
  topmost() {
    const top = this.scroller.getBoundingClientRect().top;
    let [low, high] = [0, this.rows.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle].element.getBoundingClientRect().bottom > top) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /** Bytes of a row, on average. */
  get rowBytes() {
    return this.rows.length ? (this.last - this.first) / this.rows.length : 0;
  }

  get topOffset() {
    return this.rows[this.topmost()]?.row.from ?? 0;
  }

  get atEnd() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    return this.last >= this.end && scrollTop + clientHeight >= scrollHeight - 8;
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.seen = this.scroller.scrollTop;
  }

  /** The row with a byte; undefined if it is not shown. */
  rowAt(offset) {
    return this.rows.find(({ row }) => row.from <= offset && offset < row.to);
  }

  rowOfLine(line) {
    return this.rows.find((one) => one.line === line);
  }

  /** Scrolls to a row: to a third of the height. */
  reveal(one) {
    const { top } = one.element.getBoundingClientRect();
    this.scroller.scrollTop += top - this.scroller.getBoundingClientRect().top - this.scroller.clientHeight / 3;
    this.seen = this.scroller.scrollTop;
    this.fill();
  }

  scrolled() {
    const y = this.scroller.scrollTop;
    const up = y < this.seen - 1;
    this.seen = y;
    this.wants.scrolled(this.atEnd, up);
    this.fill();
  }

  /** Wishes for the rows that are, or will soon be, seen. */
  fill() {
    const y = this.scroller.scrollTop;
    const bottom = y + this.scroller.clientHeight;
    const begin = this.above.offsetHeight;
    const end = begin + this.list.offsetHeight;
    if ((bottom < begin && this.first > 0) || (y > end && this.last < this.end)) {
      const offset = y < begin ? y / this.spaces : this.last + (y - end) / this.spaces;
      const atEnd = bottom >= this.scroller.scrollHeight - 2;
      this.wants.jump(Math.max(0, Math.min(this.end - 1, Math.floor(offset))), atEnd);
    } else {
      if (this.first > 0 && y < begin + MARGIN) this.wants.before(this.first);
      if (this.last < this.end && bottom > end - MARGIN) this.wants.after(this.last);
    }
  }
}
