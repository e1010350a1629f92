// Keeps the page as the server would render it now. Without this, the page reloads itself.
'use strict'

const lost = document.getElementById('lost')
const word = document.getElementById('live-word')
const hold = document.getElementById('hold')
const calm = matchMedia('(prefers-reduced-motion: reduce)')
let source, again, held = false

function connect() {
  disconnect()
  source = new EventSource('events')
  source.addEventListener('open', connected)
  source.addEventListener('error', broken)
  source.addEventListener('build', (event) => {
    if (event.data !== document.body.dataset.build) setTimeout(() => location.reload(), 1000)
  })
  source.addEventListener('part', (event) => {
    const template = document.createElement('template')
    template.innerHTML = event.data
    const fresh = template.content.firstElementChild
    morph(document.getElementById(fresh.id), fresh)
    title()
  })
}

function disconnect() {
  clearTimeout(again)
  source?.close()
}

function connected() {
  word.textContent = 'Live'
  lost.hidden = true
  document.body.classList.remove('lost')
}

function broken() {
  word.textContent = 'Not live'
  if (lost.hidden) {
    const since = new Date().toISOString().slice(11, 19)
    lost.textContent = `clockbridge has not answered since ${since} UTC: what you see is how it was then. It is tried again by itself.`
    lost.hidden = false
    document.body.classList.add('lost')
    title()
  }
  // A browser gives up for good when it is answered with an error.
  if (source.readyState === EventSource.CLOSED) again = setTimeout(connect, 5000)
}

// title is what a tab shows: nothing that may not be true any more.
function title() {
  const known = !held && lost.hidden && !document.hidden
  document.title = known ? document.getElementById('summary').dataset.title : 'clockbridge'
}

// morph makes an element say what another one says. Elements that stay are kept where they are, and with them the focus, a selection, and
// what was opened.
function morph(old, fresh) {
  for (const { name } of [...old.attributes]) {
    if (name !== 'open' && !fresh.hasAttribute(name)) old.removeAttribute(name)
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value)
  }
  let at = old.firstChild
  for (const child of [...fresh.childNodes]) {
    const same = find(at, child)
    if (!same) {
      old.insertBefore(child, at)
      if (child.nodeName === 'TR') arrive(child)
      continue
    }
    while (at !== same) at = removed(at)
    at = at.nextSibling
    if (same.nodeType === Node.ELEMENT_NODE) morph(same, child)
    else if (same.data !== child.data) same.data = child.data
  }
  while (at) at = removed(at)
}

// find returns which of a node and those behind it stands for what child stands for: the one with its id, or of its kind. Text is taken for
// the text in the same place.
function find(at, child) {
  if (child.nodeType !== Node.ELEMENT_NODE) return at?.nodeType === child.nodeType ? at : null
  while (at && (at.nodeName !== child.nodeName || at.id !== child.id || !child.id && at.getAttribute('class') !== child.getAttribute('class'))) {
    at = at.nextSibling
  }
  return at
}

// removed removes a node and returns the one behind it.
function removed(node) {
  const next = node.nextSibling
  node.remove()
  return next
}

function arrive(row) {
  if (!calm.matches) row.animate([{ backgroundColor: 'color-mix(in srgb, var(--busy) 22%, transparent)' }, { backgroundColor: 'transparent' }], 2000)
}

hold.addEventListener('click', () => {
  held = !held
  hold.textContent = held ? 'Go on' : 'Hold still'
  if (held) {
    disconnect()
    word.textContent = 'Held still'
    title()
  } else {
    word.textContent = 'Connecting'
    connect()
  }
})

// A browser has few connections to one server, and shares them among its tabs.
document.addEventListener('visibilitychange', () => {
  if (document.hidden) disconnect()
  else if (!held) connect()
  title()
})

document.getElementById('live').hidden = false
word.textContent = 'Connecting'
if (!document.hidden) connect()
