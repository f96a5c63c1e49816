// npm test: sets up, checks style and types, then runs every test. Arguments: test files to run instead of all.
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { bin, buildNative, buildNativeTests, buildTypeScript, install, root, run } from './setup.mjs'

install()
run(bin('biome'), ['check', '--error-on-warnings'])
run(process.execPath, [path.join(root, 'scripts/format-native.mjs'), '--check'])
run(bin('tsc'), [])
buildNative()
buildNativeTests()
buildTypeScript()
const all = readdirSync(path.join(root, 'test'), { recursive: true })
  .filter((file) => file.endsWith('.test.ts'))
  .map((file) => path.join('test', file))
  .sort()
const files = process.argv.length > 2 ? process.argv.slice(2) : all
process.env.CONAN_DEVICE = 'cpu' // what tests on a GPU, says so
run(process.execPath, ['--import', 'tsx', '--test', '--test-reporter', 'spec', ...files])
