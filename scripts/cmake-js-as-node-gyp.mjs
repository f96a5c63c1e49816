#!/usr/bin/env node
// prebuildify knows only node-gyp and calls it as `rebuild --target=... --arch=...`. This stands in for it: the flags
// do not matter to an addon of stable ABI, and CMake builds what they ask for into build/Release.
import { buildNative } from './setup.mjs'

buildNative()
