// The Python face of language models outside the kernel.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_external(nanobind::module_& m);

}  // namespace lmcodec
