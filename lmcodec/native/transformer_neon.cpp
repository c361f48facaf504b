#include "transformer_kernels.h"
namespace lmcodec {
const TransformerKernels* transformer_kernels_neon() { return nullptr; }
}  // namespace lmcodec
