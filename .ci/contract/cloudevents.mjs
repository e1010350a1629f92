// Reads messages on stdin, one JSON object on a line, as a consumer would that knows nothing of clockbridge: by the binary mode of the
// CloudEvents NATS binding, with the CloudEvents SDK. Ends with 1 if one of them is not an event, or not the one that it should be.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const { CloudEvent, HTTP } = createRequire(process.cwd() + '/')('cloudevents')
const fail = (why) => { throw new Error(why) }

// attributes reads the headers as the binding says: printable ASCII, one round of percent-decoding, UTF-8.
function attributes(header) {
  const found = {}
  for (const [name, values] of Object.entries(header)) {
    if (values.length !== 1) fail(`${name} stands there ${values.length} times`)
    if (!/^[\x20-\x7e]*$/.test(values[0]) || values[0].trim() !== values[0]) fail(`${name} is not printable ASCII: ${JSON.stringify(values[0])}`)
    const attribute = /^ce-(.*)$/i.exec(name)
    if (!attribute) continue
    if (!/^[a-z0-9]{1,20}$/.test(attribute[1])) fail(`${name} is not the name of an attribute`)
    if (/[ "]/.test(values[0])) fail(`${name} holds a space or a quote`)
    const value = decodeURIComponent(values[0]) // throws on what is not UTF-8
    if (/[\u0000-\u001f\u007f-\u009f\ufdd0-\ufdef\ufffe\uffff]/.test(value)) fail(`${name} holds a control or noncharacter`)
    found[attribute[1]] = value
  }
  return found
}

// The record's id as its data has it, with no number made shorter.
const idOf = (text) => /"id":("(?:[^"\\]|\\.)*"|[^,}]*)/.exec(text)[1].replace(/^".*/s, (s) => JSON.parse(s))

const events = new Set()
const seen = { upserted: 0, deleted: 0, unreadable: 0 }
for (const line of readFileSync(0, 'utf8').split('\n').filter(Boolean)) {
  const { subject, header, data } = JSON.parse(line)
  try {
    if (/^application\/cloudevents/i.test(header['content-type']?.[0])) fail('structured mode')
    const found = attributes(header)
    const text = Buffer.from(data, 'base64').toString('utf8')
    const json = found.datacontenttype === 'application/json'
    const event = new CloudEvent({ ...found, data: json ? JSON.parse(text) : Buffer.from(data, 'base64') }) // validates
    if (found.specversion !== '1.0') fail(`specversion is ${found.specversion}`)
    if (!/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/.test(found.time) || Number.isNaN(Date.parse(found.time))) fail(`time is ${found.time}`)
    if (!URL.canParse(found.source)) fail(`source is ${found.source}`)
    if (!found.datacontenttype || found.datacontenttype !== header['content-type']?.[0]) fail(`datacontenttype is ${found.datacontenttype}`)

    // The SDK's own reader of headers, made for HTTP, finds the same event.
    const headers = Object.fromEntries(Object.entries(header).map(([k, v]) => [k, v[0]]))
    const read = HTTP.toEvent({ headers, body: text })
    read.validate()
    for (const name of ['id', 'source', 'type', 'subject', 'datacontenttype', 'changeversion', 'origin']) {
      if (read[name] !== undefined && decodeURIComponent(read[name]) !== event[name]) fail(`${name} is ${event[name]}, and by HTTP ${read[name]}`)
    }

    const kind = /^eu\.myprotime\.[a-z0-9-]+\.(upserted|deleted|unreadable)$/.exec(event.type)?.[1] ?? fail(`type is ${event.type}`)
    seen[kind]++
    const name = `${event.source} ${event.id}`
    if (events.has(name) && event.origin !== 'repair') fail('another event of this source has its id')
    events.add(name)
    if (kind === 'unreadable') continue
    if (event.subject !== idOf(text)) fail(`subject is ${event.subject}, the record's id ${idOf(text)}`)
    if (decodeURIComponent(subject.split('.')[3]) !== event.subject) fail(`subject is ${event.subject}`)
  } catch (e) {
    console.error(`${subject}: ${e.message}: ${JSON.stringify(header)}`)
    process.exit(1)
  }
}
for (const [kind, n] of Object.entries(seen)) if (n === 0) fail(`no message is ${kind}`)
console.log(`${events.size} events:`, seen)
