// What users get: the packed tarball, installed without scripts and without a compiler, embeds a sentence.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fixtures, root, temporary } from '../support'

test('the packed package works where there is no compiler', () => {
  const own = path.join(root, 'prebuilds', `${process.platform}-${process.arch}`)
  if (existsSync(own)) for (const name of readdirSync(own)) if (!name.includes('.musl.')) rmSync(path.join(own, name)) // of scripts/build-cross.sh
  execFileSync('npm', ['run', 'make:prebuilds'], { cwd: root, stdio: 'pipe' })
  const directory = temporary()
  const packed = JSON.parse(
    execFileSync('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', directory], { cwd: root, encoding: 'utf8', stdio: 'pipe' }),
  )
  const tarball = path.join(directory, packed[0].filename)
  const names: string[] = packed[0].files.map((file: { path: string }) => file.path)
  assert.ok(statSync(tarball).size < 60e6, 'the tarball stays under 60 MB')
  assert.ok(names.some((name) => name.startsWith('prebuilds/') && name.endsWith('.node')))
  assert.ok(
    ['dist/index.js', 'dist/index.mjs', 'dist/index.d.ts', 'dist/index.d.mts', 'dist/cli.js', 'binding.gyp', 'native/sources.gypi'].every((name) =>
      names.includes(name),
    ),
  )
  assert.ok(!names.some((name) => /^(test|bench|build|scripts)\//.test(name)))

  // A PATH with node and npm alone.
  const tools = path.join(directory, 'bin')
  mkdirSync(tools)
  for (const tool of ['node', 'npm', 'sh']) symlinkSync(execFileSync('which', [tool], { encoding: 'utf8' }).trim(), path.join(tools, tool))
  const env = { ...process.env, PATH: tools }
  const app = path.join(directory, 'app')
  mkdirSync(app)
  writeFileSync(path.join(app, 'package.json'), '{"name": "app", "private": true}')
  const install = spawnSync('npm', ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', tarball], { cwd: app, env, encoding: 'utf8' })
  assert.equal(install.status, 0, install.stderr)
  const model = JSON.stringify(path.join(fixtures, 'st/bert-mean-dense'))
  const sources = {
    'app.mjs': `import { loadModel } from 'conan-embedding'\nconst model = await loadModel(${model})\nconsole.log((await model.embed('hello')).dimensions)\n`,
    'app.cjs': `const { loadModel } = require('conan-embedding')\nloadModel(${model}).then(async (model) => console.log((await model.embed('hello')).dimensions))\n`,
  }
  for (const [name, source] of Object.entries(sources)) {
    writeFileSync(path.join(app, name), source)
    const { stdout, stderr } = spawnSync('node', [name], { cwd: app, env, encoding: 'utf8' })
    assert.equal(stdout.trim(), '24', stderr)
  }
  const cli = spawnSync('node', ['node_modules/conan-embedding/dist/cli.js', 'embed', JSON.parse(model), 'hello'], { cwd: app, env, encoding: 'utf8' })
  assert.equal(JSON.parse(cli.stdout).embedding.length, 24, cli.stderr)
  const prebuilds = path.join(app, 'node_modules/conan-embedding/prebuilds')
  if (process.platform === 'linux')
    for (const name of readdirSync(prebuilds, { recursive: true }).map(String))
      for (const [version, minor] of /\.(node|so)$/.test(name) ? readFileSync(path.join(prebuilds, name), 'latin1').matchAll(/GLIBC_2\.(\d+)/g) : [])
        assert.ok(Number(minor) <= 28, `${name} asks for ${version}, expected what Node 20 asks for at most, 2.28 (native/base/old_glibc.cpp)`)
  // Without any binary the error says what to do.
  rmSync(prebuilds, { recursive: true })
  const broken = spawnSync('node', ['app.cjs'], { cwd: app, env, encoding: 'utf8' })
  assert.match(broken.stderr, /ADDON_MISSING|native addon for .* cannot be loaded/)
})
