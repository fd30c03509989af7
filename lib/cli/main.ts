#!/usr/bin/env node
/** The `lowbit` command: one module per subcommand, each with `run(args)` that resolves to an exit code. */
const commands = ['doctor', 'kernels', 'eval', 'generate', 'bench', 'tune'] as const
type Command = (typeof commands)[number]

const usage = `usage: lowbit <command> [options]

  doctor                  what was found on this machine, and why it is or isn't used
  kernels                 the kernel rows, and which one a shape selects
  eval [checkpoint]       quality and speed of a checkpoint per scheme
  generate [checkpoint]   streams text
  bench [op]              kernels against their bound and their rivals
  tune                    writes down which rows are fastest on this machine

lowbit <command> --help says more.`

async function main(argv: string[]): Promise<number> {
  const [name, ...rest] = argv
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    console.log(usage)
    return name === undefined ? 2 : 0
  }
  if (name === '--version') {
    console.log((require('../../package.json') as { version: string }).version)
    return 0
  }
  if (!commands.includes(name as Command)) {
    console.error(`lowbit: '${name}' is none of its commands\n\n${usage}`)
    return 2
  }
  const command = require(`./${name}`) as { run(args: string[]): Promise<number> }
  return command.run(rest)
}

main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code
  },
  (error: unknown) => {
    const { code, message } = error as { code?: string; message?: string }
    console.error(code === undefined ? error : `lowbit: ${message} (${code})`)
    process.exitCode = 1
  },
)
