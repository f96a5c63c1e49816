// npm run demo: embeds real sentences with a real model and searches them.
import { existsSync } from 'node:fs'
import path from 'node:path'
import { buildNative, buildTypeScript, install, root } from './setup.mjs'

install()
buildNative()
buildTypeScript()

const candidates = [process.env.CONAN_DEMO_MODEL, path.join(root, '../shared/data/weights/all-MiniLM-L6-v2')].filter(Boolean)
const directory = candidates.find((candidate) => existsSync(candidate))
if (!directory) {
  console.log(
    'No model to show. Set CONAN_DEMO_MODEL to a directory with config.json, model.safetensors and tokenizer.json,\n' +
      'for example sentence-transformers/all-MiniLM-L6-v2 downloaded from the Hugging Face hub:\n' +
      '  hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir all-MiniLM-L6-v2\n' +
      '  CONAN_DEMO_MODEL=all-MiniLM-L6-v2 npm run demo',
  )
  process.exit(2)
}

const { loadModel } = await import('../dist/index.mjs')
const sentences = [
  'The harbour freezes over in January, and the ferries stop.',
  'A violinist practises the same four bars until the neighbours knock.',
  'Sourdough needs an active starter, patience and a hot oven.',
  'The telescope found water vapour in the atmosphere of a distant planet.',
  'He scored twice in the last five minutes and silenced the stadium.',
  'Interest rates rose again, so the bank tightened its lending.',
  'The cat sleeps on the warm hood of the parked car.',
  'A thread pool keeps idle workers asleep until a job arrives.',
  'Vaccines teach the immune system to recognise a virus.',
  'The novel follows three generations of a family in Lisbon.',
  'Cut the tomatoes, salt them, and let them drain for ten minutes.',
  'The glacier has retreated two kilometres since the first photograph.',
]
const queries = ['astronomy', 'how do I bake bread?', 'football match', 'sleeping pet', 'climate change', 'concurrent programming']

const start = performance.now()
const model = await loadModel(directory)
const { info } = model
const documents = await model.embedDocument(sentences)
console.log(
  `\n${path.basename(directory)}: ${info.modelType}, ${info.layers} layers, ${info.dimensions} dimensions, ${info.dtype} on ${info.backend}, ${info.threads} threads`,
)
console.log(`loaded and ${sentences.length} sentences (${documents.usage.text} tokens) embedded in ${(performance.now() - start).toFixed(0)} ms\n`)
const found = await model.embedQuery(queries)
const scores = model.similarity(found, documents)
for (const [q, query] of queries.entries()) {
  const ranked = sentences.map((sentence, i) => ({ sentence, score: scores[q * sentences.length + i] })).sort((a, b) => b.score - a.score)
  console.log(query)
  for (const { sentence, score } of ranked.slice(0, 2)) console.log(`  ${score.toFixed(3)}  ${sentence}`)
}
await model.dispose()
