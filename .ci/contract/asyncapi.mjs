// Reads an AsyncAPI document on stdin, and ends with 1 if AsyncAPI's own parser finds a fault in it.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const { Parser } = createRequire(process.cwd() + '/')('@asyncapi/parser')
const { document, diagnostics } = await new Parser().parse(readFileSync(0, 'utf8'))
const faults = diagnostics.filter((d) => d.severity <= 1) // errors and warnings; the rest is advice
for (const d of faults) console.error(`line ${d.range.start.line + 1}: ${d.message} (${d.code})`)
if (faults.length > 0 || !document) process.exit(1)
console.log(`AsyncAPI ${document.version()}: ${document.channels().length} channels, ${document.allMessages().length} messages, ${document.allSchemas().length} schemas`)
