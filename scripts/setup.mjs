// What every command needs first: dependencies, the native addon, the TypeScript build. Each step only where it is due.
import { spawnSync } from 'node:child_process'
import { existsSync, statSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')

/** Runs a command in the repository; a failure ends the script with its exit code. */
export function run(command, args, options = {}) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options })
  if (error) {
    console.error(`${command}: ${error.message}`)
    process.exit(1)
  }
  if (status !== 0) process.exit(status ?? 1)
}

export const bin = (name) => path.join(root, 'node_modules', '.bin', name)

export function install() {
  const mark = path.join(root, 'node_modules', '.package-lock.json')
  if (existsSync(mark) && statSync(mark).mtimeMs >= statSync(path.join(root, 'package-lock.json')).mtimeMs) return
  // Without scripts: our own install script would compile the addon a second time. Not `npm ci`: it refuses a lock file
  // whose optional packages for other platforms were not to be had where it was written.
  run('npm', ['install', '--ignore-scripts', '--no-save', '--no-audit', '--no-fund'])
}

/** The addon by CMake; incremental. */
export function buildNative() {
  run(bin('cmake-js'), ['build', '--log-level', 'warn'])
}

/** Native tests and benchmarks, in a build tree of their own. */
export function buildNativeTests(directory = 'build/native-tests', settings = []) {
  run('cmake', ['-S', '.', '-B', directory, '-DCONAN_TESTS=ON', ...settings], { stdio: ['ignore', 'ignore', 'inherit'] })
  run('cmake', ['--build', directory, '--parallel', '2'])
}

export function buildTypeScript() {
  run(bin('tsup'), ['--silent'])
}
