// What a command is, and how its arguments are read.
import { type ParseArgsConfig, parseArgs } from 'node:util'
import { type ComputeOptions, computeOptions } from '../model'

interface Option {
  type: 'string' | 'boolean'
  short?: string
  multiple?: boolean
  /** For --help: what it does; of a string, its value in a word before that: "N what it does". */
  help: string
}

export interface Arguments {
  positionals: string[]
  values: Record<string, string | boolean | string[] | undefined>
}

export interface Command {
  summary: string
  /** What stands after the verb: "MODEL [TEXT ...]". */
  positionals: string
  options: Record<string, Option>
  /** Resolves to an exit code other than 0 where there is something to report. */
  run(args: Arguments): Promise<number | undefined>
}

/** Wrong arguments: exit code 2. */
export class CommandError extends Error {}

/** Reads a verb's arguments; 'help' where it printed them. */
export function parse(verb: string, command: Command, args: string[]): Arguments | 'help' {
  const options: ParseArgsConfig['options'] = { help: { type: 'boolean', short: 'h' } }
  for (const [name, { help: _, ...option }] of Object.entries(command.options)) options[name] = option
  let parsed: ReturnType<typeof parseArgs>
  try {
    parsed = parseArgs({ args, options, allowPositionals: true })
  } catch (error) {
    throw new CommandError((error as Error).message)
  }
  if (parsed.values.help) {
    const rows = Object.entries(command.options).map(([name, { type, help }]) => {
      const [value = '', ...text] = type === 'string' ? help.split(' ') : ['', help]
      return [`--${name} ${value}`, text.join(' ')] as const
    })
    const width = Math.max(...rows.map(([flag]) => flag.length))
    const lines = rows.map(([flag, text]) => `  ${flag.padEnd(width)}  ${text}`.trimEnd())
    console.log(`conan-embed ${verb} ${command.positionals}\n${command.summary}\n\n${lines.join('\n')}`)
    return 'help'
  }
  return parsed as Arguments
}

export function integer(args: Arguments, name: string): number | undefined {
  const value = args.values[name]
  if (value === undefined) return undefined
  if (!/^\d+$/.test(String(value))) throw new CommandError(`--${name}: expected a whole number, got "${value}"`)
  return Number(value)
}

export function number(args: Arguments, name: string): number | undefined {
  const value = args.values[name]
  if (value === undefined) return undefined
  if (String(value).trim() === '' || !Number.isFinite(Number(value))) throw new CommandError(`--${name}: expected a number, got "${value}"`)
  return Number(value)
}

/** Runs `work` with a signal that Ctrl-C aborts. */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController()
  const interrupt = () => stop.abort()
  process.once('SIGINT', interrupt)
  try {
    return await work(stop.signal)
  } finally {
    process.off('SIGINT', interrupt)
  }
}

export function string(args: Arguments, name: string): string | undefined {
  return args.values[name] as string | undefined
}

/** What a model computes on and how. */
export const computeFlags: Command['options'] = {
  device: { type: 'string', help: 'D auto, cpu, cuda, cuda:N or several with commas (auto)' },
  dtype: { type: 'string', help: 'T auto, float32, bfloat16, float16 or int8 (auto)' },
  threads: { type: 'string', help: 'N threads on the CPU (its cores)' },
}

/** Those flags. */
export function computeArguments(args: Arguments): ComputeOptions {
  return computeOptions({ device: string(args, 'device'), dtype: string(args, 'dtype') as ComputeOptions['dtype'], threads: integer(args, 'threads') })
}
