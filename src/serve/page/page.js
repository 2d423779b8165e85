// The page of `rdpm serve`: the API's first user. It loads nothing from elsewhere and writes no HTML
// from strings.
'use strict';

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const source = (png) => `data:image/png;base64,${png}`;

// ---- The API ----

let token = sessionStorage.getItem('rdpm-token') || '';

class Refused extends Error {}

/** Opens the dialog and waits for a token. */
function askForToken() {
  return new Promise((resolve) => {
    $('ask-form').onsubmit = (event) => {
      event.preventDefault();
      token = $('token').value.trim();
      sessionStorage.setItem('rdpm-token', token);
      $('ask').close();
      resolve();
    };
    $('ask').oncancel = (event) => event.preventDefault();
    $('token').value = '';
    $('ask').showModal();
  });
}

/** An answer that is a success; a missing token is asked for. */
async function call(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers };
    if (token) headers.Authorization = `Bearer ${token}`;
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new Refused('The server does not answer. Is `rdpm serve` still running?');
    }
    if (answer.ok) return answer;
    if (answer.status === 401) {
      await askForToken();
      continue;
    }
    const said = await answer.json().catch(() => ({}));
    throw refused(said, `the server answered ${answer.status}`);
  }
}

function refused(said, otherwise) {
  const text = said.error || otherwise;
  return new Refused(said.hint ? `${text}\n${said.hint}` : text);
}

/** Calls `take(event, data)` for each server-sent event of `answer`. */
async function events(answer, take) {
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const lines = text.slice(0, end).split('\n');
      text = text.slice(end + 2);
      const field = (name) => lines.find((line) => line.startsWith(name))?.slice(name.length);
      take(field('event: '), JSON.parse(field('data: ')));
    }
  }
}

function showError(error) {
  $('error').hidden = !error;
  $('error').textContent = error ? error.message : '';
  if (error && !(error instanceof Refused)) console.error(error);
}

// ---- Tabs ----

const tabs = [...document.querySelectorAll('[role=tab]')];

function choose(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute('aria-selected', chosen);
    other.tabIndex = chosen ? 0 : -1;
    $(other.getAttribute('aria-controls')).hidden = !chosen;
  }
  showError(null);
}

for (const tab of tabs) {
  tab.addEventListener('click', () => choose(tab));
  tab.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
}

// ---- The class: typing finds every synonym ----

const SHOWN = 50;
let classes = [];
let marked = -1;

const plain = (text) => text.toLowerCase().replaceAll('_', ' ').trim();
const title = (entry) => entry.words.split(',')[0].trim();

/** Classes that `text` may mean, the likeliest first. */
function matching(text) {
  const wanted = plain(text);
  const rank = (entry) => {
    if (!wanted) return 0;
    if (String(entry.number ?? entry.index) === wanted || entry.name === wanted) return 0;
    let best = Infinity;
    for (const word of entry.search) {
      if (word === wanted) best = Math.min(best, 1);
      else if (word.startsWith(wanted)) best = Math.min(best, 2);
      else if (word.includes(` ${wanted}`)) best = Math.min(best, 3);
      else if (word.includes(wanted)) best = Math.min(best, 4);
    }
    return best;
  };
  return classes
    .map((entry) => ({ entry, rank: rank(entry) }))
    .filter((found) => found.rank < Infinity)
    .sort((a, b) => a.rank - b.rank)
    .slice(0, SHOWN)
    .map((found) => found.entry);
}

function openList(text) {
  const found = matching(text);
  const options = found.map((entry, i) => {
    const others = entry.words.split(',').slice(1).map((word) => word.trim());
    const number = entry.number ?? entry.index;
    const about = [number, entry.name, ...others].filter((part) => part !== title(entry));
    const option = element('li', { role: 'option', id: `class-${i}`, 'aria-selected': 'false' },
      title(entry), element('small', {}, about.join(' · ')));
    // Before the input loses the focus.
    option.addEventListener('mousedown', (event) => {
      event.preventDefault();
      take(entry);
    });
    option.entry = entry;
    return option;
  });
  $('classes').replaceChildren(...options);
  $('classes').hidden = options.length === 0;
  $('class').setAttribute('aria-expanded', options.length > 0);
  mark(text && options.length ? 0 : -1);
}

function closeList() {
  $('classes').hidden = true;
  $('class').setAttribute('aria-expanded', 'false');
  $('class').removeAttribute('aria-activedescendant');
  marked = -1;
}

function mark(i) {
  const options = [...$('classes').children];
  marked = i;
  options.forEach((option, j) => option.setAttribute('aria-selected', i === j));
  if (i < 0) return $('class').removeAttribute('aria-activedescendant');
  $('class').setAttribute('aria-activedescendant', options[i].id);
  options[i].scrollIntoView({ block: 'nearest' });
}

function take(entry) {
  // A name that two classes share would be refused.
  const shared = classes.filter((other) => plain(title(other)) === plain(title(entry))).length > 1;
  $('class').value = shared ? entry.name : title(entry);
  closeList();
}

$('class').addEventListener('input', () => openList($('class').value));
$('class').addEventListener('focus', () => $('class').select());
$('class').addEventListener('click', () => $('classes').hidden && openList(''));
$('class').addEventListener('blur', closeList);
$('class').addEventListener('keydown', (event) => {
  const open = !$('classes').hidden;
  const count = $('classes').children.length;
  if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
    event.preventDefault();
    if (!open) return openList('');
    mark((marked + (event.key === 'ArrowDown' ? 1 : -1) + count) % count);
  } else if (event.key === 'Enter' && open && marked >= 0) {
    event.preventDefault();
    take($('classes').children[marked].entry);
  } else if (event.key === 'Escape' && open) {
    event.preventDefault();
    closeList();
  }
});

// ---- Settings ----

for (const name of ['cfg', 'temperature']) {
  const [number, range] = [$(name), $(`${name}-range`)];
  range.addEventListener('input', () => { number.value = range.value; });
  number.addEventListener('input', () => { range.value = number.value; });
}

$('dice').addEventListener('click', () => {
  $('seed').value = crypto.getRandomValues(new Uint32Array(1))[0];
});

/** The body of a request, as text: a seed may have more digits than a number here. */
function asked() {
  const number = (id) => ($(id).value.trim() === '' ? undefined : Number($(id).value));
  const body = {
    class: classes.length ? $('class').value.trim() : undefined,
    num: number('num'),
    cfg: number('cfg'),
    temperature: $('temperature').disabled ? undefined : number('temperature'),
  };
  const seed = $('seed').value.trim();
  if (seed && !/^[0-9]{1,20}$/.test(seed)) throw new Refused('The seed is a number of digits.');
  const text = JSON.stringify(body);
  if (!seed) return text;
  return `${text.slice(0, -1)}${text === '{}' ? '' : ','}"seed":${BigInt(seed)}}`;
}

// ---- Drawing ----

/** The images of the last request: their steps by t, their tile, their class. */
let images = [];
let shown = 0;
let running = null;
let seed = '0';

function begin(accepted) {
  // A seed above 2^53 would be rounded; what was typed is what was drawn.
  seed = $('seed').value.trim() || String(accepted.seed);
  $('seed').value = seed;
  images = accepted.images.map((about) => {
    const name = about.class ?? 'image';
    const tile = element('button', { type: 'button', class: 'tile', 'aria-pressed': 'false' },
      element('span', { class: 'bar' }));
    tile.setAttribute('aria-label', `${name}, image ${about.number + 1}: show its steps`);
    tile.addEventListener('click', () => select(about.number));
    return { name, tile, steps: [], count: accepted.steps };
  });
  $('gallery').replaceChildren(...images.map((image) => image.tile));
  $('invitation').hidden = true;
  $('strip-figure').hidden = false;
  $('command').textContent = accepted.command;
  $('command-card').hidden = false;
  const ahead = accepted.ahead ? `, behind ${accepted.ahead} other images` : '';
  $('status').textContent = `waiting${ahead} …`;
  select(0);
}

function preview({ t, steps, images: drawn }) {
  for (const { number, png } of drawn) {
    const image = images[number];
    image.steps[t - 1] = png;
    let picture = image.tile.querySelector('img');
    if (!picture) {
      picture = element('img', { alt: image.name });
      image.tile.prepend(picture);
    }
    picture.src = source(png);
    image.tile.querySelector('.bar').style.width = `${(100 * t) / steps}%`;
    image.tile.classList.toggle('done', t === steps);
    if (number === shown) showStrip();
  }
  $('status').textContent = `step ${t} of ${steps}`;
}

function select(number) {
  shown = number;
  images.forEach((image, i) => image.tile.setAttribute('aria-pressed', i === number));
  showStrip();
}

function showStrip() {
  const image = images[shown];
  const places = Array.from({ length: image.count }, (_, i) => {
    const png = image.steps[i];
    const picture = element('img', { alt: png ? `after step ${i + 1}` : '' });
    if (png) picture.src = source(png);
    return element('li', {}, picture, `t = ${i + 1}`);
  });
  $('strip').replaceChildren(...places);
  const which = images.length > 1 ? `, image ${shown + 1} of ${images.length}` : '';
  $('strip-caption').textContent = `Step by step: ${image.name}${which}, seed ${seed}`;
  const drawn = Boolean(image.steps[image.count - 1]);
  $('save-image').disabled = $('save-strip').disabled = !drawn;
  $('save-all').hidden = images.length < 2;
  $('save-all').disabled = !images.every((one) => one.steps[one.count - 1]);
}

function busy(is) {
  $('go').hidden = is;
  $('cancel').hidden = !is;
  $('settings').setAttribute('aria-busy', is);
}

$('settings').addEventListener('submit', async (event) => {
  event.preventDefault();
  if (running) return;
  showError(null);
  closeList();
  running = new AbortController();
  const own = running;
  const begun = performance.now();
  let complete = false;
  try {
    const body = asked();
    busy(true);
    $('cancel').focus();
    $('status').textContent = 'asking …';
    const answer = await call('v1/images', {
      method: 'POST',
      body,
      signal: own.signal,
      headers: { 'Content-Type': 'application/json', Accept: 'text/event-stream' },
    });
    await events(answer, (name, data) => {
      if (name === 'accepted') begin(data);
      else if (name === 'preview') preview(data);
      else if (name === 'error') throw refused(data, 'the server failed');
      else if (name === 'done') complete = true;
    });
    if (!complete) throw new Refused('The connection broke off before the images were finished.');
    const seconds = ((performance.now() - begun) / 1000).toFixed(1);
    $('status').textContent = `done in ${seconds} s`;
  } catch (error) {
    const cancelled = error.name === 'AbortError';
    $('status').textContent = cancelled ? 'cancelled' : '';
    if (!cancelled) showError(error);
  } finally {
    // A refusal in the stream leaves the rest of it unread.
    own.abort();
    running = null;
    const focused = document.activeElement === $('cancel');
    busy(false);
    if (focused) $('go').focus();
  }
});

$('cancel').addEventListener('click', () => running?.abort());
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && $('classes').hidden) running?.abort();
});

// ---- Files ----

const load = (png) => new Promise((resolve, reject) => {
  const picture = new Image();
  picture.onload = () => resolve(picture);
  picture.onerror = reject;
  picture.src = source(png);
});

/** Saves pictures on one sheet, two pixels apart. */
async function save(pngs, columns, name) {
  const pictures = await Promise.all(pngs.map(load));
  const { naturalWidth: w, naturalHeight: h } = pictures[0];
  const rows = Math.ceil(pictures.length / columns);
  const gap = 2;
  const canvas = element('canvas', {
    width: columns * (w + gap) - gap,
    height: rows * (h + gap) - gap,
  });
  const ground = canvas.getContext('2d');
  ground.fillStyle = '#fff';
  ground.fillRect(0, 0, canvas.width, canvas.height);
  pictures.forEach((picture, i) => {
    ground.drawImage(picture, (i % columns) * (w + gap), Math.floor(i / columns) * (h + gap));
  });
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, 'image/png'); });
  keep(blob, name);
}

function keep(blob, name) {
  const link = element('a', { download: name });
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** The server's own bytes. */
function keepAsIs(png, name) {
  const bytes = Uint8Array.from(atob(png), (c) => c.charCodeAt(0));
  keep(new Blob([bytes], { type: 'image/png' }), name);
}

const fileName = (name, rest) => `${plain(name).replace(/[^a-z0-9]+/g, '-')}-${rest}.png`;

$('save-image').addEventListener('click', () => {
  const { name, steps, count } = images[shown];
  keepAsIs(steps[count - 1], fileName(name, `seed-${seed}-${shown}`));
});
$('save-strip').addEventListener('click', () => {
  const { name, steps, count } = images[shown];
  save(steps, count, fileName(name, `seed-${seed}-${shown}-steps`));
});
$('save-all').addEventListener('click', () => {
  const last = images.map((image) => image.steps[image.count - 1]);
  save(last, Math.ceil(Math.sqrt(last.length)), fileName(images[0].name, `seed-${seed}`));
});
$('copy').addEventListener('click', async () => {
  try {
    await navigator.clipboard.writeText($('command').textContent);
    $('copy').textContent = 'Copied';
  } catch {
    getSelection().selectAllChildren($('command'));
    $('copy').textContent = 'Ctrl+C';
  }
  setTimeout(() => { $('copy').textContent = 'Copy'; }, 2000);
});

// ---- Reconstruction ----

let uploadLimit = Infinity;
let reconstructed = null;

/** Codes [h][w] as a picture: equal codes have equal colours. */
function codeMap(codes) {
  const canvas = element('canvas', {
    width: codes[0].length, height: codes.length, role: 'img', 'aria-label': 'codes',
  });
  const ground = canvas.getContext('2d');
  codes.forEach((row, y) => row.forEach((code, x) => {
    // Neighbouring numbers get distant hues.
    const mixed = Math.imul(code + 1, 2654435761) >>> 0;
    ground.fillStyle = `hsl(${mixed % 360} 55% ${40 + ((mixed >>> 9) % 35)}%)`;
    ground.fillRect(x, y, 1, 1);
  }));
  return canvas;
}

async function reconstruct(file) {
  showError(null);
  $('reconstruct-status').textContent = `reconstructing ${file.name} …`;
  try {
    if (file.size > uploadLimit) {
      throw new Refused(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB.\nAt most ${uploadLimit / 2 ** 20} MiB are taken.`);
    }
    const answer = await call('v1/reconstruct', {
      method: 'POST',
      body: file,
      headers: { 'Content-Type': 'application/octet-stream', Accept: 'application/json' },
    });
    const found = await answer.json();
    const last = found.steps[found.steps.length - 1];
    reconstructed = { png: last, name: file.name.replace(/\.[^.]*$/, '') };
    $('original').src = source(found.original);
    $('original').alt = file.name;
    $('result').src = source(last);
    $('result').alt = `${file.name}, reconstructed`;
    $('psnr').textContent = `its reconstruction, PSNR ${found.psnr.toFixed(2)} dB`;
    $('codes').replaceChildren(...found.steps.map((png, i) => {
      const picture = element('img', { alt: `after step ${i + 1}` });
      picture.src = source(png);
      return element('li', {}, picture, codeMap(found.codes[i]), `t = ${i + 1}`);
    }));
    $('reconstruction').hidden = false;
    $('reconstruct-status').textContent = '';
  } catch (error) {
    $('reconstruct-status').textContent = '';
    showError(error);
  }
}

$('file').addEventListener('change', () => {
  const [file] = $('file').files;
  if (file) reconstruct(file);
  $('file').value = '';
});
$('save-result').addEventListener('click', () => {
  keepAsIs(reconstructed.png, fileName(reconstructed.name, 'reconstructed'));
});

// Anywhere on the page: a file that misses the field must not replace the page.
for (const kind of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $('drop').classList.toggle('over', kind === 'dragover');
    const file = kind === 'drop' && event.dataTransfer.files[0];
    if (file) {
      choose($('tab-reconstruct'));
      reconstruct(file);
    }
  });
}

// ---- Start ----

(async () => {
  try {
    const { model, defaults, limits, classes: known } = await (await call('v1/classes')).json();
    classes = known.map((entry) => ({
      ...entry,
      search: [entry.name, ...entry.words.split(',')].map(plain),
    }));
    const side = model.image_size;
    document.body.classList.toggle('small', side < 128);
    const size = `${side}×${side} pixels, ${model.steps} steps`;
    $('about').textContent = `${model.path === 'builtin' ? 'built-in model' : model.path} · ${known.length} classes · ${size}`;
    $('class-field').hidden = known.length === 0;
    if (known.length) take(classes.find((entry) => entry.number === 207) ?? classes[0]);
    $('cfg').value = defaults.cfg;
    $('cfg-range').max = Math.max(20, 2 * defaults.cfg);
    $('cfg-range').value = defaults.cfg;
    $('temperature').value = $('temperature-range').value = defaults.temperature;
    $('temperature').disabled = $('temperature-range').disabled = !defaults.gumbel;
    $('num').max = limits.num;
    $('num').value = Math.min(4, limits.num);
    uploadLimit = limits.upload_bytes;
    $('go').disabled = false;
  } catch (error) {
    $('about').textContent = '';
    showError(error);
  }
})();
