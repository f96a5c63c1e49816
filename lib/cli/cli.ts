#!/usr/bin/env node
// conan-embed <verb>: one line per command here, one file per command in commands/.
import { realpathSync } from 'node:fs'
import os from 'node:os'
import { packageVersion } from '../binding'
import { asConanError, errorKinds } from '../errors'
import { type Command, CommandError, parse } from './command'
import { attachAudio } from './commands/attach-audio'
import { bench } from './commands/bench'
import { drift } from './commands/drift'
import { embed } from './commands/embed'
import { evaluation } from './commands/eval'
import { extractLora } from './commands/extract-lora'
import { fuse } from './commands/fuse'
import { inspect } from './commands/inspect'
import { mine } from './commands/mine'
import { search } from './commands/search'
import { serve } from './commands/serve'
import { recover, rehearse, train } from './commands/train'

const commands: Record<string, Command> = {
  embed,
  search,
  serve,
  fuse,
  drift,
  train,
  recover,
  rehearse,
  mine,
  eval: evaluation,
  'extract-lora': extractLora,
  'attach-audio': attachAudio,
  inspect,
  bench,
}

const usage = `conan-embed <verb> [arguments]

${Object.entries(commands)
  .map(([name, command]) => `  ${name.padEnd(14)}${command.summary}`)
  .join('\n')}

conan-embed <verb> --help shows a verb's arguments.`

export async function main(args: string[]): Promise<number> {
  const [verb, ...rest] = args
  if (verb === undefined || verb === '--help' || verb === '-h' || verb === 'help') {
    console.log(usage)
    return verb === undefined ? 2 : 0
  }
  if (verb === '--version') {
    console.log(packageVersion())
    return 0
  }
  const command = Object.hasOwn(commands, verb) ? commands[verb] : undefined
  if (!command) {
    console.error(`conan-embed: expected one of ${Object.keys(commands).join(', ')}, got "${verb}"`)
    return 2
  }
  try {
    const parsed = parse(verb, command, rest)
    if (parsed === 'help') return 0
    return (await command.run(parsed)) ?? 0
  } catch (error) {
    if (error instanceof CommandError) {
      console.error(`conan-embed ${verb}: ${error.message}`)
      return 2
    }
    const known = asConanError(error)
    const json = rest.includes('--json')
    console.error(json ? JSON.stringify({ error: { code: known.code, message: known.message } }) : `conan-embed ${verb}: ${known.message} [${known.code}]`)
    if (known.code === 'INTERNAL' && process.env.CONAN_DEBUG) console.error(known.cause ?? known)
    return errorKinds[known.code].exit
  }
}

// A closed pipe (`conan-embed ... | head`) is the reader's right, not an error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0)
  throw error
})

if (process.argv[1] && realpathSync.native(process.argv[1]) === realpathSync.native(__filename)) {
  // Node has four threads for all that is decoded, resampled and waited for, unless told otherwise before the first is needed.
  process.env.UV_THREADPOOL_SIZE ??= String(Math.min(64, Math.max(4, os.availableParallelism())))
  main(process.argv.slice(2)).then((code) => {
    process.exitCode = code
  })
}
