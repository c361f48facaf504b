// The Python face of transformer.h.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_transformer(nanobind::module_& m);

}  // namespace lmcodec
