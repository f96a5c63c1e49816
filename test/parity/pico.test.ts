// Every architecture, on tiny random models, against transformers: hidden states of every layer and the final ones.
import assert from 'node:assert/strict'
import { readdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { binding } from '../../lib/binding'
import { copyOf, editJson, editTensors, fixtures, floats, ints, pico, readSafetensors, tolerance, worstCosine } from '../support'

const load = (directory: string, dtype: string, pooling = 'mean', adapters: string[] = []) =>
  binding().load({ directory, adapters, dtype, threads: 2, pooling, dense: [] })

const golden = (name: string) => readSafetensors(path.join(pico(name), 'golden.safetensors'))

async function checkHidden(directory: string, name: string, dtype: 'float32' | 'bfloat16' | 'int8', adapters: string[] = [], pooling = 'mean') {
  const tensors = golden(name)
  const native = binding()
  const model = await load(directory, dtype, pooling, adapters)
  const states = await native.hiddenStates(model, ints(tensors.get('ids')!), ints(tensors.get('offsets')!))
  const { hiddenSize, layers } = native.modelInfo(model)
  assert.equal(states.length, layers + 2)
  for (const [layer, state] of states.entries()) {
    const want = floats(tensors.get(`hidden.${layer}`)!)
    const cosine = worstCosine(state, want, hiddenSize)
    assert.ok(cosine > tolerance[dtype].cosine, `${name} ${dtype}: hidden state ${layer}: worst cosine ${cosine}`)
  }
  native.dispose(model)
}

for (const name of readdirSync(path.join(fixtures, 'pico'))) {
  for (const dtype of ['float32', 'bfloat16', 'int8'] as const)
    test(`${name}: hidden states of every layer, ${dtype}`, () => checkHidden(pico(name), name, dtype))

  test(`${name}: pooled by one row, only that row is computed in the last layer`, async () => {
    const tensors = golden(name)
    const offsets = ints(tensors.get('offsets')!)
    const native = binding()
    for (const pooling of ['cls', 'lasttoken']) {
      const model = await load(pico(name), 'float32', pooling)
      const { hiddenSize, layers } = native.modelInfo(model)
      const vectors = await native.embed(model, ints(tensors.get('ids')!), offsets, false, hiddenSize)
      const final = floats(tensors.get(`hidden.${layers + 1}`)!)
      const want = new Float32Array(vectors.length)
      for (let b = 0; b + 1 < offsets.length; b++) {
        const row = pooling === 'cls' ? offsets[b]! : offsets[b + 1]! - 1
        want.set(final.subarray(row * hiddenSize, (row + 1) * hiddenSize), b * hiddenSize)
      }
      const cosine = worstCosine(vectors, want, hiddenSize)
      assert.ok(cosine > tolerance.float32.cosine, `${pooling}: worst cosine ${cosine}`)
      native.dispose(model)
    }
  })

  for (const dtype of ['float32', 'bfloat16', 'float16', 'int8'])
    test(`${name}: vectors depend neither on batch mates nor on threads, ${dtype}`, async () => {
      const tensors = golden(name)
      const ids = ints(tensors.get('ids')!)
      const offsets = ints(tensors.get('offsets')!)
      const native = binding()
      const model = await load(pico(name), dtype)
      const single = await binding().load({ directory: pico(name), adapters: [], dtype, threads: 1, pooling: 'mean', dense: [] })
      const { hiddenSize } = native.modelInfo(model)
      const together = await native.embed(model, ids, offsets, true, hiddenSize)
      assert.deepEqual(await native.embed(single, ids, offsets, true, hiddenSize), together)
      // Many copies, so that work is divided in another way.
      const many = new Int32Array(ids.length * 9)
      const manyOffsets = new Int32Array((offsets.length - 1) * 9 + 1)
      for (let i = 0; i < 9; i++) {
        many.set(ids, i * ids.length)
        for (let b = 1; b < offsets.length; b++) manyOffsets[i * (offsets.length - 1) + b] = i * ids.length + offsets[b]!
      }
      const repeated = await native.embed(model, many, manyOffsets, true, hiddenSize)
      for (let i = 0; i < 9; i++) assert.deepEqual(repeated.subarray(i * together.length, (i + 1) * together.length), together)
      for (let b = 0; b + 1 < offsets.length; b++) {
        const alone = await native.embed(model, ids.slice(offsets[b], offsets[b + 1]), Int32Array.of(0, offsets[b + 1]! - offsets[b]!), true, hiddenSize)
        assert.deepEqual(alone, together.subarray(b * hiddenSize, (b + 1) * hiddenSize))
      }
      native.dispose(model)
      native.dispose(single)
    })
}

test('old spelling of rope settings: rope_theta and rope_scaling', async () => {
  const llama = copyOf(pico('llama'))
  editJson(path.join(llama, 'config.json'), (config) => {
    const { rope_theta, ...scaling } = config.rope_parameters as Record<string, unknown>
    delete config.rope_parameters
    Object.assign(config, { rope_theta, rope_scaling: scaling })
  })
  await checkHidden(llama, 'llama', 'float32')
  const gemma = copyOf(pico('gemma3'))
  editJson(path.join(gemma, 'config.json'), (config) => {
    delete config.rope_parameters
    Object.assign(config, { rope_theta: 1000000, rope_local_base_freq: 10000, rope_scaling: null })
  })
  await checkHidden(gemma, 'gemma3', 'float32')
  const modern = copyOf(pico('modernbert'))
  editJson(path.join(modern, 'config.json'), (config) => {
    delete config.rope_parameters
    delete config.layer_types
    Object.assign(config, { global_rope_theta: 160000, local_rope_theta: 10000, global_attn_every_n_layers: 3 })
  })
  await checkHidden(modern, 'modernbert', 'float32')
})

test('config.json as the first publication of a model spells it', async () => {
  const nomic = copyOf(pico('nomic-bert'))
  const config = path.join(nomic, 'config.json')
  const sizes = { vocab_size: 272, type_vocab_size: 2, n_embd: 32, n_layer: 2, n_head: 4, n_inner: 48, n_positions: 80 }
  const biases = { qkv_proj_bias: false, mlp_fc1_bias: false, mlp_fc2_bias: false }
  const rotary = { rotary_emb_base: 1000, rotary_emb_fraction: 1.0, rotary_emb_interleaved: false, rotary_emb_scale_base: null, rotary_scaling_factor: null }
  const first = { model_type: 'nomic_bert', activation_function: 'swiglu', layer_norm_epsilon: 1e-12, prenorm: false, ...sizes, ...biases, ...rotary }
  writeFileSync(config, JSON.stringify(first))
  await checkHidden(nomic, 'nomic-bert', 'float32')
  const wrong = async (change: object, code: string, message: RegExp) => {
    const copy = copyOf(nomic)
    editJson(path.join(copy, 'config.json'), (config) => Object.assign(config, change))
    await assert.rejects(load(copy, 'float32'), { code, message })
  }
  await wrong({ prenorm: true }, 'UNSUPPORTED_ARCHITECTURE', /"prenorm": expected false/)
  await wrong({ moe_every_n_layers: 2 }, 'UNSUPPORTED_ARCHITECTURE', /moe_every_n_layers/)
  await wrong({ rotary_emb_fraction: 0.5 }, 'UNSUPPORTED_ARCHITECTURE', /rotary_emb_fraction/)
  await wrong({ activation_function: 'glu' }, 'CONFIG_INVALID', /activation_function/)
  // Beyond what it was trained on, its own code turns by angles that depend on the batch.
  editJson(config, (config) => Object.assign(config, { rotary_scaling_factor: 2, max_trained_positions: 61 }))
  const model = await load(nomic, 'float32')
  assert.equal(binding().modelInfo(model).maxPositions, 61)

  // GTE in both spellings, its scaling left out.
  const states = async (change: object) => {
    const copy = copyOf(pico('gte'))
    editJson(path.join(copy, 'config.json'), (config) => Object.assign(config, { rope_theta: null, rope_scaling: null }, change))
    const tensors = golden('gte')
    return binding().hiddenStates(await load(copy, 'float32'), ints(tensors.get('ids')!), ints(tensors.get('offsets')!))
  }
  assert.deepEqual(
    await states({ model_type: 'gte', rope_parameters: { rope_type: 'default', rope_theta: 500 } }),
    await states({ model_type: 'new', rope_theta: 500, rope_scaling: null, pack_qkv: true, layer_norm_type: 'layer_norm', position_embedding_type: 'rope' }),
  )
  await assert.rejects(states({ position_embedding_type: 'absolute' }), { code: 'UNSUPPORTED_ARCHITECTURE', message: /position_embedding_type/ })
  await assert.rejects(states({ logn_attention_scale: true }), { code: 'UNSUPPORTED_ARCHITECTURE', message: /logn_attention_scale/ })
})

test('tensor names with and without the prefix of a head', async () => {
  for (const [name, prefix] of [
    ['bert', 'bert.'],
    ['roberta', '0.auto_model.'],
    ['gemma3', 'model.language_model.'],
  ] as const) {
    const directory = copyOf(pico(name))
    editTensors(directory, (tensors) => {
      for (const [key, tensor] of [...tensors]) {
        tensors.delete(key)
        tensors.set(prefix + key, tensor)
      }
    })
    await checkHidden(directory, name, 'float32')
  }
  const bare = copyOf(pico('qwen3'))
  editTensors(bare, (tensors) => {
    for (const [key, tensor] of [...tensors]) {
      tensors.delete(key)
      tensors.set(key.replace(/^model\./, ''), tensor)
    }
  })
  await checkHidden(bare, 'qwen3', 'float32')
})

test('a tied checkpoint that stores only lm_head.weight', async () => {
  const directory = copyOf(pico('qwen3'))
  editTensors(directory, (tensors) => {
    tensors.set('lm_head.weight', tensors.get('model.embed_tokens.weight')!)
    tensors.delete('model.embed_tokens.weight')
  })
  await checkHidden(directory, 'qwen3', 'float32')
})

test('BERT with gamma and beta', async () => {
  const directory = copyOf(pico('bert'))
  editTensors(directory, (tensors) => {
    for (const [key, tensor] of [...tensors]) {
      if (!key.includes('LayerNorm')) continue
      tensors.delete(key)
      tensors.set(key.replace(/weight$/, 'gamma').replace(/bias$/, 'beta'), tensor)
    }
  })
  await checkHidden(directory, 'bert', 'float32')
})

test('a LoRA adapter gives what PEFT gives', async () => {
  const native = binding()
  const model = await load(pico('qwen3'), 'float32', 'mean', [path.join(fixtures, 'adapter')])
  const tensors = readSafetensors(path.join(fixtures, 'adapter', 'golden.safetensors'))
  const states = await native.hiddenStates(model, ints(tensors.get('ids')!), ints(golden('qwen3').get('offsets')!))
  const cosine = worstCosine(states.at(-1)!, floats(tensors.get('hidden')!), 32)
  assert.ok(cosine > tolerance.float32.cosine, `worst cosine ${cosine}`)
})

test('an adapter of another model is refused', async () => {
  await assert.rejects(load(pico('bert'), 'float32', 'mean', [path.join(fixtures, 'adapter')]), { code: 'TENSOR_UNUSED' })
})
