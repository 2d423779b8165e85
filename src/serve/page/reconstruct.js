// The tab that reconstructs a dropped image.
'use strict';

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
