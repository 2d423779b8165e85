// The tab that draws: settings, pictures, the strip of steps.
'use strict';

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
  }
  showStrip();
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
// A page that was left may be kept for the way back, and its connection with it.
addEventListener('pagehide', () => running?.abort());
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !event.defaultPrevented) running?.abort();
});

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
