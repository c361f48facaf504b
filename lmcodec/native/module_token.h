// The Python face of blocks with a language model.
#pragma once

#include <nanobind/nanobind.h>

namespace lmcodec {

void bind_token(nanobind::module_& m);

}  // namespace lmcodec
