// Runs the native test programs, on every instruction set this machine has.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { test } from 'node:test'
import { cuda, fixtures, root } from '../support'

const run = (program: string, args: string[] = [], env: Record<string, string> = {}) => {
  const { status, stdout, stderr } = spawnSync(path.join(root, 'build/native-tests', program), args, { encoding: 'utf8', env: { ...process.env, ...env } })
  assert.equal(status, 0, stdout + stderr)
  assert.match(stdout, /[1-9]\d* passed, 0 failed/)
  return stdout
}
for (const [program, ...args] of [['ops_test'], ['safetensors_test'], ['merge_test'], ['model_test', path.join(fixtures, 'pico')]])
  test(program!, () => {
    run(program!, args)
  })

const gpu = cuda()
for (const gemm of ['mma', 'wgmma'])
  test(`ops_test on cuda, products by ${gemm}`, { skip: gpu.skip }, () => {
    assert.match(run('ops_test', [], { CONAN_CUDA_GEMM: gemm }), /cuda:0 checked/)
  })

test('every instruction set gives the same vectors but for rounding', () => {
  const code = `
    const { devices, loadModel } = require(${JSON.stringify(path.join(root, 'dist/index.js'))})
    loadModel(${JSON.stringify(path.join(fixtures, 'st/bert-mean-dense'))}).then(async (model) => {
      const { vectors } = await model.embed(['hello', 'a longer text for the second row'])
      console.log(JSON.stringify({ isa: devices()[0].cpu.isa, backend: model.info.backend, vectors: [...vectors] }))
    })`
  const vectorsOn = (isa: string) => spawnSync(process.execPath, ['-e', code], { encoding: 'utf8', env: { ...process.env, CONAN_CPU_ISA: isa } })
  const want = JSON.parse(vectorsOn('reference').stdout)
  for (const isa of ['portable', 'avx2', 'avx512', 'avx512+dot']) {
    const { stdout, stderr } = vectorsOn(isa)
    if (/expected one of/.test(stderr)) continue // not on this CPU
    const got = JSON.parse(stdout)
    assert.equal(got.backend, isa)
    for (const [i, x] of got.vectors.entries()) assert.ok(Math.abs(x - want.vectors[i]) < 1e-5, `${isa}: component ${i}`)
  }
  const wrong = vectorsOn('mmx')
  assert.notEqual(wrong.status, 0)
  assert.match(wrong.stderr, /CONAN_CPU_ISA: expected one of reference, portable/)
})
