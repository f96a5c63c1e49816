// The tests of cuda.test.ts once more, with the kernels of sm_90a where they are emulated. A GPU has chosen by itself.
process.env.CONAN_CUDA_GEMM = 'wgmma'
require('./cuda.test')
