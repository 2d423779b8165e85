// Pictures as files.
'use strict';

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
