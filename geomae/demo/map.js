// Moves the maps inside `element`: drag, pinch, wheel, keys, buttons; a click or Enter guesses where a map takes guesses.
// Gradio replaces or patches the maps whenever they change, so everything listens on `element`, a map keeps its view in
// itself, and one whose `viewBox` is not what was set here last is new.
const WORLD_WIDTH = 360, WORLD_HEIGHT = 180, CLOSEST = 0.5;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
let last = {};  // the view of the newest map: one of the same answer keeps it
const mapOf = (target) => target.closest && target.closest('.geo-map')?.querySelector('svg');

function show(svg, x, y, height) {
  const box = svg.getBoundingClientRect(), aspect = box.width && box.height ? box.width / box.height : 2;
  const tallest = Math.min(WORLD_HEIGHT, WORLD_WIDTH / aspect);
  height = clamp(height, CLOSEST, tallest);
  const width = height * aspect;
  x = x - WORLD_WIDTH * Math.round(x / WORLD_WIDTH);
  y = clamp(y, height / 2 - 90, 90 - height / 2);
  svg.view = { x, y, height, width };
  last = { latitude: svg.dataset.latitude, longitude: svg.dataset.longitude, x, y, height };
  svg.shown = `${x - width / 2} ${y - height / 2} ${width} ${height}`;
  svg.setAttribute('viewBox', svg.shown);
  svg.style.setProperty('--unit', box.height ? height / box.height : 1);
  svg.classList.toggle('geo-zoomed', height < tallest * 0.98);
}
const showWorld = (svg) => {
  const box = svg.getBoundingClientRect(), isNarrow = box.height && box.width / box.height < 1.9;
  const longitude = Number(svg.dataset.longitude || 0);
  // a narrow map shows two thirds of the world; a wide one turns as far as keeps the answer off its edges
  show(svg, isNarrow ? longitude : longitude - clamp(longitude, -140, 140), 0, WORLD_HEIGHT);
};
const showFocus = (svg) =>
  show(svg, Number(svg.dataset.longitude), -Number(svg.dataset.latitude), Number(svg.dataset.extent));

function start(svg) {
  if (svg.shown === svg.getAttribute('viewBox') || !svg.getBoundingClientRect().width) return;
  const { latitude, longitude } = svg.dataset;
  if (latitude && latitude === last.latitude && longitude === last.longitude) return show(svg, last.x, last.y, last.height);
  showWorld(svg);
}
function placeOf(svg, clientX, clientY) {
  const box = svg.getBoundingClientRect(), { x, y, height, width } = svg.view;
  return { x: x + (clientX - box.left - box.width / 2) * width / box.width,
           y: y + (clientY - box.top - box.height / 2) * height / box.height };
}
function zoom(svg, factor, at) {
  const { x, y, height } = svg.view, next = clamp(height * factor, CLOSEST, WORLD_HEIGHT), center = at || { x, y };
  show(svg, center.x + (x - center.x) * next / height, center.y + (y - center.y) * next / height, next);
}
function mark(svg, latitude, longitude) {
  svg.querySelector('.geo-own').innerHTML = [-360, 0, 360].map((shift) =>
    `<g class="geo-pin geo-guess" style="--x:${longitude + shift}px;--y:${-latitude}px">` +
    '<circle r="7"></circle><circle class="geo-dot" r="2.5"></circle></g>').join('');
}
function guess(svg, { x, y }) {
  const longitude = x - WORLD_WIDTH * Math.round(x / WORLD_WIDTH), latitude = clamp(-y, -90, 90);
  mark(svg, latitude, longitude);
  trigger('guess', { latitude: Number(latitude.toFixed(4)), longitude: Number(longitude.toFixed(4)) });
}
const takesGuess = (svg) => svg.closest('.geo-guessing') !== null;
// The mark is where the text says, and nowhere while that is no place: the pattern is that of photo_gate.py.
const PLACE = /^\s*([+-]?(?:\d+\.?\d*|\.\d+))°?(?:\s*[,;]\s*|\s+)([+-]?(?:\d+\.?\d*|\.\d+))°?\s*$/;
element.addEventListener('typed', (event) => {
  const svg = event.target, [, latitude, longitude] = (PLACE.exec(event.detail || '') || []).map(Number);
  if (!takesGuess(svg)) return;
  if (Math.abs(latitude) <= 90 && Math.abs(longitude) <= 180) mark(svg, latitude, longitude);
  else svg.querySelector('.geo-own').replaceChildren();
});

const fingers = new Map();
let travelled = 0;
element.addEventListener('pointerdown', (event) => {
  const svg = event.target.closest('.geo-map svg');
  if (!svg) return;
  start(svg);
  if (!fingers.size) travelled = 0;
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  svg.setPointerCapture(event.pointerId);
});
element.addEventListener('pointermove', (event) => {
  const svg = event.target.closest('.geo-map svg'), last = fingers.get(event.pointerId);
  if (!svg || !last) return;
  const box = svg.getBoundingClientRect(), { x, y, height, width } = svg.view;
  const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
  travelled += Math.abs(dx) + Math.abs(dy);
  if (fingers.size === 2) {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const before = Math.hypot(last.x - other.x, last.y - other.y);
    const after = Math.hypot(event.clientX - other.x, event.clientY - other.y);
    zoom(svg, before / Math.max(after, 1), placeOf(svg, (event.clientX + other.x) / 2, (event.clientY + other.y) / 2));
  } else if (travelled > 5) {
    show(svg, x - dx * width / box.width, y - dy * height / box.height, height);
  }
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
});
element.addEventListener('pointerup', (event) => {
  const svg = event.target.closest('.geo-map svg');
  if (svg && fingers.size === 1 && travelled <= 5 && takesGuess(svg)) guess(svg, placeOf(svg, event.clientX, event.clientY));
  fingers.delete(event.pointerId);
});
element.addEventListener('pointercancel', (event) => fingers.delete(event.pointerId));
element.addEventListener('wheel', (event) => {
  const svg = event.target.closest('.geo-map svg');
  if (!svg || !(event.ctrlKey || document.activeElement === svg)) return;  // else the wheel scrolls the page
  event.preventDefault();
  zoom(svg, Math.exp(clamp(event.deltaY, -100, 100) / 400), placeOf(svg, event.clientX, event.clientY));
}, { passive: false });
element.addEventListener('click', (event) => {
  const what = event.target.closest('[data-zoom]')?.dataset.zoom, svg = what && mapOf(event.target);
  if (!svg) return;
  start(svg);
  ({ in: () => zoom(svg, 0.5), out: () => zoom(svg, 2), world: () => showWorld(svg), focus: () => showFocus(svg) })[what]();
});
element.addEventListener('keydown', (event) => {
  const svg = event.target.closest('.geo-map svg');
  if (!svg || event.ctrlKey || event.metaKey || event.altKey) return;
  start(svg);
  const { x, y, height } = svg.view, step = height / 8;
  const act = {
    ArrowLeft: () => show(svg, x - step, y, height), ArrowRight: () => show(svg, x + step, y, height),
    ArrowUp: () => show(svg, x, y - step, height), ArrowDown: () => show(svg, x, y + step, height),
    '+': () => zoom(svg, 0.6), '=': () => zoom(svg, 0.6), '-': () => zoom(svg, 1 / 0.6), 0: () => showWorld(svg),
    Enter: () => takesGuess(svg) && guess(svg, { x, y }),
  }[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
const startAll = () => element.querySelectorAll('.geo-map svg').forEach(start);
new MutationObserver(startAll).observe(element, { childList: true, subtree: true, attributeFilter: ['viewBox'] });
new ResizeObserver(() => element.querySelectorAll('.geo-map svg').forEach((svg) => {
  if (svg.view) show(svg, svg.view.x, svg.view.y, svg.classList.contains('geo-zoomed') ? svg.view.height : WORLD_HEIGHT);
  else start(svg);
})).observe(element);
startAll();
