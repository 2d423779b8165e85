// Requests to the server, its answers and its errors. The scripts of the page share one scope, in
// the order in which the page names them; they load nothing from elsewhere and write no HTML from
// strings.
'use strict';

const $ = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const source = (png) => `data:image/png;base64,${png}`;

let token = sessionStorage.getItem('rdpm-token') || '';

class Refused extends Error {}

/** Opens the dialog and waits for a token; `why` is what was wrong with the last one. */
function askForToken(why) {
  return new Promise((resolve) => {
    const say = (text) => {
      $('ask-error').hidden = !text;
      $('ask-error').textContent = text;
    };
    say(why);
    $('ask-form').onsubmit = (event) => {
      event.preventDefault();
      const given = $('token').value.trim();
      // A header takes no others, nor has any token them.
      if (!/^[\x21-\x7e]+$/.test(given)) {
        say('A token has letters, digits and signs of ASCII only.');
        return;
      }
      token = given;
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
      await askForToken(token ? 'That token is wrong.' : '');
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
