// Takes one photo at a time, dropped or chosen, and hands its bytes to the page: no file is made of them on the server.
const box = element.querySelector('.geo-drop'), input = box.querySelector('input'), note = box.querySelector('.geo-drop-note');
const most = Number(box.dataset.maxBytes), calm = note.textContent;

function refuse(sentence) {
  note.textContent = sentence;
  note.setAttribute('role', 'alert');
  box.classList.add('geo-drop-refused');
}
function encode(buffer) {
  const bytes = new Uint8Array(buffer), parts = [];
  for (let at = 0; at < bytes.length; at += 32768) parts.push(String.fromCharCode(...bytes.subarray(at, at + 32768)));
  return btoa(parts.join(''));
}
async function send(file) {
  note.removeAttribute('role');
  box.classList.remove('geo-drop-refused');
  note.textContent = calm;
  if (file.size > most) {
    const [given, limit] = [file.size, most].map((bytes) => Math.ceil(bytes / 2 ** 20));
    return refuse(`This file has ${given} MB, and this page takes ${limit} MB at most: nothing was sent. Save the photo smaller.`);
  }
  if (!file.size) return refuse('This file is empty: nothing was sent. Choose a photo.');
  try {
    trigger('photo', { base64: encode(await file.arrayBuffer()) });
  } catch (error) {
    refuse('The browser could not read this file. Choose another one.');
  }
}
input.addEventListener('change', () => {
  const [file] = input.files;
  if (file) send(file).finally(() => { input.value = ''; });  // so that the same file can be chosen again
});
for (const name of ['dragenter', 'dragover']) {
  box.addEventListener(name, (event) => { event.preventDefault(); box.classList.add('geo-drop-over'); });
}
for (const name of ['dragleave', 'drop']) box.addEventListener(name, () => box.classList.remove('geo-drop-over'));
box.addEventListener('drop', (event) => {
  event.preventDefault();
  const files = event.dataTransfer.files;
  if (files.length > 1) return refuse('One photo at a time, please.');
  if (files.length) send(files[0]);
});
// A photo that misses the box would replace the page with itself.
for (const name of ['dragover', 'drop']) document.addEventListener(name, (event) => event.preventDefault());
