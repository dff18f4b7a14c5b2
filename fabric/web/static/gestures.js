// What pointers do to a drawing that scrolls: a mouse drags it, two fingers or Ctrl and the wheel zoom it.
"use strict";

// zoom(factor, x, y): around a point of the window.  distance(a, b): between two fingers.
function gestures(view, zoom, distance) {
  const held = new Map();
  let moved = false;
  let apart = 0;
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return; // a plain wheel scrolls
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
  }, { passive: false });
  view.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    moved = false;
    held.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (held.size === 2) apart = distance(...held.values()) || 1;
  });
  view.addEventListener("pointermove", (event) => {
    const last = held.get(event.pointerId);
    if (!last) return;
    const dx = event.clientX - last.x;
    const dy = event.clientY - last.y;
    if (held.size === 1 && event.pointerType === "mouse") {
      if (!moved && Math.hypot(dx, dy) < 4) return;
      if (!moved) view.setPointerCapture(event.pointerId);
      moved = true;
      view.classList.add("dragged");
      view.scrollBy(-dx, -dy);
    }
    held.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (held.size === 2) {
      const [a, b] = held.values();
      const now = distance(a, b) || 1;
      zoom(now / apart, (a.x + b.x) / 2, (a.y + b.y) / 2);
      apart = now;
    }
  });
  const end = (event) => {
    held.delete(event.pointerId);
    view.classList.remove("dragged");
  };
  view.addEventListener("pointerup", end);
  view.addEventListener("pointercancel", end);
  view.addEventListener("click", (event) => {
    if (moved) event.preventDefault();
  }, true);
  view.addEventListener("dragstart", (event) => event.preventDefault());
}
