#include "transformer_kernels.h"
namespace lmcodec {
const TransformerKernels* transformer_kernels_avx2() { return nullptr; }
}  // namespace lmcodec
