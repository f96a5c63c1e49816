// Spoiled model directories: each fault has its code, its message names the thing, and inspect finds it too.
import assert from 'node:assert/strict'
import { rmSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { inspect, loadModel } from '../../lib/index'
import { copyOf, editJson, editTensors, fixtures, pico, readSafetensors, temporary, writeSafetensors } from '../support'

const config = (directory: string) => path.join(directory, 'config.json')

/** name, model, spoil, code, what the message holds, whether inspect reports it as a problem (else it throws the same) */
const faults: [string, string, (directory: string) => void, string, RegExp][] = [
  ['no config.json', 'bert', (d) => rmSync(config(d)), 'MODEL_NOT_FOUND', /config\.json/],
  ['config.json is no JSON', 'bert', (d) => writeFileSync(config(d), '{'), 'FILE_CORRUPT', /config\.json/],
  ['no weights', 'bert', (d) => rmSync(path.join(d, 'model.safetensors')), 'MODEL_NOT_FOUND', /model\.safetensors/],
  ['no tokenizer', 'bert', (d) => rmSync(path.join(d, 'tokenizer.json')), 'TOKENIZER_INVALID', /tokenizer\.json/],
  ['a broken tokenizer', 'bert', (d) => writeFileSync(path.join(d, 'tokenizer.json'), '{}'), 'TOKENIZER_INVALID', /tokenizer\.json/],
  [
    'a template that asks for a token it does not have',
    'bert',
    (d) => editJson(path.join(d, 'tokenizer.json'), (t) => delete (t.post_processor as { special_tokens: Record<string, unknown> }).special_tokens['[SEP]']),
    'TOKENIZER_INVALID',
    /post_processor.*\[SEP\]/,
  ],
  ['an unknown architecture', 'bert', (d) => editJson(config(d), (c) => (c.model_type = 'hal9000')), 'UNSUPPORTED_ARCHITECTURE', /hal9000/],
  ['no architecture', 'bert', (d) => editJson(config(d), (c) => delete c.model_type), 'UNSUPPORTED_ARCHITECTURE', /model_type/],
  ['a missing size', 'bert', (d) => editJson(config(d), (c) => delete c.hidden_size), 'CONFIG_INVALID', /hidden_size/],
  ['a size that is text', 'bert', (d) => editJson(config(d), (c) => (c.hidden_size = 'large')), 'CONFIG_INVALID', /hidden_size.*"large"/],
  ['a negative size', 'qwen3', (d) => editJson(config(d), (c) => (c.num_hidden_layers = -2)), 'CONFIG_INVALID', /num_hidden_layers/],
  [
    'more layers than there is memory for',
    'gemma3',
    (d) => editJson(config(d), (c) => (c.num_hidden_layers = 1e9)),
    'CONFIG_INVALID',
    /num_hidden_layers.*65536/,
  ],
  ['a head larger than memory', 'gemma3', (d) => editJson(config(d), (c) => (c.head_dim = 2 ** 32)), 'CONFIG_INVALID', /head_dim.*4294967296/],
  [
    'no layer in how many attends to all',
    'gemma3',
    (d) => editJson(config(d), (c) => Object.assign(c, { layer_types: undefined, sliding_window_pattern: 0 })),
    'CONFIG_INVALID',
    /sliding_window_pattern.*from 1 to/,
  ],
  [
    'positions that are all padding',
    'roberta',
    (d) => editJson(config(d), (c) => (c.pad_token_id = 79)),
    'CONFIG_INVALID',
    /max_position_embeddings.*more than 80/,
  ],
  ['a tower that is a list', 'bert', (d) => editJson(config(d), (c) => (c.vision_config = [1])), 'CONFIG_INVALID', /vision_config.*an object/],
  ['a negative epsilon', 'bert', (d) => editJson(config(d), (c) => (c.layer_norm_eps = -1)), 'CONFIG_INVALID', /layer_norm_eps.*above 0/],
  ['a window of none', 'modernbert', (d) => editJson(config(d), (c) => (c.local_attention = -5)), 'CONFIG_INVALID', /local_attention.*-5/],
  ['more rotated than a head has', 'qwen3', (d) => editJson(config(d), (c) => (c.partial_rotary_factor = 1e18)), 'CONFIG_INVALID', /partial_rotary_factor/],
  ['heads that do not divide', 'bert', (d) => editJson(config(d), (c) => (c.num_attention_heads = 5)), 'CONFIG_INVALID', /5 heads/],
  ['key heads that do not divide', 'qwen3', (d) => editJson(config(d), (c) => (c.num_key_value_heads = 3)), 'CONFIG_INVALID', /num_key_value_heads/],
  ['an unknown activation', 'bert', (d) => editJson(config(d), (c) => (c.hidden_act = 'wiggle')), 'CONFIG_INVALID', /wiggle/],
  [
    'an unknown rope type',
    'qwen2-yarn',
    (d) => editJson(config(d), (c) => ((c.rope_parameters as Record<string, unknown>).rope_type = 'macrame')),
    'CONFIG_INVALID',
    /macrame/,
  ],
  ['relative positions', 'bert', (d) => editJson(config(d), (c) => (c.position_embedding_type = 'relative_key')), 'UNSUPPORTED_ARCHITECTURE', /relative_key/],
  [
    'a missing tensor',
    'bert',
    (d) => editTensors(d, (t) => t.delete('encoder.layer.1.output.dense.bias')),
    'TENSOR_MISSING',
    /encoder\.layer\.1\.output\.dense\.bias/,
  ],
  ['a missing tensor in another family', 'qwen3', (d) => editTensors(d, (t) => t.delete('model.layers.0.self_attn.q_norm.weight')), 'TENSOR_MISSING', /q_norm/],
  [
    'an extra tensor in a layer',
    'llama',
    (d) => editTensors(d, (t) => t.set('layers.0.self_attn.q_proj.bias', { dtype: 'F32', shape: [1], data: Buffer.alloc(4) })),
    'TENSOR_UNUSED',
    /q_proj\.bias/,
  ],
  ['more layers than the config says', 'bert', (d) => editJson(config(d), (c) => (c.num_hidden_layers = 1)), 'TENSOR_UNUSED', /layer\.1/],
  ['fewer layers than the config says', 'bert', (d) => editJson(config(d), (c) => (c.num_hidden_layers = 3)), 'TENSOR_MISSING', /layer\.2/],
  ['a misshapen tensor', 'bert', (d) => editJson(config(d), (c) => (c.intermediate_size = 50)), 'TENSOR_SHAPE', /expected \[50, 32\], got \[48, 32\]/],
  ['a wrong vocabulary', 'bert', (d) => editJson(config(d), (c) => (c.vocab_size = 300)), 'TENSOR_SHAPE', /word_embeddings/],
  [
    'integer weights',
    'bert',
    (d) =>
      editTensors(d, (t) => {
        const w = t.get('encoder.layer.0.output.dense.weight')!
        t.set('encoder.layer.0.output.dense.weight', { ...w, dtype: 'I32' })
      }),
    'UNSUPPORTED_DTYPE',
    /int32/,
  ],
  ['truncated weights', 'bert', (d) => truncateSync(path.join(d, 'model.safetensors'), 5000), 'FILE_CORRUPT', /truncated/],
  [
    'a text file as weights',
    'bert',
    (d) => writeFileSync(path.join(d, 'model.safetensors'), 'version https://git-lfs.github.com/spec/v1\n'),
    'FILE_CORRUPT',
    /safetensors/,
  ],
  ['an empty file as weights', 'bert', (d) => writeFileSync(path.join(d, 'model.safetensors'), ''), 'FILE_CORRUPT', /8 bytes/],
]

for (const [name, model, spoil, code, message] of faults)
  test(name, async () => {
    const directory = copyOf(pico(model))
    spoil(directory)
    await assert.rejects(loadModel(directory), (error: Error & { code: string }) => {
      assert.equal(error.code, code, error.message)
      assert.match(error.message, message)
      return true
    })
    let problems: string[]
    try {
      problems = inspect(directory).problems
    } catch (error) {
      problems = [(error as Error).message]
    }
    assert.ok(
      problems.some((problem) => message.test(problem)),
      `inspect: ${problems.join('; ') || 'no problems'}`,
    )
  })

test('a NaN among the weights', async () => {
  for (const tensor of ['encoder.layer.1.attention.self.key.weight', 'encoder.layer.0.output.LayerNorm.bias']) {
    const directory = copyOf(pico('bert'))
    editTensors(directory, (t) => t.get(tensor)!.data.writeFloatLE(Number.NaN, 12))
    await assert.rejects(loadModel(directory), (error: Error & { code: string }) => error.code === 'WEIGHT_NOT_FINITE' && error.message.includes(tensor))
  }
})

test('no directory, a file for a directory, an empty name', async () => {
  await assert.rejects(loadModel('/nowhere/at/all'), { code: 'MODEL_NOT_FOUND' })
  await assert.rejects(loadModel(__filename), { code: 'MODEL_NOT_FOUND' })
  await assert.rejects(loadModel(''), { code: 'INVALID_OPTION' })
  await assert.rejects(loadModel(temporary()), { code: 'MODEL_NOT_FOUND' })
})

test('sentence-transformers modules', async () => {
  const st = path.join(fixtures, 'st', 'bert-mean-dense')
  const modules = copyOf(st)
  editJson(path.join(modules, 'modules.json'), (list) => ((list as unknown as { type: string }[])[2]!.type = 'x.models.CNN'))
  await assert.rejects(loadModel(modules), { code: 'UNSUPPORTED_ARCHITECTURE', message: /CNN/ })
  writeFileSync(path.join(modules, 'modules.json'), '[null]')
  await assert.rejects(loadModel(modules), { code: 'CONFIG_INVALID', message: /expected a list of modules/ })
  const pooling = copyOf(st)
  editJson(path.join(pooling, '1_Pooling/config.json'), (c) => (c.pooling_mode = 'median'))
  await assert.rejects(loadModel(pooling), { code: 'CONFIG_INVALID', message: /median/ })
  const dense = copyOf(st)
  editJson(path.join(dense, '2_Dense/config.json'), (c) => (c.in_features = 31))
  await assert.rejects(loadModel(dense), { code: 'CONFIG_INVALID', message: /in_features/ })
  const similarity = copyOf(st)
  editJson(path.join(similarity, 'config_sentence_transformers.json'), (c) => (c.similarity_fn_name = 'chebyshev'))
  await assert.rejects(loadModel(similarity), { code: 'CONFIG_INVALID', message: /similarity_fn_name.*one of cosine.*"chebyshev"/ })
  const activation = copyOf(st)
  editJson(path.join(activation, '2_Dense/config.json'), (c) => (c.activation_function = 'torch.nn.modules.activation.Mish'))
  await assert.rejects(loadModel(activation), { code: 'CONFIG_INVALID', message: /mish/ })
})

test('a sharded checkpoint gives the same vectors', async () => {
  const directory = copyOf(pico('bert'))
  const all = [...readSafetensors(path.join(directory, 'model.safetensors'))]
  const half = all.length >> 1
  const map: Record<string, string> = {}
  for (const [file, part] of [
    ['model-00001-of-00002.safetensors', all.slice(0, half)],
    ['model-00002-of-00002.safetensors', all.slice(half)],
  ] as const) {
    writeSafetensors(path.join(directory, file), new Map(part))
    for (const [name] of part) map[name] = file
  }
  rmSync(path.join(directory, 'model.safetensors'))
  writeFileSync(path.join(directory, 'model.safetensors.index.json'), JSON.stringify({ metadata: {}, weight_map: map }))
  await using sharded = await loadModel(directory)
  await using whole = await loadModel(pico('bert'))
  assert.deepEqual((await sharded.embed('hello')).vectors, (await whole.embed('hello')).vectors)
  await sharded.dispose() // Windows removes no file that is mapped
  rmSync(path.join(directory, 'model-00002-of-00002.safetensors'))
  await assert.rejects(loadModel(directory), { code: 'FILE_IO', message: /00002/ })
})

test('an end token that tokenizer_config.json declares and tokenizer.json forgot is added', async () => {
  const directory = copyOf(path.join(fixtures, 'st', 'qwen3-last'))
  editJson(path.join(directory, 'tokenizer.json'), (t) => (t.post_processor = null))
  await using bare = await loadModel(directory)
  assert.equal(bare.info.finalToken, undefined)
  editJson(path.join(directory, 'tokenizer_config.json'), (t) => Object.assign(t, { add_eos_token: true, eos_token: '<|endoftext|>' }))
  await using mended = await loadModel(directory)
  await using whole = await loadModel(path.join(fixtures, 'st', 'qwen3-last'))
  assert.equal(mended.info.finalToken, '<|endoftext|>')
  for (const text of ['hello', 'x'.repeat(300)]) assert.deepEqual((await mended.embed(text)).vectors, (await whole.embed(text)).vectors)
  editJson(path.join(directory, 'tokenizer_config.json'), (t) => (t.eos_token = '<nope>'))
  await assert.rejects(loadModel(directory), { code: 'TOKENIZER_INVALID' })
})

test('chat templates, where the directory asks for messages', async () => {
  const directory = copyOf(path.join(fixtures, 'st', 'qwen3-last'))
  editJson(path.join(directory, 'sentence_bert_config.json'), (c) =>
    Object.assign(c, {
      modality_config: { message: { method: 'forward', format: 'structured' } },
      processing_kwargs: { chat_template: { add_generation_prompt: true } },
    }),
  )
  await assert.rejects(loadModel(directory), { code: 'CONFIG_INVALID', message: /chat_template/ })
  writeFileSync(
    path.join(directory, 'chat_template.jinja'),
    '{%- for m in messages %}[{{ m.role }}]{% for c in m.content %}{{ c.text }}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}',
  )
  await using chat = await loadModel(directory)
  await using plain = await loadModel(path.join(fixtures, 'st', 'qwen3-last'))
  const rendered = '[system]find[user]fox[assistant]' // newlines after a block tag are trimmed, as transformers does
  const want = await plain.embed(rendered, { prompt: '' })
  const got = await chat.embed('fox', { instruction: 'find' })
  // The template's text gets no special tokens of the tokenizer, so the vectors differ only by the end token.
  assert.equal(got.usage.text, rendered.length)
  assert.equal(want.usage.text, rendered.length + 1)
})
