/** What a pool of pages must be: counted anew from the sequences that there are. */
import type { KvSequence, PagePool } from 'lowbit'

/** Every page and row is counted once for each sequence that has it, and free when nobody has it. */
export function audit(pool: PagePool, live: Iterable<KvSequence>): void {
  const users = new Array<number>(pool.pages).fill(0)
  const rows = new Array<number>(pool.prefixRows).fill(0)
  for (const { pageTable, prefixRow, length } of live) {
    expect(pageTable).toHaveLength(Math.ceil(length / pool.pageSize))
    const covered = Math.floor(pool.prefixTokens / pool.pageSize)
    expect(pageTable.slice(0, covered).every((page) => page === -1)).toBe(true)
    for (const page of pageTable.slice(covered)) users[page] = (users[page] ?? Number.NaN) + 1
    expect(prefixRow >= 0).toBe(length > 0 && pool.prefixTokens > 0)
    if (prefixRow >= 0) rows[prefixRow] = (rows[prefixRow] ?? Number.NaN) + 1
  }
  expect(users).toEqual(users.map((_, page) => pool.counts.users(page)))
  expect(rows).toEqual(rows.map((_, row) => pool.rows.users(row)))
  expect(pool.free).toBe(users.filter((count) => count === 0).length)
  expect(pool.rows.free).toBe(rows.filter((count) => count === 0).length)
}
