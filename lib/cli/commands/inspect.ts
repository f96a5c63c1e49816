// conan-embed inspect: what a model directory holds, or with --devices what this machine offers.
import { devices, inspect as inspectDirectory } from '../../inspect'
import { type Command, CommandError } from '../command'

const millions = (n: number) => `${(n / 1e6).toFixed(1)}M`

export const inspect: Command = {
  summary: 'shows what a model directory holds, and what is wrong with it',
  positionals: '[MODEL]',
  options: {
    tensors: { type: 'boolean', help: 'list every tensor' },
    devices: { type: 'boolean', help: 'show what this machine computes with, and why' },
    json: { type: 'boolean', help: 'as JSON' },
  },
  async run(args) {
    if (args.values.devices) {
      const found = devices()
      if (args.values.json) {
        console.log(JSON.stringify(found))
        return undefined
      }
      for (const report of found) {
        if (!('cpu' in report)) {
          if ('unavailable' in report) console.log(`cuda: none: ${report.unavailable}`)
          else
            console.log(
              `${report.device}: ${report.gpu.name}, ${(report.gpu.memory / 1e9).toFixed(0)} GB, compute capability ${report.gpu.capability.toFixed(1)}`,
            )
          continue
        }
        const { device, cpu } = report
        console.log(`${device}: ${cpu.isa}, ${cpu.threads} threads`)
        const measured = cpu.bf16DotGflops
          ? ` (one thread measured: vdpbf16ps ${cpu.bf16DotGflops.toFixed(0)}, float32 ${cpu.f32Gflops.toFixed(0)} GFLOP/s)`
          : ''
        console.log(`  bfloat16 weights: ${cpu.bf16Kernel}${measured}\n  int8 weights: ${cpu.int8Kernel}`)
      }
      return undefined
    }
    const [directory] = args.positionals
    if (directory === undefined) throw new CommandError('expected a model directory, or --devices')
    const report = inspectDirectory(directory)
    const code = report.problems.length ? 3 : 0
    if (args.values.json) {
      console.log(JSON.stringify(report))
      return code
    }
    const line = (name: string, value: unknown) => console.log(`${name.padEnd(14)}${value}`)
    line('directory', report.directory)
    line('architecture', report.modelType)
    if (report.config)
      line(
        'sizes',
        Object.entries(report.config)
          .map(([k, v]) => `${k} ${v}`)
          .join(', '),
      )
    line(
      'parameters',
      `${millions(report.parameters)} in ${report.tensors.length} tensors, ${millions(report.bytes)}B (${Object.entries(report.dtypes)
        .map(([k, v]) => `${k} ${millions(v)}`)
        .join(', ')})`,
    )
    line('prefix', report.prefix || '(none)')
    line('pooling', `${report.pooling ?? '?'}${report.normalize ? ', normalised' : ''}`)
    for (const dense of report.dense) line('dense', `${dense.inputs} -> ${dense.outputs}, ${dense.activation}`)
    line('max tokens', report.maxTokens ?? report.config?.maxPositions ?? '?')
    for (const [name, prompt] of Object.entries(report.prompts))
      line('prompt', `${name}${name === report.defaultPromptName ? ' (default)' : ''}: ${JSON.stringify(prompt)}`)
    line('unused', report.unused.join(', ') || '(none)')
    if (args.values.tensors) for (const tensor of report.tensors) line('tensor', `${tensor.name} ${tensor.dtype} [${tensor.shape.join(', ')}]`)
    for (const problem of report.problems) line('PROBLEM', problem)
    return code
  },
}
