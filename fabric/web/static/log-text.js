// Turns the bytes of a log into rows, and a row into runs of styled text.  What a build prints is
// never markup: a run is a text, and classes that stand here.

/** Bytes of a row, as in fabric/web/log_file.py. */
const ROW = 4096;
/** Columns to which a build may move. */
const WIDEST = 4096;
/** Runs of a row: what follows has no colors.  Hundreds of thousands would stop a browser. */
const MOST_RUNS = 100;

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/**
 * @typedef {Object} Row
 * @property {number} from  offset in the log
 * @property {number} to
 * @property {boolean} begins  it begins a line
 * @property {boolean} ends  it ends a line
 * @property {boolean} open  it may go on with the next bytes
 * @property {Uint8Array} data
 */

/**
 * Divides bytes that begin with a row.
 * @param {Uint8Array} data
 * @param {number} offset  of the bytes in the log
 * @param {boolean} begins  the first row begins a line
 * @returns {Row[]}
 */
export function splitRows(data, offset, begins) {
  const rows = [];
  let at = 0;
  let line = begins ? offset : offset - 2 * ROW;
  while (at < data.length) {
    const newline = data.indexOf(10, at);
    let stop = newline < 0 ? data.length : newline + 1;
    let grid = Math.ceil(Math.max(offset + at + 1, line + ROW) / ROW) * ROW;
    let split = grid - insideCharacter(data, grid - offset);
    if (split <= offset + at) {
      grid += ROW;
      split = grid - insideCharacter(data, grid - offset);
    }
    const whole = !(split - offset < stop && grid - offset < data.length);
    if (!whole) stop = split - offset;
    rows.push({
      from: offset + at, to: offset + stop, begins: line === offset + at,
      ends: whole && newline >= 0, open: whole && newline < 0, data: data.subarray(at, stop),
    });
    at = stop;
    if (whole) line = offset + at;
  }
  return rows;
}

/** How many bytes before `at` the character (UTF-8) begins that has a part there. */
function insideCharacter(data, at) {
  if (at >= data.length || (data[at] & 0xc0) !== 0x80) return 0;
  for (let back = 1; back <= Math.min(3, at); back++) {
    if ((data[at - back] & 0xc0) !== 0x80) return data[at - back] >= 0xc0 ? back : 0;
  }
  return 0;
}

// -- text ---------------------------------------------------------------------------------------

// Sequences (CSI; strings such as titles, clipboards, links; others), and other characters that a
// terminal acts upon or shows elsewhere: C0, C1, directions, line separators, tags.
const SPECIAL = new RegExp(
  "(?:\\x1b\\[|\\x9b)([0-?]*)[ -/]*([@-~])"
  + "|(?:\\x1b[\\]PX^_]|[\\x90\\x98\\x9d-\\x9f])[^\\x07\\x1b\\x90\\x98\\x9c-\\x9f]*(?:\\x07|\\x1b\\\\|\\x9c)"
  + "|\\x1b[ -/]*[0-Z\\\\^-~]"
  + "|[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ufff9-\\ufffb"
  + "\\u{e0000}-\\u{e007f}]", "gu");

/** The colors and forms that a build has set; they last until it sets others. */
export class Style {
  constructor() {
    this.reset();
  }

  reset() {
    this.ink = -1;
    this.ground = -1;
    this.forms = new Set();
    this.classes = "";
  }

  copy() {
    return Object.assign(new Style(), this, { forms: new Set(this.forms) });
  }

  /** @param {string} given  parameters of a sequence "m" */
  set(given) {
    const codes = given.split(/[;:]/).map((text) => Number(text) || 0);
    for (let n = 0; n < codes.length; n++) {
      const code = codes[n];
      if (code === 0) this.reset();
      else if (code in ON) this.forms.add(ON[code]);
      else if (code in OFF) OFF[code].forEach((form) => this.forms.delete(form));
      else if (code >= 30 && code <= 37) this.ink = code - 30;
      else if (code >= 90 && code <= 97) this.ink = code - 82;
      else if (code >= 40 && code <= 47) this.ground = code - 40;
      else if (code >= 100 && code <= 107) this.ground = code - 92;
      else if (code === 39) this.ink = -1;
      else if (code === 49) this.ground = -1;
      else if (code === 38 || code === 48) {
        const [color, used] = colorOf(codes.slice(n + 1), given.includes(":"));
        if (color >= 0) this[code === 38 ? "ink" : "ground"] = color;
        n += used;
      }
    }
    const names = [...this.forms].map((form) => "sgr-" + form);
    if (this.ink >= 0) names.push("ink", "ink-" + this.ink);
    if (this.ground >= 0) names.push("ground", "ground-" + this.ground);
    this.classes = names.join(" ");
  }
}

const ON = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike" };
const OFF = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["strike"] };

/** [one of 256 colors or -1, numbers used] of "5;N" and "2;R;G;B"; "2::R:G:B" names a color space. */
function colorOf(codes, colons) {
  if (codes[0] === 5) return [codes[1] <= 255 ? codes[1] : -1, 2];
  if (codes[0] !== 2) return [-1, 0];
  const at = colons && codes.length > 4 ? 2 : 1;
  const rgb = codes.slice(at, at + 3);
  return [rgb.length === 3 && rgb.every((part) => part <= 255) ? nearest(rgb) : -1, at + 3];
}

const LEVELS = [0, 95, 135, 175, 215, 255];

/** The color of the cube, or the gray, that is nearest to a true color. */
function nearest(rgb) {
  const far = (other) => other.reduce((sum, part, n) => sum + (part - rgb[n]) ** 2, 0);
  const steps = rgb.map((part) => LEVELS.reduce(
    (best, level, n) => Math.abs(level - part) < Math.abs(LEVELS[best] - part) ? n : best, 0));
  const gray = Math.max(0, Math.min(23, Math.round((rgb[0] + rgb[1] + rgb[2]) / 30 - 0.8)));
  const shade = 8 + 10 * gray;
  return far(steps.map((n) => LEVELS[n])) <= far([shade, shade, shade])
    ? 16 + 36 * steps[0] + 6 * steps[1] + steps[2] : 232 + gray;
}

/**
 * What a terminal shows of a row, as [text, classes] of each run.  Changes `style`.
 * @param {Uint8Array} data
 * @param {Style} style
 * @returns {[string, string][]}
 */
export function runsOf(data, style) {
  let end = data.length;
  if (end && data[end - 1] === 10) end--;
  while (end && data[end - 1] === 13) end--;
  const text = decoder.decode(data.subarray(0, end));
  SPECIAL.lastIndex = 0;
  if (!SPECIAL.test(text)) return text ? [[text, style.classes]] : [];
  const line = new Line();
  let at = 0;
  SPECIAL.lastIndex = 0;
  for (let found; (found = SPECIAL.exec(text));) {
    line.put(text.slice(at, found.index), style.classes);
    at = SPECIAL.lastIndex;
    const [whole, numbers, final] = found;
    if (final === "m") {
      if (/^[\d;:]*$/.test(numbers)) style.set(numbers);
    } else if (final !== undefined) line.move(final, Number(numbers) || 0);
    else if (whole === "\r") line.column = 0;
    else if (whole === "\b") line.column = Math.max(0, line.column - 1);
    else if (whole.length === 1 || whole.codePointAt(0) > 0xffff) {
      line.put(escaped(whole.codePointAt(0)), (style.classes + " control").trim());
    }
  }
  line.put(text.slice(at), style.classes);
  return line.runs();
}

/** As the command line shows such a character. */
function escaped(code) {
  return code < 0x100 ? "\\x" + code.toString(16).padStart(2, "0")
    : "\\u" + code.toString(16).padStart(4, "0");
}

/** A line that overwrites itself. */
class Line {
  constructor() {
    this.cells = [];
    this.classes = [];
    this.column = 0;
  }

  put(text, classes) {
    for (const cell of text) {
      while (this.cells.length < this.column) this.blank(this.cells.length);
      this.cells[this.column] = cell;
      this.classes[this.column++] = classes;
    }
  }

  blank(column) {
    this.cells[column] = " ";
    this.classes[column] = "";
  }

  /** A sequence that moves, or erases; those that leave the line are ignored. */
  move(final, number) {
    const far = Math.max(1, number);
    if (final === "G") this.column = Math.min(far - 1, WIDEST);
    else if (final === "C") this.column = Math.min(this.column + far, Math.max(this.column, WIDEST));
    else if (final === "D") this.column = Math.max(0, this.column - far);
    else if (final === "K") {
      const end = this.cells.length;
      if (number === 0) this.cells.length = Math.min(end, this.column);
      else for (let n = 0; n < (number === 1 ? Math.min(end, this.column + 1) : end); n++) this.blank(n);
    }
  }

  runs() {
    const runs = [];
    let begin = 0;
    for (let n = 1; n <= this.cells.length; n++) {
      if (n === this.cells.length || this.classes[n] !== this.classes[begin]) {
        const rest = runs.length === MOST_RUNS - 1;
        if (rest) n = this.cells.length;
        runs.push([this.cells.slice(begin, n).join(""), rest ? "" : this.classes[begin]]);
        begin = n;
      }
    }
    return runs;
  }
}
