/** The LowbitError that a call throws or its promise rejects with; any other error, or none, fails the test. */
import { LowbitError } from 'lowbit'

const none = (): never => {
  throw new Error('nothing was thrown')
}
const lowbitError = (error: unknown): LowbitError => {
  if (error instanceof LowbitError) return error
  throw error
}

/** Of a call that throws at once. */
export function refusal(f: () => unknown): LowbitError {
  try {
    f()
  } catch (error) {
    return lowbitError(error)
  }
  return none()
}

/** Of a call that throws at once or later. */
export async function rejection(f: () => unknown): Promise<LowbitError> {
  try {
    await f()
  } catch (error) {
    return lowbitError(error)
  }
  return none()
}
