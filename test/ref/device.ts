/** The device that tests of ops and of tensors run on: the CPU, or what LB_TEST_DEVICE names. */
import { type Device, type DeviceOptions, openDevice } from 'lowbit'

export const testDevice = process.env.LB_TEST_DEVICE || 'cpu'
export const onCpu = testDevice === 'cpu'

/** Opens it; how many threads matters to a CPU alone. */
export function openTest(options: DeviceOptions = {}): Device {
  const { threads, ...rest } = options
  return openDevice(testDevice, onCpu && threads !== undefined ? { ...rest, threads } : rest)
}
