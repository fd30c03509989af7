// One rival in a process of its own: node serve.mjs <rival>, started with an IPC channel by lib/bench/peers.ts.
//
// It answers each message in turn: { id, ask: 'open' } with the rival's version; { id, ask: 'prepare', spec } with what
// was made ready and how far its result is from the exact one; { id, ask: 'run', runs }
// with the time of a burst and what the process waited for meanwhile. Between messages it sleeps, and it answers when its
// threads do too, so that only one process of the bench runs at a time.
import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

const rival = await import(`./${process.argv[2]}.mjs`).catch((error) => ({ failed: error }))

/** Nanoseconds that the threads of this process have stood in the run queue so far. */
function waitedNs() {
  let sum = 0
  for (const id of fs.readdirSync('/proc/self/task')) {
    try {
      sum += Number(fs.readFileSync(`/proc/self/task/${id}/schedstat`, 'utf8').split(' ')[1])
    } catch {
      // a thread that has just ended
    }
  }
  return sum
}

/** Waits until the threads of this process rest: those of ONNX Runtime look for work for 40 ms after a run. */
async function rest() {
  const window = 5
  for (let waited = 0; waited < 500; waited += window) {
    const before = process.cpuUsage()
    await sleep(window)
    const { user, system } = process.cpuUsage(before)
    if (user + system < 0.2 * window * 1e3) return
  }
}

let prepared

const answers = {
  async open() {
    if (rival.failed !== undefined) throw rival.failed
    return { version: await rival.open() }
  },
  async prepare({ spec }) {
    prepared = await rival.prepare(spec)
    const { launches, bytes, label } = prepared
    await prepared.run()
    const error = prepared.error()
    await rest()
    return { launches, bytes, label, error }
  },
  /** As many runs as fill the time, or as many as said. */
  async run({ runs }) {
    const before = waitedNs()
    const begin = process.hrtime.bigint()
    for (let i = 0; i < runs; i++) await prepared.run()
    const seconds = Number(process.hrtime.bigint() - begin) * 1e-9
    const waited = (waitedNs() - before) * 1e-9
    await rest()
    return { seconds, launches: runs * prepared.launches, waited }
  },
}

process.on('message', async ({ id, ask, ...rest }) => {
  try {
    process.send({ id, ...(await answers[ask](rest)) })
  } catch (error) {
    process.send({ id, failed: error instanceof Error ? error.message : String(error) })
  }
})
process.on('disconnect', () => process.exit(0))
