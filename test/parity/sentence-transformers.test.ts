// Whole directories as sentence-transformers 6 saves them: tokenizer, prompts, truncation, pooling, dense layers.
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { loadModel } from '../../lib/index'
import { copyOf, dataDirectory, editJson, fixtures, floats, largestDifference, needs, readSafetensors, tolerance, worstCosine } from '../support'

const texts: string[] = JSON.parse(readFileSync(path.join(fixtures, 'st', 'texts.json'), 'utf8'))
const directories = readdirSync(path.join(fixtures, 'st')).filter((name) => !name.endsWith('.json'))

async function checkVectors(directory: string, name: string) {
  const golden = readSafetensors(path.join(fixtures, 'st', name, 'golden.safetensors'))
  const model = await loadModel(directory, { dtype: 'float32' })
  for (const [kind, tensor] of golden) {
    const promptName = kind === 'none' ? undefined : kind
    const { vectors, dimensions, usage } = await model.embed(texts, { promptName })
    assert.equal(dimensions, tensor.shape[1])
    const difference = largestDifference(vectors, floats(tensor))
    assert.ok(difference < tolerance.float32.vector, `${name}, prompt ${kind}: largest difference ${difference}`)
    // Texts 1 and 4 are the long ones; whether 1 still fits depends on the prompt.
    assert.deepEqual(
      usage.truncated.filter((i) => i !== 1),
      [4],
    )
    for (const [i, text] of texts.entries()) {
      const alone = await model.embed(text, { promptName })
      assert.deepEqual(alone.vectors, vectors.subarray(i * dimensions, (i + 1) * dimensions))
    }
  }
  await model.dispose()
}

for (const name of directories) test(`${name}: the vectors sentence-transformers gives`, () => checkVectors(path.join(fixtures, 'st', name), name))

test('the older spellings of the same directory', async () => {
  const directory = copyOf(path.join(fixtures, 'st', 'bert-mean-dense'))
  editJson(path.join(directory, '1_Pooling', 'config.json'), (config) => {
    delete config.pooling_mode
    delete config.embedding_dimension
    Object.assign(config, { word_embedding_dimension: 32, pooling_mode_cls_token: false, pooling_mode_mean_tokens: true, pooling_mode_max_tokens: false })
  })
  editJson(path.join(directory, 'sentence_bert_config.json'), (config) => {
    for (const key of Object.keys(config)) delete config[key]
    Object.assign(config, { max_seq_length: 48, do_lower_case: false })
  })
  editJson(path.join(directory, 'tokenizer_config.json'), (config) => {
    config.model_max_length = 1e30
  })
  editJson(path.join(directory, 'modules.json'), (modules) => {
    for (const module of modules as unknown as { type: string }[]) module.type = `sentence_transformers.models.${module.type.split('.').pop()}`
  })
  rmSync(path.join(directory, '3_Normalize'), { recursive: true, force: true })
  await checkVectors(directory, 'bert-mean-dense')
})

test('all-MiniLM-L6-v2 agrees with sentence-transformers', needs('weights/all-MiniLM-L6-v2'), async () => {
  const pairs = readFileSync(path.join(dataDirectory, 'datasets/stsb/sts-dev.csv'), 'utf8')
    .split('\n')
    .slice(0, 300)
    .map((line) => line.split('\t'))
  const npy = readFileSync(path.join(dataDirectory, 'datasets/stsb/minilm-dev-vectors.npy'))
  const start = 10 + npy.readUInt16LE(8)
  const golden = new Float32Array(npy.buffer.slice(npy.byteOffset + start, npy.byteOffset + npy.length))
  for (const [dtype, least] of [
    ['float32', 0.99999],
    ['bfloat16', 0.9995],
    ['float16', 0.9999],
    ['int8', 0.99],
  ] as const) {
    await using model = await loadModel(path.join(dataDirectory, 'weights/all-MiniLM-L6-v2'), { dtype })
    const { vectors, dimensions } = await model.embed([...pairs.map((p) => p[5]!), ...pairs.map((p) => p[6]!)])
    const cosine = worstCosine(vectors, golden, dimensions)
    assert.ok(cosine > least, `${dtype}: worst cosine ${cosine}`)
  }
})
