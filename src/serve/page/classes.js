// The field for the class: typing finds every synonym.
'use strict';

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
