/** The rivals: each is a process that sleeps until it is asked for a burst. */
import { type ChildProcess, fork } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { root } from '../native'
import type { Burst } from './rounds'
import type { BenchSink } from './run'

/** What a rival has made ready. */
export interface Prepared {
  readonly label: string
  /** How far its result is from the exact one, as a part of its length. */
  readonly error: number
}

/** Where the rivals are: not in the published package. */
export const peersFolder = path.join(root, 'bench', 'peers')

/** The process of one rival. */
export class Peer {
  version = ''
  private readonly child: ChildProcess
  private text = ''
  private next = 0
  private waiting:
    | { id: number; resolve: (answer: object) => void; reject: (error: Error) => void }
    | undefined

  constructor(readonly name: string) {
    this.child = fork(path.join(peersFolder, 'serve.mjs'), [name], {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      env: { ...process.env, LB_ARCH: '' },
    })
    this.child.stderr?.on('data', (part: Buffer) => {
      this.text = (this.text + part.toString()).slice(-2000)
    })
    this.child.on('message', (answer: { id: number; failed?: string }) => {
      const { waiting } = this
      if (waiting?.id !== answer.id) return
      this.waiting = undefined
      if (answer.failed !== undefined) waiting.reject(new Error(answer.failed))
      else waiting.resolve(answer)
    })
    this.child.on('exit', (code, signal) => {
      const last = this.text.trim().split('\n').at(-1)
      this.waiting?.reject(new Error(`its process ended (${signal ?? code}): ${last}`))
    })
  }

  private ask<T>(message: object): Promise<T> {
    const id = this.next++
    return new Promise((resolve, reject) => {
      this.waiting = { id, reject, resolve: (answer) => resolve(answer as T) }
      this.child.send({ ...message, id })
    })
  }

  async open(): Promise<void> {
    this.version = (await this.ask<{ version: string }>({ ask: 'open' })).version
  }
  prepare(spec: object): Promise<Prepared> {
    return this.ask({ ask: 'prepare', spec })
  }
  run(runs: number): Promise<Burst> {
    return this.ask({ ask: 'run', runs })
  }
  close(): void {
    this.child.disconnect()
  }
}

/** Opens the rivals when they are first needed, and says once of each why it isn't there. */
export class Peers {
  private readonly opened = new Map<string, Promise<Peer | undefined>>()
  constructor(private readonly sink: BenchSink) {}

  get(name: string): Promise<Peer | undefined> {
    const known = this.opened.get(name)
    if (known !== undefined) return known
    const made = this.make(name)
    this.opened.set(name, made)
    return made
  }

  /** Leaves it out from now on. */
  drop(peer: Peer, error: unknown): void {
    this.sink.note(`${peer.name}: ${(error as Error).message}`)
    this.opened.set(peer.name, Promise.resolve(undefined))
    peer.close()
  }

  private async make(name: string): Promise<Peer | undefined> {
    if (!fs.existsSync(path.join(peersFolder, `${name}.mjs`))) {
      this.sink.note(`${name}: there is no ${path.join(peersFolder, `${name}.mjs`)}`)
      return undefined
    }
    const peer = new Peer(name)
    try {
      await peer.open()
      return peer
    } catch (error) {
      this.sink.note(`${name}: ${(error as Error).message.split('\n')[0]}; see bench/peers/README.md`)
      peer.close()
      return undefined
    }
  }

  async close(): Promise<void> {
    for (const peer of await Promise.all(this.opened.values())) peer?.close()
  }
}
