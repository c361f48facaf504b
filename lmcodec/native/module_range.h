// The Python face of the range coder: its encoder, and what its words cost.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_range(nanobind::module_& m);

}  // namespace lmcodec
