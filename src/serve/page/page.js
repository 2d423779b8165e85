// Tabs, and the start.
'use strict';

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
