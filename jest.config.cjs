// Tests are TypeScript, compiled by tsc into build/test (scripts/build.cjs --tests) and run as they are: no transformer.
'use strict'
const os = require('node:os')

module.exports = {
  testEnvironment: 'node',
  roots: ['<rootDir>/build/test/test'],
  testMatch: ['**/*.test.js'],
  transform: {},
  // 'lowbit' is the public face, 'lowbit/native' and the like are the files of lib that tests of internals need.
  moduleNameMapper: { '^lowbit$': '<rootDir>/dist/index.js', '^lowbit/(.*)$': '<rootDir>/dist/$1.js' },
  // Each test process brings a thread pool as wide as the machine, so a few of them fill it.
  maxWorkers: Math.min(4, Math.max(1, os.availableParallelism() >> 1)),
  testTimeout: 60_000,
}
