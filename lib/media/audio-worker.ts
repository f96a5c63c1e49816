// Decoding of sound on a thread of its own.
import { decodeSound, type SoundRequest } from './sound'
import { serve } from './thread'

serve<SoundRequest>(async (request) => {
  const sound = await decodeSound(request)
  return { value: sound, moved: [sound.samples.buffer as ArrayBuffer] }
})
