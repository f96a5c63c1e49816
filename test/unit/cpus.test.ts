// CPUs that this machine's is not, emulated: the addon loads there, takes what they have, and its results are those of this one.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { test } from 'node:test'
import { fixtures, largestDifference, pico, root, temporary } from '../support'

const emulator = 'qemu-x86_64'
const skip =
  process.platform !== 'linux' || process.arch !== 'x64'
    ? 'needs Linux on x64'
    : spawnSync(emulator, ['--version']).status !== 0 && `needs ${emulator} (Debian's qemu-user)`

const program = `
const { devices, fuse, loadModel } = require(${JSON.stringify(path.join(root, 'dist/index.js'))})
const { readFileSync } = require('node:fs')
const { works, recipe, out } = JSON.parse(process.argv[1])
;(async () => {
  const vectors = []
  for (const [directory, dtype, inputs] of works) {
    const model = await loadModel(directory, { device: 'cpu', dtype, threads: 2 })
    const result = await model.embed(inputs)
    vectors.push(Array.from(result.vectors), Array.from(model.similarity(result, result)))
    await model.dispose()
  }
  await fuse(recipe, { out, threads: 1 })
  console.log(JSON.stringify({ isa: devices()[0].cpu.isa, vectors, fused: readFileSync(out + '/model.safetensors').toString('base64') }))
})()`

const texts = ['one', 'two and three, and some more words']
const media = [{ image: path.join(fixtures, 'vision/images/grey.png') }, { audio: path.join(fixtures, 'audio/pcm16.wav') }]
const dtypes = ['float32', 'bfloat16', 'int8'] as const
const works = [
  ...dtypes.flatMap((dtype) => ['bert', 'qwen3'].map((name) => [pico(name), dtype, texts] as const)),
  [path.join(fixtures, 'audio/omni'), 'float32', media] as const,
]
const merge = (name: string) => path.join(fixtures, 'merge', name)
const recipe = {
  merge_method: 'ties',
  base_model: merge('base'),
  models: ['a', 'b'].map((name) => ({ model: merge(name), parameters: { weight: 0.5, density: 0.5 } })),
}

function results(command: string[]): { isa: string; vectors: number[][]; fused: string } {
  const out = path.join(temporary(), 'fused')
  const [first, ...rest] = [...command, process.execPath, '-e', program, JSON.stringify({ works, recipe, out })]
  const { status, signal, stdout, stderr } = spawnSync(first as string, rest, { encoding: 'utf8', env: { ...process.env, CONAN_CPU_ISA: '' } })
  assert.equal(status, 0, `${command.join(' ')}: ${signal ?? status}: ${stderr}`)
  return JSON.parse(stdout)
}

for (const [cpu, isa] of [
  ['Haswell', 'avx2'],
  ['Nehalem', 'portable'],
] as const)
  test(`on a CPU with ${isa} alone (${cpu}, emulated)`, { skip }, () => {
    const [here, there] = [results([]), results([emulator, '-cpu', cpu])]
    assert.equal(there.isa, isa)
    for (const [i, vectors] of here.vectors.entries()) {
      const [directory, dtype] = works[i >> 1]!
      // Activations are bf16 only where the CPU multiplies it; of int8 a sum that is another in its last bit may be rounded to the next step.
      const tolerance = { float32: 1e-6, bfloat16: 0.005, int8: 0.015 }[dtype]
      const difference = largestDifference(Float32Array.from(vectors), Float32Array.from(there.vectors[i]!))
      assert.ok(difference < tolerance, `${directory} in ${dtype}: ${difference}`)
    }
    assert.equal(there.fused, here.fused)
  })
