// The Python face of rounding with feedback.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_rounding(nanobind::module_& m);

}  // namespace lmcodec
