// What the compiler says of each CUDA kernel (registers, shared memory, spills), from the logs of scripts/build-cuda.sh, as
// docs/cuda-kernels.md.
import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { root } from './setup.mjs'

const logs = path.join(root, 'build/cuda')
const rows = []
for (const name of readdirSync(logs).filter((file) => file.endsWith('.log'))) {
  const entries = readFileSync(path.join(logs, name), 'utf8')
    .split(/Compiling entry function '/)
    .slice(1)
  for (const entry of entries) {
    const [, mangled, architecture] = /^([^']+)' for '([^']+)'/.exec(entry)
    const full = execFileSync('c++filt', [mangled], { encoding: 'utf8' })
    // Up to the parameters; templates may stand in templates.
    const found = /(\w+(?:<.*?>)?)\((?!anonymous)/.exec(full.replace(/conan::cuda::|\(anonymous namespace\)::|\(int\)|\(bool\)| (?=>)/g, ''))?.[1] ?? mangled
    const kernel = found.replace(/\(Function\)(\d)/g, (_, value) => ['none', 'silu', 'any'][value]) // c++filt has no names of enumerators
    if (/_wgmma/.test(kernel) && !architecture.endsWith('a')) continue // empty there
    const number = (pattern) => Number(pattern.exec(entry)?.[1] ?? 0)
    rows.push([
      kernel,
      `${path.basename(name, '.log')}.cu`,
      architecture,
      number(/Used (\d+) registers/),
      number(/(\d+) bytes smem/),
      number(/(\d+) bytes spill stores/) + number(/(\d+) bytes spill loads/),
    ])
  }
}
rows.sort((a, b) => (a.join() < b.join() ? -1 : 1))
const page = `# CUDA kernels

As compiled by nvcc ${/release ([\d.]+)/.exec(execFileSync('nvcc', ['--version'], { encoding: 'utf8' }))?.[1] ?? ''}; made by \`scripts/cuda-report.mjs\` from the logs of \`scripts/build-cuda.sh\`. Bytes of shared memory are those of a block, spilled bytes those
of a thread.

| kernel | file | architecture | registers | shared | spilled |
|---|---|---|---:|---:|---:|
${rows.map((row) => `| ${row.join(' | ')} |`).join('\n')}
`
mkdirSync(path.join(root, 'docs'), { recursive: true })
writeFileSync(path.join(root, 'docs/cuda-kernels.md'), page)
console.log(`docs/cuda-kernels.md: ${rows.length} kernels`)
