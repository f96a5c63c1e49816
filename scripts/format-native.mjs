// Formats the C++ sources with clang-format; with --check only says what differs.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { bin, root } from './setup.mjs'

const files = ['native', 'test/native', 'bench/native'].flatMap((directory) =>
  readdirSync(path.join(root, directory), { recursive: true })
    .filter((file) => /\.(h|cpp|inl|cu)$/.test(file))
    .map((file) => path.join(directory, file)),
)
const works = spawnSync(bin('clang-format'), ['--version']).status === 0
if (!works) console.log(`clang-format has no binary for ${process.platform}-${process.arch}: C++ formatting not checked`)
else {
  const { status } = spawnSync(bin('clang-format'), [...(process.argv.includes('--check') ? ['--dry-run', '--Werror'] : ['-i']), ...files], {
    cwd: root,
    stdio: 'inherit',
  })
  process.exitCode = status ?? 1
}
