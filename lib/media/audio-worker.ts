// Decoding of sound on a thread of its own.
import { decodeSound, type SoundRequest } from './sound'
import { serve } from './thread'

// The decoders write what they stumble over to the console; it is theirs to return, and ours to judge.
console.error = () => {}

serve<SoundRequest>(async (request) => {
  const sound = await decodeSound(request)
  return { value: sound, moved: [sound.samples.buffer as ArrayBuffer] }
})
