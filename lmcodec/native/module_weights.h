// The Python face of the decoder of entropy-coded weights.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_weights(nanobind::module_& m);

}  // namespace lmcodec
